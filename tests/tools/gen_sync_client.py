"""Generate the sync Python client from the async one.

``python -m tests.tools.gen_sync_client`` writes ``virtd_client/_sync`` anew; with ``--check`` it writes
nothing, and fails if a file would change.

The async code is read token by token: ``async`` and ``await`` go, names that begin with ``Async``
lose it, and a few others have a counterpart.  What cannot be translated so lives in two modules with
the same names, ``virtd_client/_io/aio.py`` and ``blocking.py``; what exists only in async code stands
between the comments ``# async only`` and ``# end of async only``.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "clients" / "python" / "virtd_client"
SOURCE = PACKAGE / "_async"
TARGET = PACKAGE / "_sync"

HEADER = """\
# Generated from _async/{name} by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""

NAMES = {
    "_async": "_sync",
    "aio": "blocking",
    "aclose": "close",
    "anext": "next",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}
WORDS = (
    # The package's own docstring and other talk of the flavours.
    ("The async flavour, written by hand.  The sync one is generated from it.", "The sync flavour."),
    ("async with", "with"),
    ("async for", "for"),
    ("await ", ""),
)


def translate_name(name: str) -> str:
    """The sync counterpart of an identifier."""
    if name in NAMES:
        return NAMES[name]
    name = re.sub(r"AsyncStub$", "Stub", name)
    return re.sub(r"^(_?)(?:Stop)?Async(?=[A-Z])", lambda m: m[1] + ("Stop" if "Stop" in m[0] else ""), name)


def translate_text(text: str) -> str:
    """The sync counterpart of a docstring, string or comment."""
    for old, new in WORDS:
        text = text.replace(old, new)
    return re.sub(r"\b\w+\b", lambda match: translate_name(match[0]), text)


def translate(source: str, name: str) -> str:
    """The sync counterpart of a module, formatted."""
    source = re.sub(r"^ *# async only\n.*?^ *# end of async only\n\n?", "", source, flags=re.DOTALL | re.MULTILINE)
    source = re.sub(r"\bAwaitable\[(\w+)\]", r"\1", source)
    # An async generator can delegate to no other; a sync one can.
    source = re.sub(r"\bfor (\w+) in (.+):\n +yield \1\n", r"yield from \2\n", source)
    lines = source.splitlines(keepends=True)
    output: list[str] = []
    row, column = 1, 0
    drop_space = False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        start_row, start_column = token.start
        # What stands between two tokens (spaces, continued lines) is kept as it is.
        between = ""
        while row < start_row:
            between += lines[row - 1][column:]
            row, column = row + 1, 0
        if row <= len(lines):
            between += lines[row - 1][column:start_column]
        output.append(between.lstrip(" ") if drop_space else between)
        drop_space = False
        row, column = token.end
        if token.type == tokenize.NAME and token.string in {"async", "await"}:
            drop_space = True
        elif token.type == tokenize.NAME:
            output.append(translate_name(token.string))
        elif token.type in {tokenize.STRING, tokenize.COMMENT}:
            output.append(translate_text(token.string))
        elif token.type not in {tokenize.DEDENT, tokenize.ENDMARKER}:
            output.append(token.string)
    return ruff(HEADER.format(name=name) + "".join(output), PACKAGE / "_sync" / name)


def ruff(source: str, path: Path) -> str:
    """``source`` without the imports that it needs no more, sorted and formatted as ruff would have it at ``path``."""
    beside = Path(sys.executable).parent / "ruff"
    program = str(beside) if beside.exists() else "ruff"
    for arguments in (["check", "--quiet", "--select", "I,F401", "--fix"], ["format", "--quiet"]):
        command = [program, *arguments, "--no-cache", "--stdin-filename", str(path), "-"]
        source = subprocess.run(command, input=source, text=True, capture_output=True, check=True, cwd=ROOT).stdout
    return source


def generate() -> dict[Path, str]:
    """Every file of the sync client and its content."""
    return {TARGET / file.name: translate(file.read_text(), file.name) for file in sorted(SOURCE.glob("*.py"))}


def differences() -> list[str]:
    """Names of files in the sync client that are not what would be generated, or should not be there."""
    wanted = generate()
    present = {file: file.read_text() for file in TARGET.glob("*.py")}
    return sorted(file.name for file in wanted.keys() | present.keys() if wanted.get(file) != present.get(file))


def main() -> int:
    """Entry point."""
    if sys.argv[1:] == ["--check"]:
        for name in (changed := differences()):
            print(f"virtd_client/_sync/{name} is not what _async/{name} gives", file=sys.stderr)
        return 1 if changed else 0
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    wanted = generate()
    for file in TARGET.glob("*.py"):
        if file not in wanted:
            file.unlink()
    for file, content in wanted.items():
        file.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
