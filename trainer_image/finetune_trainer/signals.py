"""How a worker hears that it must stop, and shows that it lives."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from finetune_api.contract import ExitCode, JobFile

STOP_FILE = "stop"
HEARTBEAT_FILE = "heartbeat"
BEAT_SECONDS = 1.0
STDIN = 0


class _State:
    stopped = False
    heartbeat: Path | None = None
    last_beat = 0.0


def install(file: JobFile) -> None:
    """Let SIGTERM and SIGINT ask for a stop at the next step, and start the heartbeat."""

    def note(_number: int, _frame: Any) -> None:
        _State.stopped = True

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to the supervisor
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    _State.heartbeat = Path(file.folders.step) / HEARTBEAT_FILE
    beat()


def _end_with_supervisor() -> None:
    """End at once when the supervisor is gone: nobody would watch, stop or report this process."""
    while os.read(STDIN, 1):  # unbuffered: a buffered reader's lock breaks the interpreter's end
        pass
    os._exit(ExitCode.INFRASTRUCTURE)


def beat() -> None:
    """Show that work goes on; at most once a second."""
    if _State.heartbeat is not None and time.monotonic() - _State.last_beat > BEAT_SECONDS:
        _State.last_beat = time.monotonic()
        _State.heartbeat.touch()


def stop_requested(file: JobFile) -> bool:
    """Tell whether the supervisor, or anybody by SIGTERM, asked this step to stop."""
    return _State.stopped or os.path.exists(os.path.join(file.folders.step, STOP_FILE))
