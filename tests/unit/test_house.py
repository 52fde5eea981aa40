"""The house is kept in order."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES_MAX = 500
REASON = "Longer than 500 lines because"


def files(*patterns: str) -> list[Path]:
    """Files of the repository; all below the root where there is no git."""
    done = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    skipped = {".venv", "build", "dist", ".git"}
    return [path for path in ROOT.rglob("*.py") if not skipped & set(path.relative_to(ROOT).parts)]


def test_modules_are_short_or_say_why_not() -> None:
    sources = [path for path in files("*.py") if "virtd/v1/" not in str(path)]
    assert len(sources) > 100
    too_long = {}
    for path in sources:
        text = path.read_text()
        count = text.count("\n")
        if count > LINES_MAX and REASON not in text:
            too_long[str(path.relative_to(ROOT))] = count
    assert not too_long, f"split them, or write '{REASON} ...' into their docstrings"
