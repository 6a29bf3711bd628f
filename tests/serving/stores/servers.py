"""A Redis or Valkey server of the tests' own, on a free port."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
START_S = 20


class Server(NamedTuple):
    """One that answers."""

    url: str
    process: subprocess.Popen[bytes]


def start(folder: Path, *options: str, port: int | None = None) -> Server:
    """Starts a server whose files are in a folder; returns when it answers."""
    assert PROGRAM is not None
    port = free_port() if port is None else port
    command = [PROGRAM, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    process = subprocess.Popen(
        [*command, "--save", "", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + START_S
    while not answers(port):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            process.wait()
            raise RuntimeError(f"{' '.join(command)} does not answer")
        time.sleep(0.01)
    return Server(f"redis://127.0.0.1:{port}/0", process)


@contextmanager
def running(folder: Path, *options: str) -> Iterator[str]:
    """Yields the URL of a server that ends with the block."""
    server = start(folder, *options)
    try:
        yield server.url
    finally:
        server.process.kill()
        server.process.wait()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(port: int) -> bool:
    """Whether a server is ready: it also refuses while it loads its files."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
