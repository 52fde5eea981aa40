"""Files for a host's root, collected as a tar archive: everything belongs to root, modes are as said."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Self


class Tree:
    """Writes files into an archive; parents come into being by themselves."""

    def __init__(self, target: Path) -> None:
        self._archive = tarfile.open(target, "w")  # noqa: SIM115 - closed by __exit__
        self._folders: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder."""
        if path in self._folders:
            return
        self._parents(path)
        self._folders.add(path)
        entry = tarfile.TarInfo(path)
        entry.type = tarfile.DIRTYPE
        entry.mode = mode
        self._archive.addfile(entry)

    def file(self, path: str, content: bytes | str | Path, mode: int = 0o644) -> None:
        """Add a file: what is in it, or another file with the same content."""
        self._parents(path)
        entry = tarfile.TarInfo(path)
        entry.mode = mode
        if isinstance(content, Path):
            entry.size = content.stat().st_size
            with content.open("rb") as stream:
                self._archive.addfile(entry, stream)
            return
        data = content.encode() if isinstance(content, str) else content
        entry.size = len(data)
        self._archive.addfile(entry, io.BytesIO(data))

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(path)
        entry = tarfile.TarInfo(path)
        entry.type = tarfile.SYMTYPE
        entry.linkname = target
        self._archive.addfile(entry)

    def copy(self, folder: Path) -> None:
        """Add all that is in a folder; executable stays executable."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                mode = 0o755 if os.access(path, os.X_OK) else 0o644
                self.file(str(path.relative_to(folder)), path, mode)

    def _parents(self, path: str) -> None:
        above, slash, _ = path.rpartition("/")
        if slash and not _IN_BASE.get(above):
            self.folder(above)


# Debian's /sbin and /lib are links; a folder of that name in the archive would replace them.
_IN_BASE = dict.fromkeys(("bin", "sbin", "lib", "etc", "usr", "var", "root", "srv", "usr/lib", "usr/sbin"), True)
