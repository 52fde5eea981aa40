"""A writer of cpio archives in the "newc" format, as the Linux kernel reads for its initramfs.

No tool and no root needed: owners, device nodes and times are only numbers in the archive. The
same entries always give the same bytes.
"""

from __future__ import annotations

import stat
from typing import IO

_MAGIC = b"070701"


class CpioWriter:
    """Writes entries, all owned by root, in the order in which they are added."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Write to the stream, which stays the caller's to close."""
        self._stream = stream
        self._inode = 0
        self._directories: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, and those above it that are not there yet."""
        if path in self._directories:
            return
        self._parents(path)
        self._directories.add(path)
        self._entry(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """Add a regular file."""
        self._parents(path)
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._parents(path)
        self._entry(path, stat.S_IFCHR | mode, device=(major, minor))

    def end(self) -> None:
        """Write the trailer; nothing may follow."""
        self._entry("TRAILER!!!", 0)

    def _parents(self, path: str) -> None:
        if "/" in path:
            self.directory(path.rpartition("/")[0])

    def _entry(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        name = path.encode() + b"\0"
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
        header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
        self._stream.write(header + b"\0" * (-len(header) % 4))
        self._stream.write(data + b"\0" * (-len(data) % 4))
