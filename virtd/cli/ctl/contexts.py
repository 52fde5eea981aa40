"""Contexts: named targets of guestctl, in ``$XDG_CONFIG_HOME/virtd/guestctl.toml``.

The file is the user's: it is read strictly (an unknown key is an error, with its name), and
written atomically, under a lock, so that two commands at once lose nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final

from virtd.cli.ctl.text import did_you_mean, parse_duration

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEYS: Final = ("target", "host", "timeout")


class ContextError(Exception):
    """The file, or what was asked of it, is wrong; the message is for a person."""


@dataclass(frozen=True, slots=True)
class Context:
    """One context: where the daemon is, and defaults for it.  Empty: not set."""

    target: str = ""
    host: str = ""
    timeout: str = ""


@dataclass(frozen=True, slots=True)
class Contexts:
    """The whole file."""

    current: str = ""
    entries: dict[str, Context] = field(default_factory=dict)

    def get(self, name: str) -> Context:
        """The context of that name.

        :raises ContextError: when there is none.
        """
        if name not in self.entries:
            raise ContextError(f"there is no context {name!r}{did_you_mean(name, self.entries)}")
        return self.entries[name]


def path() -> Path:
    """Where the file is; it need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification: a relative path in the variable is to be ignored.
    root = Path(base) if base.startswith("/") else Path.home() / ".config"
    return root / "virtd" / "guestctl.toml"


def load() -> Contexts:
    """Read the file; an absent one is an empty one.

    :raises ContextError: when it cannot be read or is wrong.
    """
    file = path()
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise ContextError(f"{file}: {error.strerror}") from error
    import tomllib

    try:
        document = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ContextError(f"{file}: {error}") from error
    return _parse(file, document)


def _parse(file: Path, document: dict[str, object]) -> Contexts:
    for key in document:
        if key not in {"current_context", "contexts"}:
            hint = did_you_mean(key, ("current_context", "contexts"))
            raise ContextError(f"{file}: unknown key {key!r}{hint}")
    current, tables = document.get("current_context", ""), document.get("contexts", {})
    if not isinstance(current, str) or not isinstance(tables, dict):
        raise ContextError(f"{file}: current_context must be a text and contexts a table")
    entries = {name: _entry(file, name, table) for name, table in tables.items()}
    if current and current not in entries:
        raise ContextError(f"{file}: current_context {current!r} is not one of the contexts")
    return Contexts(current, entries)


def _entry(file: Path, name: str, table: object) -> Context:
    if not isinstance(table, dict):
        raise ContextError(f"{file}: contexts.{name} must be a table")
    for key, value in table.items():
        if key not in _KEYS:
            raise ContextError(f"{file}: unknown key contexts.{name}.{key}{did_you_mean(key, _KEYS)}")
        if not isinstance(value, str):
            raise ContextError(f"{file}: contexts.{name}.{key} must be a text")
    entry = Context(**table)
    try:
        if entry.timeout:
            parse_duration(entry.timeout)
    except ValueError as error:
        raise ContextError(f"{file}: contexts.{name}.timeout: {error}") from error
    return entry


def change(edit: Callable[[Contexts], Contexts]) -> Contexts:
    """Read, edit and write the file under a lock; returns what was written.

    :raises ContextError: when the file cannot be read or written; then it is as it was.
    """
    import fcntl
    import tempfile

    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            contexts = edit(load())
            # A symbolic link (dotfiles in a repository) stays one: its target is replaced.
            real = file.resolve()
            descriptor, temporary = tempfile.mkstemp(dir=real.parent, prefix=".guestctl-")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                    stream.write(dump(contexts))
                    stream.flush()
                    os.fsync(stream.fileno())
                Path(temporary).replace(real)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        finally:
            os.close(lock)
    except OSError as error:
        raise ContextError(f"{file}: {error.strerror}") from error
    return contexts


def dump(contexts: Contexts) -> str:
    """The file's text."""
    lines = ["# Contexts of guestctl; written by `guestctl config`."]
    if contexts.current:
        lines.append(f"current_context = {_quoted(contexts.current)}")
    for name, entry in sorted(contexts.entries.items()):
        lines += ["", f"[contexts.{_quoted(name)}]"]
        lines += [f"{f.name} = {_quoted(getattr(entry, f.name))}" for f in fields(entry) if getattr(entry, f.name)]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def set_entry(contexts: Contexts, name: str, changes: dict[str, str]) -> Contexts:
    """``contexts`` with the entry ``name`` created or changed; checks every value.

    :raises ContextError: for a name or value that cannot be used.
    """
    if not NAME.fullmatch(name):
        raise ContextError(f"{name!r} is not a name of a context: use letters, digits, '.', '_' and '-'")
    for key, value in changes.items():
        if not value.isprintable():
            raise ContextError(f"--{key}: {value!r} holds characters that cannot be printed")
    if changes.get("timeout"):
        try:
            parse_duration(changes["timeout"])
        except ValueError as error:
            raise ContextError(f"--timeout: {error}") from error
    entry = replace(contexts.entries.get(name, Context()), **changes)
    entries = {**contexts.entries, name: entry}
    return Contexts(contexts.current or name, entries)
