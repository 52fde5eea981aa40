"""The HTTP endpoint for Prometheus: GET and HEAD of /metrics, one request a connection, nothing else."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from virtd.config.model import TcpAddress
from virtd.obs.logging import get_logger
from virtd.obs.metrics import Metrics

_HEAD_BYTES: Final = 16 * 1024
_READ_S: Final = 5.0
_WRITE_S: Final = 60.0

log = get_logger(__name__)


class Exporter:
    """Serves metrics while its ``async with`` block runs.

    :raises OSError: (on entry) the address cannot be listened on.
    """

    def __init__(self, metrics: Metrics, listen: TcpAddress) -> None:
        self._metrics = metrics
        self._listen = listen
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        """The port that it listens on, also where any free one was asked for."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, self._listen.host, self._listen.port, limit=_HEAD_BYTES, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("metrics endpoint open", url=f"http://{TcpAddress(self._listen.host, self.port)}/metrics")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: closing must be able to end it, which asyncio's own callback tasks do not offer.
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_READ_S):
                head = await reader.readuntil(b"\r\n\r\n")
            status, headers, body = await self._answered(head)
            lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
            lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
            writer.write("\r\n".join(lines).encode("latin-1"))
            if not head.startswith(b"HEAD "):
                writer.write(body)
            async with asyncio.timeout(_WRITE_S):
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("metrics request dropped", error=str(error) or type(error).__name__)
        finally:
            writer.close()

    async def _answered(self, head: bytes) -> tuple[str, dict[str, str], bytes]:
        try:
            return await self._answer(head)
        except Exception:
            log.exception("metrics request failed")
            return "500 Internal Server Error", {"Content-Type": "text/plain"}, b"see the daemon's log\n"

    async def _answer(self, head: bytes) -> tuple[str, dict[str, str], bytes]:
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        method, _, target = first.partition(" ")
        path = target.split(" ")[0].partition("?")[0]
        plain = {"Content-Type": "text/plain; charset=utf-8"}
        if path != "/metrics":
            return "404 Not Found", plain, b"metrics are at /metrics\n"
        if method not in {"GET", "HEAD"}:
            return "405 Method Not Allowed", {**plain, "Allow": "GET, HEAD"}, b"GET or HEAD only\n"
        compress = "gzip" in headers.get("accept-encoding", "")
        body, content_type = await self._metrics.expose(headers.get("accept", ""), compress=compress)
        encoding = {"Content-Encoding": "gzip"} if compress else {}
        return "200 OK", {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding", **encoding}, body
