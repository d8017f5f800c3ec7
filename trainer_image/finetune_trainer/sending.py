"""Snapshots on their way to the operator while a step runs: by the first process, never by a trainer.

A receiver that is away, slow or wrong costs nothing but the view: each report is complete, the next one
makes up for those that were lost, and the last word goes another way.
"""

import http.client
import json
import random
import ssl
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from finetune_api.contract import PROGRESS_FILE, Receiver, Snapshot
from finetune_trainer.progress import utc_now

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 30.0
TIMEOUT_SECONDS = 5.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
CLOSE_SECONDS = 3.0


class NotTaken(Exception):
    """The receiver did not take a report."""


class Sender:
    """Sends each new snapshot of a step, and the newest again when nothing is new for a while."""

    def __init__(self, receiver: Receiver, folder: Path) -> None:
        """Begin to send."""
        self._receiver, self._path = receiver, folder / PROGRESS_FILE
        self._ended = threading.Event()
        self._connection: http.client.HTTPSConnection | None = None
        self._news = 0
        self._sent_at = time.monotonic()
        self.sequence = 0
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send what is new and end, within a few seconds."""
        self._ended.set()
        self._thread.join(timeout=CLOSE_SECONDS)

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            last = self._ended.wait(LOOK_SECONDS)
            try:
                self._send_news()
                pause, self._complained = FIRST_PAUSE_SECONDS, False
            except (NotTaken, OSError, http.client.HTTPException, ValueError) as error:
                self._complain(error)
                last = last or self._ended.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            if last:
                return

    def _send_news(self) -> None:
        try:
            found = Snapshot.model_validate_json(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return  # nothing to tell yet
        news = found.progress.sequence
        if news == self._news and time.monotonic() - self._sent_at < HEARTBEAT_SECONDS:
            return
        told_at = utc_now() if news == self._news else found.progress.last_report_time
        self._post(self.numbered(found, told_at=told_at))
        self._news, self._sent_at = news, time.monotonic()

    def numbered(self, found: Snapshot, *, told_at: str | None) -> Snapshot:
        """Return a snapshot with the next number: heartbeats count too."""
        self.sequence += 1
        changes = {"sequence": self.sequence, "last_report_time": told_at}
        return found.model_copy(update={"progress": found.progress.model_copy(update=changes)})

    def _post(self, snapshot: Snapshot) -> None:
        """Hand over one report.

        Raises:
            NotTaken: refused, with the receiver's reason. OSError, HTTPException: not reached.
        """
        body = snapshot.model_dump_json(by_alias=True, exclude_none=True).encode()
        # Read each time: the kubelet renews it.
        token = Path(self._receiver.token_file).read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        is_old = self._connection is not None
        try:
            status, content = self._exchange(body, headers)
        except (OSError, http.client.HTTPException):
            if not is_old:
                raise
            status, content = self._exchange(body, headers)  # the other end closed it meanwhile
        if status != http.client.OK:
            raise NotTaken(f"{status} {_reason(content)}")

    def _exchange(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Send one request, on the connection that is there or a new one, which is then kept."""
        connection, self._connection = self._connection or self._connected(), None
        try:
            connection.request("POST", urlsplit(self._receiver.url).path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return answer.status, content

    def _connected(self) -> http.client.HTTPSConnection:
        """Return a new connection. Proxies are for sources: the receiver is in the cluster."""
        address = urlsplit(self._receiver.url)
        trusted = ssl.create_default_context(cafile=self._receiver.ca_file)
        return http.client.HTTPSConnection(
            address.hostname or "", address.port, timeout=TIMEOUT_SECONDS, context=trusted
        )

    def _complain(self, error: Exception) -> None:
        """Say once, until a report is taken again, that the operator does not hear this step."""
        if not self._complained:
            self._complained = True
            print(
                f"Progress is not heard at {self._receiver.url}: {error}; training goes on",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def _reason(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")[:200]
