"""What a guest printed, on the disk: a few files of bounded size, named by their first byte's offset.

Blocking; the caller keeps it off the event loop, and calls one method at a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SEGMENTS: Final = 4
_DIGITS: Final = 20


@dataclass(slots=True)
class _Segment:
    """One file: bytes ``start`` to ``start + size``."""

    start: int
    size: int
    path: Path

    @property
    def end(self) -> int:
        """Offset after its last byte."""
        return self.start + self.size


class ConsoleLog:
    """One guest's log.  Where bytes are missing between two files, the offsets say so.

    :param max_bytes: the oldest file goes when all together are longer.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._segment_bytes = max(1, max_bytes // SEGMENTS)
        self._file: int | None = None
        self._segments = sorted(self._found(), key=lambda segment: segment.start)

    def _found(self) -> list[_Segment]:
        found = []
        for path in self._directory.glob("*.log"):
            if path.stem.isdigit():
                with contextlib.suppress(OSError):
                    found.append(_Segment(int(path.stem), path.stat().st_size, path))
        return found

    @property
    def start(self) -> int:
        """Offset of the oldest byte."""
        return self._segments[0].start if self._segments else 0

    @property
    def end(self) -> int:
        """Offset after the newest byte."""
        return self._segments[-1].end if self._segments else 0

    @property
    def empty(self) -> bool:
        """Whether nothing is held."""
        return not self._segments

    def append(self, offset: int, data: bytes) -> None:
        """Write bytes that begin at an offset, which is not before :attr:`end`.

        :raises OSError: the disk is full, or the like; what could be written is.
        """
        rest = memoryview(data)
        while rest:
            last = self._segments[-1] if self._segments else None
            if last is None or self._file is None or last.end != offset or last.size >= self._segment_bytes:
                last = self._next(offset)
            assert self._file is not None
            count = os.write(self._file, rest[: self._segment_bytes - last.size])
            last.size += count
            offset += count
            rest = rest[count:]
        self._trim()

    def _next(self, offset: int) -> _Segment:
        self.close()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        segment = _Segment(offset, 0, self._directory / f"{offset:0{_DIGITS}d}.log")
        self._file = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._segments.append(segment)
        return segment

    def _trim(self) -> None:
        while len(self._segments) > 1 and sum(segment.size for segment in self._segments) > self._max_bytes:
            oldest = self._segments.pop(0)
            with contextlib.suppress(OSError):
                oldest.path.unlink()

    def read(self, offset: int, limit: int) -> tuple[int, bytes]:
        """Bytes without a gap, from an offset or the first byte behind it that is held: (offset, bytes)."""
        begin, count = offset, 0
        parts: list[bytes] = []
        for segment in self._segments:
            if segment.end <= offset or count >= limit:
                continue
            if not parts:
                begin = max(offset, segment.start)
            elif segment.start != begin + count:
                break
            with segment.path.open("rb") as file:
                file.seek(max(0, begin + count - segment.start))
                part = file.read(limit - count)
            parts.append(part)
            count += len(part)
        return begin, b"".join(parts)

    def last_run(self) -> tuple[int, int]:
        """The newest bytes without a gap: (offset of the first, offset after the last)."""
        begin = end = self.end
        for segment in reversed(self._segments):
            if segment.end != begin:
                break
            begin = segment.start
        return begin, end

    def close(self) -> None:
        """Close the file that is written.  Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Forget it all."""
        self.close()
        self._segments.clear()
        shutil.rmtree(self._directory, ignore_errors=True)
