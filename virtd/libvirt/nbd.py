"""A reader of NBD exports: as much of the protocol as reading a disk and its record of changes needs.

Spoken over asyncio, so that a read can be given up at once, without a process or a thread that has to be
killed.  The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md (fixed newstyle,
structured replies, metadata contexts).  One request at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Final

ALLOCATION: Final = "base:allocation"
HOLE: Final = 1
ZERO: Final = 2
DIRTY: Final = 1

_MAGIC: Final = b"NBDMAGIC"
_OPTION_MAGIC: Final = b"IHAVEOPT"
_REPLY_MAGIC: Final = 0x3E889045565A9
_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_OPT_GO: Final = 7
_OPT_STRUCTURED_REPLY: Final = 8
_OPT_SET_META_CONTEXT: Final = 10
_REP_ACK: Final = 1
_REP_INFO: Final = 3
_REP_META_CONTEXT: Final = 4
_REP_ERROR: Final = 1 << 31
_INFO_EXPORT: Final = 0
_REQUEST_MAGIC: Final = 0x25609513
_SIMPLE_MAGIC: Final = 0x67446698
_STRUCTURED_MAGIC: Final = 0x668E33EF
_CMD_READ: Final = 0
_CMD_DISC: Final = 2
_CMD_BLOCK_STATUS: Final = 7
_DONE: Final = 1
_OFFSET_DATA: Final = 1
_OFFSET_HOLE: Final = 2
_BLOCK_STATUS: Final = 5
_ERROR: Final = 1 << 15
_STATUS_MAX: Final = 1 << 30
_REQUEST: Final = struct.Struct(">IHHQQI")
_STRUCTURED_HEAD: Final = struct.Struct(">HHQI")
_SIMPLE_HEAD: Final = struct.Struct(">IQ")
_PAIR: Final = struct.Struct(">II")
_MESSAGE_MAX: Final = 64 * 2**20
_Chunks = AsyncGenerator[tuple[int, bytes], None]


class NbdError(Exception):
    """The server refused, or does not speak the protocol."""


class NbdClosed(NbdError):  # noqa: N818 - says what has happened
    """The server has gone away."""


class NbdReader:
    """One export.  Made by :meth:`connect`.

    :ivar size: its bytes.
    :ivar contexts: the metadata contexts that the server has agreed to, and their ids.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._handle = 0
        self.size = 0
        self.contexts: dict[str, int] = {}

    @classmethod
    async def connect(cls, path: str, export: str, contexts: Sequence[str] = ()) -> NbdReader:
        """Open an export of the server at a unix socket.

        :raises NbdError: it refused.
        :raises OSError: nobody listens.
        """
        reader, writer = await asyncio.open_unix_connection(path)
        self = cls(reader, writer)
        try:
            with _closed_means_gone():
                await self._negotiate(export, contexts)
        except BaseException:
            await self.close()
            raise
        return self

    async def read(self, offset: int, length: int) -> bytes:
        """So many bytes (at most 32 MiB)."""
        found = bytearray(length)
        async for kind, payload in self._call(_CMD_READ, offset, length):
            if kind not in (_OFFSET_DATA, _OFFSET_HOLE):
                continue  # the last chunk of an answer may be empty
            (at,) = struct.unpack_from(">Q", payload)
            size = len(payload) - 8 if kind == _OFFSET_DATA else struct.unpack_from(">I", payload, 8)[0]
            start = at - offset
            if start < 0 or start + size > length:
                raise NbdError("the answer is about other bytes than the question")
            if kind == _OFFSET_DATA:
                found[start : start + size] = memoryview(payload)[8:]
        return bytes(found)

    async def status(self, context: str) -> list[tuple[int, int, int]]:
        """All of the export by a context: (offset, length, flags), neighbours with equal flags joined."""
        wanted = self.contexts[context]
        found: list[tuple[int, int, int]] = []
        offset = 0
        while offset < self.size:
            before = offset
            async for kind, payload in self._call(_CMD_BLOCK_STATUS, offset, min(_STATUS_MAX, self.size - offset)):
                if kind != _BLOCK_STATUS or struct.unpack_from(">I", payload)[0] != wanted:
                    continue
                at = before
                for length, flags in _PAIR.iter_unpack(memoryview(payload)[4:]):
                    length = min(length, self.size - at)  # noqa: PLW2901 - an answer may reach beyond the end
                    if found and found[-1][2] == flags and sum(found[-1][:2]) == at:
                        found[-1] = (found[-1][0], found[-1][1] + length, flags)
                    elif length:
                        found.append((at, length, flags))
                    at += length
                offset = at
            if offset == before:
                raise NbdError(f"the server does not tell the {context} of the disk from {offset} on")
        return found

    async def close(self) -> None:
        """Say good-bye.  Idempotent, never fails."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(_REQUEST.pack(_REQUEST_MAGIC, 0, _CMD_DISC, 0, 0, 0))
            self._writer.close()
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()

    # -------------------------------------------------------------------------- negotiation

    async def _negotiate(self, export: str, contexts: Sequence[str]) -> None:
        head = await self._reader.readexactly(18)
        if head[:8] != _MAGIC or head[8:16] != _OPTION_MAGIC:
            raise NbdError("this is not an NBD server of this century")
        self._writer.write(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
        async for _ in self._option(_OPT_STRUCTURED_REPLY, b""):
            pass
        name = _text(export)
        if contexts:
            queries = name + struct.pack(">I", len(contexts)) + b"".join(_text(context) for context in contexts)
            async for kind, payload in self._option(_OPT_SET_META_CONTEXT, queries):
                if kind == _REP_META_CONTEXT:
                    self.contexts[payload[4:].decode()] = struct.unpack_from(">I", payload)[0]
        async for kind, payload in self._option(_OPT_GO, name + struct.pack(">H", 0)):
            if kind == _REP_INFO and struct.unpack_from(">H", payload)[0] == _INFO_EXPORT:
                (self.size,) = struct.unpack_from(">Q", payload, 2)
        missing = [context for context in contexts if context not in self.contexts]
        if missing:
            raise NbdError(f"the server has no {missing[0]} for the export {export}")

    async def _option(self, option: int, data: bytes) -> _Chunks:
        self._writer.write(_OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)
        await self._writer.drain()
        while True:
            magic, about, kind, length = struct.unpack(">QIII", await self._reader.readexactly(20))
            if magic != _REPLY_MAGIC or about != option or length > _MESSAGE_MAX:
                raise NbdError("the server's answer to an option makes no sense")
            payload = await self._reader.readexactly(length)
            if kind & _REP_ERROR:
                raise NbdError(payload.decode(errors="replace") or f"option {option} was refused ({kind:#x})")
            if kind == _REP_ACK:
                return
            yield kind, payload

    # ----------------------------------------------------------------------------- requests

    async def _call(self, command: int, offset: int, length: int) -> _Chunks:
        async with self._lock:
            with _closed_means_gone():
                self._handle += 1
                self._writer.write(_REQUEST.pack(_REQUEST_MAGIC, 0, command, self._handle, offset, length))
                await self._writer.drain()
                while True:
                    kind, payload, done = await self._chunk()
                    if kind & _ERROR:
                        code, size = struct.unpack_from(">IH", payload)
                        text = payload[6 : 6 + size].decode(errors="replace")
                        raise NbdError(text or f"the server answered with error {code}")
                    yield kind, payload
                    if done:
                        return

    async def _chunk(self) -> tuple[int, bytes, bool]:
        (magic,) = struct.unpack(">I", await self._reader.readexactly(4))
        if magic == _SIMPLE_MAGIC:
            code, handle = _SIMPLE_HEAD.unpack(await self._reader.readexactly(_SIMPLE_HEAD.size))
            self._check(handle, 0)
            if code:
                raise NbdError(f"the server answered with error {code}")
            return 0, b"", True
        if magic != _STRUCTURED_MAGIC:
            raise NbdError("the server's answer makes no sense")
        flags, kind, handle, length = _STRUCTURED_HEAD.unpack(await self._reader.readexactly(_STRUCTURED_HEAD.size))
        self._check(handle, length)
        return kind, await self._reader.readexactly(length), bool(flags & _DONE)

    def _check(self, handle: int, length: int) -> None:
        if handle != self._handle or length > _MESSAGE_MAX:
            raise NbdError("the server's answer is to another question")


@contextlib.contextmanager
def _closed_means_gone() -> Iterator[None]:
    try:
        yield
    except (asyncio.IncompleteReadError, ConnectionError, BrokenPipeError) as error:
        raise NbdClosed("the NBD server has closed the connection") from error


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data
