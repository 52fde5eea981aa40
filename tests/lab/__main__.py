"""Build, start, show and end the lab: ``python -m tests.lab build|up|status|down [HOST...]``."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.guests import GuestBuildError, build_demo
from tests.lab import saved
from tests.lab.image import build
from tests.lab.machine import Machine
from tests.lab.playground import Playground
from tests.lab.qmp import QmpError
from tests.lab.registry import HOSTS
from tests.lab.ssh import LabError


def build_all(names: list[str], *, refresh: bool = False) -> None:
    """Build the images of these hosts, then boot and save the hosts; two at a time."""
    build_demo()  # goes onto some of them, and has a lock of its own
    kinds = {HOSTS[name].kind.name: HOSTS[name].kind for name in names}
    with ThreadPoolExecutor(2) as pool:
        images = dict(zip(kinds, pool.map(lambda kind: build(kind, refresh=refresh), kinds.values()), strict=True))
        with tempfile.TemporaryDirectory(prefix="virtd-lab-build-") as name:
            place = Path(name)
            machines = [Machine(HOSTS[name], images[HOSTS[name].kind.name], place / name, place) for name in names]
            list(pool.map(saved.save, [machine for machine in machines if not saved.folder(machine).is_dir()]))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("build", "up", "status", "down"))
    parser.add_argument("hosts", nargs="*", metavar="HOST", help=f"{', '.join(HOSTS)}; none: all of them")
    parser.add_argument("--refresh", action="store_true", help="build: also where the cache has an image")
    given = parser.parse_args()
    if unknown := [name for name in given.hosts if name not in HOSTS]:
        parser.error(f"no such host: {', '.join(unknown)}; there are {', '.join(HOSTS)}")
    # So that what was started is also ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = given.hosts or list(HOSTS)
    playground = Playground()
    try:
        match given.action:
            case "build":
                build_all(names, refresh=given.refresh)
            case "up":
                playground.up(names)
                print(playground.status())
            case "down":
                ended = playground.down(names)
                print(f"ended: {', '.join(ended) or 'nothing was running'}")
            case "status":
                print(playground.status())
    except (LabError, GuestBuildError, QmpError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
