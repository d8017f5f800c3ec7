"""Kills or counts the writes of `finetune local` itself: every rename and every process it starts."""

import os
import signal
import sys
from typing import Any

_limit = int(os.environ.get("FINETUNE_TEST_KILL_AT_WRITE", "0"))
_counter = os.environ.get("FINETUNE_TEST_WRITE_COUNT")


def _install() -> None:
    seen = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("os.rename", "subprocess.Popen") or "nvidia-smi" in str(arguments[0]):
            return
        seen += 1
        if seen == _limit:
            os.kill(os.getpid(), signal.SIGKILL)
        if _counter:
            descriptor = os.open(_counter, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.write(descriptor, str(seen).encode())
            os.close(descriptor)

    sys.addaudithook(audit)


if (_limit or _counter) and "finetune_cli" in " ".join(sys.orig_argv):
    _install()
