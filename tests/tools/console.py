"""Commands in Markdown: finding them, running them in a shell, comparing and rewriting what they print.

A fenced block of the kind ``console`` is a session: a line that begins with ``$`` is a command, ``>`` continues it,
and the lines up to the next command are what it prints.  In an expected output ``...`` stands for anything: alone
on its line for any number of lines, within a line for any text.  A command has to exit with 0.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_FENCE: Final = re.compile(r"\s*```(?P<kind>[^`\s]*)[^`]*")
ANYTHING: Final = "..."


@dataclass(frozen=True)
class Command:
    """One command.  ``first`` and ``last`` are the lines (from 0) of its expected output, ``last`` excluded."""

    text: str
    expected: str
    line: int
    first: int
    last: int
    indent: str = ""


def blocks(markdown: str) -> Iterator[tuple[str, int, int]]:
    """Every fenced block: its kind, and its lines (from 0, the end excluded) without the fences."""
    start, kind = None, ""
    lines = markdown.splitlines()
    for number, line in enumerate(lines):
        if start is None:
            if match := _FENCE.fullmatch(line):
                start, kind = number + 1, match["kind"]
        elif line.strip() == "```":
            yield kind, start, number
            start = None
    if start is not None:
        raise ValueError(f"the block that begins in line {start} has no end")


def commands(markdown: str) -> list[Command]:
    """The commands of all ``console`` blocks, in order."""
    lines = markdown.splitlines()
    found = []
    for kind, start, end in blocks(markdown):
        if kind != "console":
            continue
        number = start
        while number < end:
            line = lines[number]
            indent = line[: len(line) - len(line.lstrip())]
            if not line.strip().startswith("$ "):
                raise ValueError(f"line {number + 1}: a block has to begin with a command: {line!r}")
            at, text = number, [line.strip()[2:]]
            number += 1
            while number < end and lines[number].strip().startswith("> "):
                text.append(lines[number].strip()[2:])
                number += 1
            first = number
            while number < end and not lines[number].strip().startswith("$ "):
                number += 1
            expected = "\n".join(entry.removeprefix(indent) for entry in lines[first:number])
            found.append(Command("\n".join(text), expected, at + 1, first, number, indent))
    return found


def matches(expected: str, actual: str) -> bool:
    """Whether an output is what is expected.  Space at line ends does not count."""
    parts = []
    for line in expected.rstrip().splitlines():
        if line.strip() == ANYTHING:
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            inner = r"[^\n]*?".join(re.escape(piece) for piece in line.rstrip().split(ANYTHING))
            parts.append(rf"{inner}[ \t]*\n")
    text = actual.rstrip()
    return re.fullmatch("".join(parts), f"{text}\n" if text else "") is not None


def rewritten(markdown: str, outputs: Mapping[Command, str]) -> str:
    """The Markdown with these outputs instead of the expected ones."""
    lines = markdown.splitlines()
    for command in sorted(outputs, key=lambda one: one.first, reverse=True):
        new = [f"{command.indent}{line}".rstrip() for line in outputs[command].rstrip().splitlines()]
        lines[command.first : command.last] = new
    return "\n".join(lines) + "\n"


class Session:
    """A shell that keeps its folder, variables and background jobs from command to command.

    At the end, whatever it has started in its own process group is ended as well.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["/bin/bash", "--noprofile", "--norc"], cwd=folder, env=dict(environ), start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(5)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def run(self, text: str, timeout_s: float = 120.0) -> tuple[str, int]:
        """Run one command; its output (both streams) and exit code.

        :raises TimeoutError: with what it had printed by then.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        mark = f"--- {secrets.token_hex(8)} "
        # Commands read from nothing: the shell's own standard input is the list of commands.
        stdin.write(f"{{ {text}\n}} </dev/null\nprintf '\\n%s%s\\n' '{mark}' \"$?\"\n".encode())
        stdin.flush()
        seen = b""
        until = time.monotonic() + timeout_s
        end = re.compile(rf"\n{re.escape(mark)}(\d+)\n".encode())
        while not (match := end.search(seen)):
            ready, _, _ = select.select([stdout], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(stdout.fileno(), 65536) if ready else b""
            if not chunk:
                why = "did not end in time" if not ready else "ended the shell"
                raise TimeoutError(f"{text!r} {why}; it printed:\n{seen.decode(errors='replace')}")
            seen += chunk
        return seen[: match.start()].decode(errors="replace"), int(match[1])
