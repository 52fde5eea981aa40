"""Runs the kit as a stranger would: another distribution, another directory, another process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "sample_backend"


@dataclass(frozen=True)
class Run:
    """How a process ended."""

    code: int
    output: str


def install_sample(target: Path) -> None:
    """Build the sample distribution from its sources and install it into a directory of its own."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"),
        *("--no-deps", "--no-build-isolation", "--no-compile", "--target", str(target), str(SAMPLE)),
    ]
    done = subprocess.run(command, cwd=target, text=True, capture_output=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def python(*arguments: str, cwd: Path, path: Path) -> Run:
    """Run Python in a directory with nothing of this repository on its path but what is installed."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "VIRTD_"))},
        "PYTHONPATH": str(path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=100,
    )
    return Run(done.returncode, done.stdout)


def run_pytest(*arguments: str, cwd: Path, path: Path) -> Run:
    """Run pytest without caches and without the plugins that only this project uses."""
    return python("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", *arguments, cwd=cwd, path=path)
