"""Commands that the documentation, the errors and the Makefile name exist, with these options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.tools.console import blocks, commands
from virtd import errors
from virtd.cli.ctl.app import cli as guestctl
from virtd.cli.daemon import cli as virtd

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
)
PROGRAMS: dict[str, click.Command] = {"guestctl": guestctl, "virtd": virtd}


def calls(shell: str) -> Iterator[list[str]]:
    """The calls of our programs in a piece of shell."""
    lexer = shlex.shlex(shell.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not set(token) <= set(";|&()<>"):
            words.append(token)
            continue
        if token.startswith((">", "<")) and words and words[-1].isdigit():
            words.pop()  # the 2 of 2>
        while words and words[0] in {"until", "if", "do", "then", "sudo", "while"}:
            words.pop(0)
        if words and words[0] in PROGRAMS:
            yield words
        words = []


def check(words: list[str], *, whole: bool) -> None:
    """Parse a call without running it.  Not ``whole``: arguments may be left out.

    :raises click.UsageError: there is no such command or option, or a value that is not taken.
    """
    command, rest, context = PROGRAMS[words[0]], words[1:], None
    while isinstance(command, click.Group):
        if not rest:
            return
        context = click.Context(command, info_name=words[0], parent=context)
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"no command {rest[0]!r} in {shlex.join(words)}")
        command, rest = found, rest[1:]
    if whole:
        command.make_context(command.name, list(rest), parent=context)
    else:
        inner = click.Context(command, info_name=command.name, parent=context)
        command.make_parser(inner).parse_args(list(rest))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_blocks(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    shells = [command.text for command in commands(text)]
    shells += ["\n".join(lines[first:last]) for kind, first, last in blocks(text) if kind == "sh"]
    for shell in shells:
        for words in calls(re.sub(r"\s#\s.*|'\"operation\".*", "", shell)):
            check(words, whole=True)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_running_text(path: Path) -> None:
    for shell in re.findall(r"`((?:guestctl|virtd) [^`\n]+)`", path.read_text()):
        for words in calls(shell):
            check(words, whole=False)


@pytest.mark.parametrize("reason", errors.catalogue().values(), ids=lambda reason: reason.name)
def test_commands_that_an_error_recommends(reason: errors.Reason) -> None:
    for shell in re.findall(r"`((?:guestctl|virtd) [^`]+)`", reason.remedy):
        for words in calls(shell):
            check(words, whole=False)


def test_the_check_finds_what_does_not_exist() -> None:
    with pytest.raises(click.UsageError):
        check(["guestctl", "frobnicate"], whole=False)
    with pytest.raises(click.UsageError):
        check(["guestctl", "delete", "a", "--bogus"], whole=False)
    with pytest.raises(click.UsageError):
        check(["guestctl", "delete"], whole=True)
    with pytest.raises(click.UsageError):
        check(["virtd", "serve", "--log-level", "loud"], whole=True)


def test_calls_are_found_in_shell() -> None:
    text = (
        "until guestctl version > /dev/null 2>&1; do sleep 1; done\n"
        "sudo virtd serve 2> log & echo $(guestctl get hosts) | cat"
    )
    assert list(calls(text)) == [["guestctl", "version"], ["virtd", "serve"], ["guestctl", "get", "hosts"]]


# --------------------------------------------------------------------------------------- Makefile


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", [*PAGES, ROOT / ".ci/run"], ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"(?:^|`|\bstage \w+ )make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets(), target


def test_every_make_target_is_phony_and_has_a_word() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(phony.split()) == targets()


def test_every_test_belongs_to_a_tier() -> None:
    from tests.tools import suite

    every = {path.relative_to(ROOT).parts[1] for path in (ROOT / "tests").rglob("test_*.py")}
    for folders in suite.FOLDERS.values():
        for folder in folders:
            assert folder.startswith("tests/")
    ignored = {f for folders in suite.FOLDERS.values() for f in folders}
    unit = suite.tier("unit", []).command
    for name in every:
        in_unit = f"--ignore=tests/{name}" not in unit
        assert in_unit != (f"tests/{name}" in ignored)
