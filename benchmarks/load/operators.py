"""An operator of this checkout, as a process."""

import asyncio
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

READY_SECONDS = 60.0
QUIET_SECONDS = 5.0
HOME = "default"
"""Namespace of its Lease."""
PORT = 19443
RECEIVER = f"https://127.0.0.1:{PORT}"


class Operator:
    """An operator as a process of this machine."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._kubeconfig, self._folder = kubeconfig, folder
        self._port = 19090
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        settings = {
            "images": {"trainer": "none:1"}, "healthPort": 0, "metricsPort": self._port,
            "lease": {"namespace": HOME, "name": "finetune-bench"},
            "progress": {"url": RECEIVER, "port": PORT},
        }  # fmt: skip
        path = self._folder / "settings.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "finetune_operator", "--settings", str(path)],
            env={**kept, "KUBECONFIG": str(self._kubeconfig), "POD_NAME": "bench"},
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def stop(self) -> None:
        """End it as a pod is ended."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def wait_until_leading(self) -> None:
        """Return when it acts."""
        until = time.monotonic() + READY_SECONDS
        while "Leading as" not in (self._folder / "log").read_text():
            if time.monotonic() > until:
                raise SystemExit((self._folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics") as answer:
            return str(answer.read().decode())

    def writes(self) -> float:
        """Return its writes so far, but those of its Lease."""
        found = re.findall(
            r'finetune_api_call_seconds_count\{code="\d+",method="(?:POST|PATCH|DELETE)"\} (\S+)',
            self._metrics(),
        )
        return sum(map(float, found))

    async def until_idle(self) -> None:
        """Return when nothing has waited for a while."""
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            (waiting,) = re.findall(r"^finetune_queue_keys (\S+)", self._metrics(), re.M)
            if float(waiting):
                quiet_since = time.monotonic()
            await asyncio.sleep(0.2)

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Return the memory that it has resident."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024
