"""One guest's console: what it printed, who reads it, and who may write.

Output is kept twice: the last part of it in memory, for readers that follow, and more of it on the
disk (:mod:`virtd.service.console_log`).  Offsets only grow.  At a start of the daemon they jump to the
next multiple of :data:`JUMP`: so none is ever given out twice, even where the last bytes before a
crash did not reach the disk, and a reader that comes back sees that something may be missing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

import structlog

from virtd.backend.api import ConsoleStream
from virtd.errors import INVALID_STATE, FailedPreconditionError, VirtdError, invalid_field
from virtd.service.console_log import ConsoleLog

log = structlog.get_logger(__name__)

RING_BYTES: Final = 256 * 1024
READ_DEFAULT: Final = 64 * 1024
WRITE_MAX: Final = 64 * 1024
UNSAVED_MAX: Final = 1024 * 1024
"""More than this is not kept for a disk that is too slow: the log then has a gap."""
JUMP: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ConsoleChunk:
    """Output.  ``offset`` is that of its first byte."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ConsoleNotice:
    """``CLOSED``, ``OPENED``, ``TAKEN``, ``RELEASED`` or ``DROPPED``; ``caller`` of the last three."""

    kind: str
    caller: str = ""


class ConsoleHub:
    """The ring, the log, and those who read.

    :param log_: None: nothing is kept on the disk.
    """

    def __init__(self, log_: ConsoleLog | None = None) -> None:
        self._ring = bytearray()
        self._log = log_
        self._log_lock = asyncio.Lock()
        self._unsaved: deque[tuple[int, bytes]] = deque()
        self._unsaved_bytes = 0
        self._troubled = False
        self.end = 0 if log_ is None or log_.empty else (log_.end // JUMP + 1) * JUMP
        """Offset after the last byte."""
        self.stream: ConsoleStream | None = None
        self.trouble: VirtdError | None = None
        """Why the console of a running guest does not open, if it lasts."""
        self.generation = 0
        """Changes whenever the stream opens or closes."""
        self.writer: ConsoleClient | None = None
        """Who has taken the right to write; None: all have it."""
        self.clients: set[ConsoleClient] = set()
        self._news = asyncio.Event()

    @property
    def start(self) -> int:
        """Offset of the oldest byte in memory."""
        return self.end - len(self._ring)

    @property
    def oldest(self) -> int:
        """Offset of the oldest byte that is held at all."""
        return self.start if self._log is None or self._log.empty else min(self._log.start, self.start)

    @property
    def dirty(self) -> bool:
        """Whether there is something to save."""
        return bool(self._unsaved)

    def append(self, data: bytes) -> None:
        """The guest printed something."""
        if self._log is not None:
            self._unsaved.append((self.end, data))
            self._unsaved_bytes += len(data)
            while self._unsaved_bytes > UNSAVED_MAX:
                self._unsaved_bytes -= len(self._unsaved.popleft()[1])
        self._ring += data
        self.end += len(data)
        if len(self._ring) > RING_BYTES:
            del self._ring[: len(self._ring) - RING_BYTES]
        self.wake()

    async def save(self) -> None:
        """Bring what is new to the disk."""
        if self._log is None:
            return
        async with self._log_lock:
            while self._unsaved:
                batch, self._unsaved, self._unsaved_bytes = self._unsaved, deque(), 0
                try:
                    await asyncio.to_thread(self._store, batch)
                    self._troubled = False
                except OSError as error:
                    if not self._troubled:  # a full disk is told of once, and the console goes on
                        log.warning("console_log_not_written", error=str(error))
                    self._troubled = True

    def _store(self, batch: deque[tuple[int, bytes]]) -> None:
        assert self._log is not None
        offset, parts = batch[0][0], bytearray()
        for begin, data in batch:
            if begin != offset + len(parts):
                self._log.append(offset, bytes(parts))
                offset, parts = begin, bytearray()
            parts += data
        self._log.append(offset, bytes(parts))

    async def read(self, offset: int, limit: int = READ_DEFAULT) -> tuple[int, bytes]:
        """Bytes without a gap, from an offset or the first byte behind it that is held: (offset, bytes)."""
        if offset < self.start and self._log is not None:
            await self.save()
            async with self._log_lock:
                begin, data = await asyncio.to_thread(self._log.read, offset, limit)
            if data and begin < self.start:
                return begin, data
        begin = min(max(offset, self.start), self.end)
        at = begin - self.start
        return begin, bytes(self._ring[at : at + limit])

    async def tail(self, limit: int) -> tuple[int, bytes]:
        """The last bytes without a gap; those of the daemon's run before, if there are none of this one."""
        if self._log is not None:
            await self.save()
            async with self._log_lock:
                first, last = self._log.last_run()
            if last == self.end or not self._ring:
                return await self._all(max(first, last - limit), last)
        return await self._all(max(self.start, self.end - limit), self.end)

    async def _all(self, begin: int, end: int) -> tuple[int, bytes]:
        parts, at = [], begin
        while at < end:
            found, data = await self.read(at, end - at)
            if found != at or not data:
                break
            parts.append(data)
            at += len(data)
        return begin, b"".join(parts)

    def wake(self) -> None:
        """Tell the readers to look."""
        self._news.set()
        self._news = asyncio.Event()

    @property
    def news(self) -> asyncio.Event:
        """Is set at the next change.  To be taken *before* looking, or a change in between is missed."""
        return self._news

    def hand_over(self, to: ConsoleClient | None, by: str) -> None:
        """Give the right to write to one client, or to all."""
        if self.writer is to:
            return
        self.writer = to
        notice = ConsoleNotice("RELEASED" if to is None else "TAKEN", by)
        for client in self.clients:
            client.tell(notice)
        self.wake()

    async def close(self) -> None:
        """Bring the rest to the disk."""
        await self.save()
        if self._log is not None:
            async with self._log_lock:
                await asyncio.to_thread(self._log.close)

    async def remove(self) -> None:
        """The guest is gone, and what it printed with it."""
        self._unsaved.clear()
        if self._log is not None:
            async with self._log_lock:
                await asyncio.to_thread(self._log.remove)


class ConsoleClient:
    """One attached client: a place in the hub's output.  Made by :func:`attach`."""

    def __init__(self, hub: ConsoleHub, offset: int, *, caller: str, read_only: bool, truncated: bool) -> None:
        self._hub = hub
        self.offset = offset
        self.truncated = truncated
        self.caller = caller
        self.writer = "" if hub.writer is None else hub.writer.caller
        """Who had taken the right to write when this client attached."""
        self._read_only = read_only
        self._generation = hub.generation
        self._open = hub.stream is not None
        self._closed = asyncio.Event()
        self._notices: deque[ConsoleNotice] = deque()
        self._dropped = False
        hub.clients.add(self)

    def tell(self, notice: ConsoleNotice) -> None:
        """Something that only a notice can say."""
        self._dropped = False
        self._notices.append(notice)

    async def read(self) -> ConsoleChunk | ConsoleNotice | None:
        """The next output or notice; None after :meth:`close`."""
        while not self._closed.is_set():
            change = self._hub.news
            if self._notices:
                return self._notices.popleft()
            if self.offset < self._hub.end:
                # Where it was read too slowly, or is missing in the log, the offset says so.
                self.offset, data = await self._hub.read(self.offset)
                if data:
                    chunk = ConsoleChunk(self.offset, data)
                    self.offset += len(data)
                    return chunk
            if self._generation != self._hub.generation:
                self._generation = self._hub.generation
                is_open = self._hub.stream is not None
                if is_open != self._open:
                    self._open = is_open
                    return ConsoleNotice("OPENED" if is_open else "CLOSED")
            news, closed = asyncio.ensure_future(change.wait()), asyncio.ensure_future(self._closed.wait())
            try:
                await asyncio.wait({news, closed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
                closed.cancel()
        return None

    async def write(self, data: bytes) -> None:
        """Send to the guest; while another client has the right to write, drop it and say so by a notice.

        :raises InvalidArgumentError: FIELD_INVALID, read-only or too much at a time.
        :raises FailedPreconditionError: INVALID_STATE, the console is closed: the guest is down.
        """
        if self._read_only:
            raise invalid_field("input", "this console was attached read-only")
        if len(data) > WRITE_MAX:
            raise invalid_field("input", f"must be at most {WRITE_MAX} bytes at a time")
        holder = self._hub.writer
        if holder is not None and holder is not self:
            if not self._dropped:  # once, not for each key
                self.tell(ConsoleNotice("DROPPED", holder.caller))
                self._dropped = True
                self._hub.wake()
            return
        stream = self._hub.stream
        if stream is None:
            raise FailedPreconditionError(INVALID_STATE, "the console is closed: the guest does not run")
        await stream.write(data)

    def take(self) -> None:
        """Take the right to write, whoever had it.

        :raises InvalidArgumentError: FIELD_INVALID, read-only.
        """
        if self._read_only:
            raise invalid_field("take", "this console was attached read-only")
        self._hub.hand_over(self, self.caller)

    def release(self) -> None:
        """Give it back, if this client has it."""
        if self._hub.writer is self:
            self._hub.hand_over(None, self.caller)

    async def close(self) -> None:
        """Detach.  Idempotent; a pending read returns None."""
        self._closed.set()
        self._hub.clients.discard(self)
        self.release()


async def attach(hub: ConsoleHub, *, caller: str, read_only: bool, offset: int | None) -> ConsoleClient:
    """Attach a client, at an offset or at the end.

    An offset that this log never gave out (it was lost with the state directory) begins at the end.
    """
    begin, truncated = hub.end, False
    if offset is not None and offset != hub.end:
        begin, _ = await hub.read(offset, 1)
        truncated = begin != offset
    return ConsoleClient(hub, begin, caller=caller, read_only=read_only, truncated=truncated)
