"""Run the checks and the tiers of tests, one after the other, and say how each ended.

``python -m tests.tools.suite [STEP...] [--pytest=ARGUMENTS]``: without steps, all of them.  Steps are the static
checks (``static``, or one of them by name) and the tiers ``unit``, ``rpc``, ``docs``, ``conformance`` and ``qemu``.
The tier ``lab`` runs only when it is named.
Every step runs even when an earlier one failed; the exit code is 1 if any failed.  A tier in which no test ran
has failed.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent
NO_TESTS: Final = 5
"""pytest's exit code when no test ran."""

FOLDERS: Final = {
    "rpc": ("tests/rpc", "tests/faults", "tests/e2e"),
    "docs": ("tests/docs", "tests/packaging"),
    "conformance": ("tests/conformance",),
    "lab": ("tests/lab",),
}
"""Tiers by folder.  The tier ``unit`` has every other one, so that no test belongs to none."""

TIERS: Final = ("unit", "rpc", "docs", "conformance", "qemu")
ON_REQUEST: Final = ("lab",)


@dataclass(frozen=True)
class Step:
    """One command, run in the root of the repository."""

    name: str
    command: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a step ended; ``closing`` is the last line that it printed."""

    step: Step
    code: int
    seconds: float
    closing: str


def static() -> list[Step]:
    """The static checks."""
    python = sys.executable
    steps = [
        Step("ruff", (str(BIN / "ruff"), "check", "."), "static"),
        Step("format", (str(BIN / "ruff"), "format", "--check", "."), "static"),
        Step("mypy", (python, "-m", "mypy"), "static"),
        Step("imports", (str(BIN / "lint-imports"),), "static"),
        Step("buf-lint", (python, "-m", "tests.tools.proto", "lint"), "static"),
        Step("buf-breaking", (python, "-m", "tests.tools.proto", "breaking"), "static"),
        Step("generated", (python, "-m", "tests.tools.suite", "--compare-generated"), "static"),
    ]
    steps.append(Step("shellcheck", ("shellcheck", ".ci/setup", ".ci/run"), "static"))
    return steps


def tier(name: str, more: list[str]) -> Step:
    """The pytest run of one tier."""
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5"]
    if name == "qemu":
        command[1:1] = ["-m", "tests.tools.reaper", sys.executable]
        # A guest that boots keeps one core busy, and tests wait more than they work: two at a time.
        command += ["-m", "qemu", "-n", "2", "--dist", "loadfile", "tests"]
    elif name == "lab":
        # A host keeps one core busy; which hosts a file needs decides how many run.
        command += ["-m", "lab", "-n", "2", "--dist", "loadfile", *FOLDERS[name]]
    else:
        command += ["-m", "not qemu and not lab", "-n", "auto", "--dist", "loadfile"]
        if name == "unit":
            others = [folder for folders in FOLDERS.values() for folder in folders]
            command += ["tests", *(f"--ignore={folder}" for folder in others)]
        else:
            command += [folder for folder in FOLDERS[name] if (ROOT / folder).is_dir()]
    return Step(name, (*command, *more), "test")


def run(step: Step) -> Outcome:
    """Run one step; its output passes through."""
    print(f"\n--- {step.name}: {shlex.join(step.command)}", flush=True)
    started = time.monotonic()
    closing = ""
    # protoc looks for its plugins on PATH.
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    with subprocess.Popen(
        step.command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environ,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            closing = line.strip() or closing
    code = process.returncode
    if code == NO_TESTS and step.group == "test":
        closing = "no test ran"
    return Outcome(step, code, time.monotonic() - started, closing)


def compare_generated() -> int:
    """Whether ``virtd/v1`` is what ``proto/`` generates; prints the files that differ."""
    from tests.tools.proto import generate

    with tempfile.TemporaryDirectory(prefix="virtd-generated-") as name:
        generate(Path(name))
        fresh, kept = Path(name) / "virtd/v1", ROOT / "virtd/v1"
        names = {
            str(path.relative_to(folder))
            for folder in (fresh, kept)
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        _, different, missing = filecmp.cmpfiles(fresh, kept, sorted(names), shallow=False)
    for path in [*different, *missing]:
        print(f"virtd/v1/{path}: not what proto/ generates; run `make generate`")
    if not different and not missing:
        print(f"{len(names)} generated files are up to date")
    return int(bool(different or missing))


def chosen(names: list[str], more: list[str]) -> list[Step]:
    """The steps of these names, in the usual order."""
    every = [*static(), *(tier(name, more) for name in TIERS)]
    every += [tier(name, more) for name in ON_REQUEST if name in names]
    known = {step.name for step in every} | {"static", *ON_REQUEST}
    unknown = sorted(set(names) - known)
    if unknown:
        raise SystemExit(f"no such step: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [step for step in every if not names or step.name in names or step.group in names]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help="what to run; nothing: everything")
    parser.add_argument(
        "--pytest",
        default=os.environ.get("SUITE_PYTEST_ARGUMENTS", ""),
        metavar="ARGUMENTS",
        help="more for pytest, as one text; also $SUITE_PYTEST_ARGUMENTS",
    )
    parser.add_argument("--compare-generated", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.compare_generated:
        return compare_generated()
    started = time.monotonic()
    outcomes = [run(step) for step in chosen(given.steps, shlex.split(given.pytest))]
    print(f"\n--- summary, {time.monotonic() - started:.0f} s")
    for outcome in outcomes:
        word = "FAILED" if outcome.code else "ok"
        print(f"{outcome.step.name:14} {word:6} {outcome.seconds:6.1f} s  {outcome.closing or '(printed nothing)'}")
    return int(any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
