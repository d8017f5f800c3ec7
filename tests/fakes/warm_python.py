"""A stand-in for `python` that starts at once: a server that has imported the libraries forks.

The trainer imports for ten seconds before it works for one. Tests that start it many times use this:
`serve(socket)` imports everything once; the client, a script that takes python's arguments, hands its
arguments, environment and open files to the server, whose fork runs them as `python -m` would, and
ends as the fork ends. Killing the client kills the fork.
"""

import array
import contextlib
import fcntl
import json
import os
import runpy
import signal
import socket
import sys
import threading
from pathlib import Path

PASSED = "FINETUNE_WARM_FDS"
CLIENT = """#!{python} -SE
import array, json, os, socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect({path!r})
fds = [0, 1, 2] + [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
fds = [fd for fd in fds if fd != connection.fileno() and os.path.exists(f"/proc/self/fd/{{fd}}")]
request = json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "fds": fds}})
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
connection.sendmsg([len(request).to_bytes(4, "big")], rights)
connection.sendall(request.encode())
for fd in fds:
    os.close(fd)
status = connection.recv(4)
sys.exit(int.from_bytes(status, "big") if status else 255)
"""


def serve(path: Path) -> None:
    """Import the trainer's libraries, then fork for every client, for ever."""
    import datasets  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    import torch.distributed  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    import finetune_trainer.export  # noqa: F401
    import finetune_trainer.prepare  # noqa: F401
    import finetune_trainer.train  # noqa: F401
    import finetune_trainer.validate  # noqa: F401

    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _run_client(connection)


def _run_client(connection: socket.socket) -> None:
    """Be the client's process: its files, its environment, its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, rights, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(64 * 4))
    received = array.array("i")
    for _, _, data in rights:
        received.frombytes(data[: len(data) - len(data) % received.itemsize])
    size, body = int.from_bytes(head, "big"), b""
    while len(body) < size:
        body += connection.recv(size - len(body))
    request = json.loads(body)
    worker = os.fork()
    if worker == 0:
        connection.close()
        _become(request, list(received))
    for fd in received:
        os.close(fd)
    threading.Thread(target=_end_with_client, args=(connection, worker), daemon=True).start()
    _, status = os.waitpid(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        connection.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))
    os._exit(0)


def _end_with_client(connection: socket.socket, worker: int) -> None:
    connection.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)


def _become(request: dict[str, object], received: list[int]) -> None:
    wanted = list(map(int, request["fds"]))  # type: ignore[call-overload]
    # Numbers may overlap: first out of the way, then into place.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 400) for fd in received]
    for fd in received:
        os.close(fd)
    for source, target in zip(high, wanted, strict=True):
        os.dup2(source, target, inheritable=True)
        os.close(source)
    os.setsid()
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(dict(request["env"]))  # type: ignore[call-overload]
    sys.executable = os.environ["FINETUNE_TRAINER_PYTHON"]
    sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    arguments = [a for a in map(str, request["argv"]) if a != "-u"]  # type: ignore[call-overload]
    assert arguments[0] == "-m"
    sys.argv = arguments[1:]
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for hook in filter(None, os.environ.get("FINETUNE_TEST_HOOK", "").split(",")):
        runpy.run_path(hook)
    code = 0
    try:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def write_client(script: Path, path: Path) -> Path:
    """Write the client for a server's socket; return the script."""
    script.write_text(CLIENT.format(python=sys.executable, path=str(path)), encoding="utf-8")
    script.chmod(0o755)
    return script


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
