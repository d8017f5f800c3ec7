"""A Service of two receivers, as kube-proxy would be one: each connection goes to the next of them."""

import itertools
import socket
import threading
from contextlib import suppress


class Relay:
    """Hands connections on, byte by byte, to one backend after the other; or to none."""

    def __init__(self, host: str, backends: list[int]) -> None:
        """Listen on a free port of an address that pods reach; backends are ports there."""
        self._listener = socket.create_server((host, 0))
        self.host, self.port = host, self._listener.getsockname()[1]
        self._turns = itertools.cycle(backends)
        self.is_down = False
        self.taken = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Address of the receiver."""
        return f"https://{self.host}:{self.port}"

    def down(self) -> None:
        """End what is open and take nothing."""
        self.is_down = True
        self.cut()

    def up(self) -> None:
        """Take connections again."""
        self.is_down = False

    def cut(self) -> None:
        """End what is open: who reports connects anew, to the next backend."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all of it."""
        self.down()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.is_down:
                    client.close()
                    continue
                try:
                    backend = socket.create_connection((self.host, next(self._turns)), timeout=5)
                except OSError:
                    client.close()
                    continue
                self.taken += 1
                threading.Thread(target=self._join, args=(client, backend), daemon=True).start()

    def _join(self, client: socket.socket, backend: socket.socket) -> None:
        self._open |= {client, backend}
        back = threading.Thread(target=_pump, args=(backend, client), daemon=True)
        back.start()
        _pump(client, backend)
        back.join()
        self._open -= {client, backend}
        client.close()
        backend.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    source.settimeout(None)
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def free_port(host: str) -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])
