"""Pin anew what tests, checks and docs need: ``requirements/dev.in`` -> ``requirements/dev.txt``.

The pins are what pip resolves today in an empty environment.  ``requirements/constraints.txt`` is a link to the
result, so that the demo and the tests run with the same versions.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "requirements"
OURS = ("virtd",)


def main() -> int:
    """Entry point."""
    with tempfile.TemporaryDirectory(prefix="virtd-requirements-") as name:
        venv.create(name, with_pip=True)
        pip = [f"{name}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--requirement", str(FOLDER / "dev.in")], check=True)
        frozen = subprocess.run([*pip, "freeze", "--exclude", "pip"], check=True, capture_output=True, text=True).stdout
    lines = [line for line in frozen.splitlines() if not line.startswith(OURS)]
    (FOLDER / "dev.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} pins in requirements/dev.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
