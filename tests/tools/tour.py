"""Run the commands of a Markdown page against a real daemon, and write what they print into the page.

``python -m tests.tools.tour [PAGE...] [--check]``: pages are README.md and docs/tutorial.md unless named.  With
``--check`` nothing is written; outputs have to match what the page expects (``...`` matches anything).  Blocks of the
kind ``console`` are run in order in one shell, in a home of their own; see tests/tools/console.py.

Commands that only set the scene stand in an HTML comment that begins with ``tour:``, one a line; they are run before
the page's own.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

from tests.tools.console import ANYTHING, Command, Session, commands, matches, rewritten
from tests.tools.playground import ROOT, home

PAGES: Final = ("README.md", "docs/tutorial.md")
_SCENE: Final = re.compile(r"<!-- tour:\n(?P<commands>.*?)-->", re.DOTALL)


def scene(markdown: str) -> list[str]:
    """The commands of the page's ``tour:`` comment."""
    match = _SCENE.search(markdown)
    return [line for line in match["commands"].splitlines() if line.strip()] if match else []


def play(markdown: str) -> dict[Command, str]:
    """Run a page; what each command printed, with this machine's paths made plain.

    :raises AssertionError: a command failed; the message has its line and output.
    """
    outputs: dict[Command, str] = {}
    with home() as (place, environ), Session(ROOT, environ) as session:
        for text in scene(markdown):
            _done(session, text, text, place)
        for command in commands(markdown):
            output = _done(session, command.text, f"line {command.line}: $ {command.text}", place)
            outputs[command] = _plain(output, place)
    return outputs


def _done(session: Session, text: str, shown: str, place: Path) -> str:
    try:
        output, code = session.run(text)
    except TimeoutError as error:
        raise AssertionError(f"{shown}: {error}\n{_log(place)}") from error
    assert code == 0, f"{shown}: exit code {code}\n{output}\n{_log(place)}"
    return output


def differences(outputs: dict[Command, str]) -> list[str]:
    """The commands whose output is not what the page expects, each with both."""
    return [
        f"line {command.line}: $ {command.text}\nexpected:\n{command.expected}\nprinted:\n{output}"
        for command, output in outputs.items()
        if not matches(command.expected, output)
    ]


def write(page: Path) -> None:
    """Run a page and put the outputs into it.  An expectation with ``...`` that holds is kept as it is."""
    markdown = page.read_text()
    outputs = play(markdown)
    kept = {one for one in outputs if ANYTHING in one.expected and matches(one.expected, outputs[one])}
    page.write_text(rewritten(markdown, {one: text for one, text in outputs.items() if one not in kept}))


def _plain(output: str, place: Path) -> str:
    return output.replace(str(place), "~").replace(str(ROOT), "~/virtd").strip("\n")


def _log(place: Path) -> str:
    logs = sorted(place.rglob("virtd.log"))
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in logs)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=PAGES)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    given = parser.parse_args()
    wrong: list[str] = []
    for name in given.pages:
        page = ROOT / name
        if given.check:
            wrong += [f"{name}, {text}" for text in differences(play(page.read_text()))]
        else:
            write(page)
            print(f"{name}: written")
    print("\n\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
