"""``python -m tests.guests``: builds the demo guest, or finds it, and prints its paths as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from tests.guests.demo import build_demo
from tests.guests.tools import GuestBuildError


def main() -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.guests", description=__doc__)
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="ask the package lists again, and build if they offer a newer kernel",
    )
    options = parser.parse_args()
    try:
        guest = build_demo(refresh=options.refresh)
    except GuestBuildError as error:
        sys.stderr.write(f"demo guest: {error}\n")
        return 1
    paths = {name: str(path) for name, path in dataclasses.asdict(guest).items()}
    sys.stdout.write(json.dumps(paths, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
