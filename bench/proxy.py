"""A proxy before PostgreSQL that is slow, deaf or cruel when told to, and counts round trips on the wire.

with FaultProxy(url) as proxy: connect to `proxy.url`. It runs in a process of its own, so that neither its work nor the
worker's hinders the other; that process is this file run as a script, told what to do by lines of JSON on its input.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType

from sqlalchemy import URL

ENCRYPTION_CODES = tuple(struct.pack("!i", code) for code in (80877103, 80877104))  # SSLRequest, GSSENCRequest
CLOSED = b""  # as a message: the sender is gone
CHUNK_BYTES = 65536
EXIT_TIMEOUT_S = 10

Queue = asyncio.Queue[tuple[float, bytes]]


class FaultProxy:
    """Each method returns when the proxy has changed its behaviour. May be used by several threads."""

    def __init__(self, url: URL) -> None:
        command = [sys.executable, __file__, json.dumps(_address(url))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        self._turn = threading.Lock()
        port = int(self._answer())
        self.url = url.difference_update_query(["host", "port"]).set(host="127.0.0.1", port=port)

    def set_latency(self, latency_s: float) -> None:
        """Of a round trip; half in each direction, without a limit on throughput."""
        self._tell("set_latency", latency_s)

    def black_hole(self) -> None:
        """Everything is accepted and nothing forwarded, on old and new connections, the end of one included."""
        self._tell("black_hole")

    def heal(self) -> None:
        """Ends a black hole: connections that lost bytes in it are closed, the others live on."""
        self._tell("heal")

    def reset_after_commit(self, probability: float, seed: int) -> None:
        """Such a share of queries is executed to the end, then the client's connection reset instead of an answer."""
        self._tell("reset_after_commit", probability, seed)

    def round_trips(self) -> int:
        """Since the start, of all connections: simple queries, and syncs of the extended protocol."""
        return self._tell("count")[0]

    def resets(self) -> int:
        """Since the start: answers that were lost by reset_after_commit."""
        return self._tell("count")[1]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(EXIT_TIMEOUT_S)
        self._process.stdout.close()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, name: str, *arguments: float) -> tuple[int, int]:
        assert self._process.stdin is not None
        with self._turn:
            self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self._process.stdin.flush()
            round_trips, resets = json.loads(self._answer())
        return round_trips, resets

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy has died; why is on its standard error")
        return line


class _Proxy:
    """In the process of its own: what it does to its links at the moment."""

    def __init__(self, address: list[str]) -> None:
        self.address = address
        self.latency_s = 0.0
        self.is_hole = False
        self.reset_probability = 0.0
        self.dice = random.Random(0)
        self.round_trips = 0
        self.resets = 0
        self.links: set[_Link] = set()

    def set_latency(self, latency_s: float) -> None:
        self.latency_s = latency_s

    def black_hole(self) -> None:
        self.is_hole = True

    def heal(self) -> None:
        self.is_hole = False
        for link in [link for link in self.links if link.has_lost]:
            link.close()

    def reset_after_commit(self, probability: float, seed: int) -> None:
        self.reset_probability, self.dice = probability, random.Random(seed)

    def count(self) -> None:
        """Every answer holds the counts."""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.links.add(_Link(self, reader, writer))

    async def serve(self) -> None:
        """Until the input ends, as it does when the controlling process dies."""
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        orders = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        while line := await orders.readline():
            name, *arguments = json.loads(line)
            getattr(self, name)(*arguments)
            print(json.dumps([self.round_trips, self.resets]), flush=True)


class _Link:
    """One client's connection and its counterpart to the server, opened with the client's first message."""

    def __init__(self, proxy: _Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = writer
        self._server: asyncio.StreamWriter | None = None
        self._up, self._down = Queue(), Queue()
        self._withheld: bytearray | None = None  # an answer that the client shall not get
        self.has_lost = False
        self._tasks: list[asyncio.Task[None]] = []
        self._run(self._read_client(reader))
        self._run(self._deliver(self._up, self._to_server))
        self._run(self._deliver(self._down, self._to_client))

    def close(self) -> None:
        self._proxy.links.discard(self)
        for writer in (self._client, self._server):
            if writer is not None:
                writer.close()
        for task in self._tasks:
            task.cancel()

    def _run(self, work: Awaitable[None]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    def _put(self, queue: Queue, message: bytes) -> None:
        queue.put_nowait((asyncio.get_running_loop().time() + self._proxy.latency_s / 2, message))

    async def _read_client(self, reader: asyncio.StreamReader) -> None:
        """Whole messages; the first, and only it, has no byte for its type. Refused encryption, it comes again."""
        is_started = False
        message = b"?"
        while message != CLOSED:
            message = await _message(reader, type_bytes=int(is_started))
            is_started = is_started or message[4:8] not in ENCRYPTION_CODES
            self._put(self._up, message)

    async def _read_server(self, reader: asyncio.StreamReader) -> None:
        chunk = b"?"
        while chunk != CLOSED:
            try:
                chunk = await reader.read(CHUNK_BYTES)
            except OSError:
                chunk = CLOSED
            self._put(self._down, chunk)

    async def _deliver(self, queue: Queue, to_receiver: Callable[[bytes], Awaitable[None]]) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, message = await queue.get()
            if (wait_s := due - clock()) > 0:
                await asyncio.sleep(wait_s)
            if self._proxy.is_hole:
                self.has_lost = True
                continue
            try:
                await to_receiver(message)
            except OSError:
                message = CLOSED
            if message == CLOSED:
                self.close()
                return

    async def _to_server(self, message: bytes) -> None:
        if self._server is None:
            if message[4:8] in ENCRYPTION_CODES:
                self._put(self._down, b"N")
                return
            reader, self._server = await _open(self._proxy.address)
            self._run(self._read_server(reader))
        self._proxy.round_trips += message.startswith((b"Q", b"S"))
        if message.startswith(b"Q") and self._proxy.dice.random() < self._proxy.reset_probability:
            self._withheld = bytearray()
        self._server.write(message)
        await self._server.drain()

    async def _to_client(self, chunk: bytes) -> None:
        if self._withheld is None:
            self._client.write(chunk)
            await self._client.drain()
            return
        self._withheld += chunk
        if _is_ready_for_query(self._withheld):
            self._proxy.resets += 1
            # Closing with unsent time to linger of zero is what makes TCP send a reset.
            self._client.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.close()


def _address(url: URL) -> list[str]:
    """Of a Unix socket, or host and port."""
    host = str(url.query.get("host") or url.host or "localhost")
    port = str(url.query.get("port") or url.port or 5432)
    return [f"{host}/.s.PGSQL.{port}"] if host.startswith("/") else [host, port]


async def _open(address: list[str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if len(address) == 1:
        return await asyncio.open_unix_connection(address[0])
    return await asyncio.open_connection(*address)


async def _message(reader: asyncio.StreamReader, *, type_bytes: int) -> bytes:
    """Type, length (which counts itself) and contents; CLOSED when the client is gone."""
    try:
        head = await reader.readexactly(type_bytes + 4)
        return head + await reader.readexactly(int.from_bytes(head[type_bytes:], "big") - 4)
    except (asyncio.IncompleteReadError, OSError):
        return CLOSED


def _is_ready_for_query(answer: bytearray) -> bool:
    at = 0
    while at + 6 <= len(answer):
        if answer[at] == ord("Z"):
            return True
        at += 1 + int.from_bytes(answer[at + 1 : at + 5], "big")
    return False


if __name__ == "__main__":
    asyncio.run(_Proxy(json.loads(sys.argv[1])).serve())
