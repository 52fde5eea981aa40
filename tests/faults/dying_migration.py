"""As ``dying.py``, for a migration between two fake hosts: ``python -m tests.faults.dying_migration BASE HOW WHERE``.

HOW is ``live`` or ``offline``.  Both hypervisors keep what they have in files, so that they outlive the daemon.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from pathlib import Path
from typing import Final

from tests.faults.dying import DIED, URI, Fate, install
from tests.support.daemons import Lab, blank, call, running_lab
from virtd.model.migration import MigrationRequest
from virtd.model.operation import Operation

OTHER: Final = "fake:///dying-other?persist=1"
MOST: Final = 120
REQUEST: Final = MigrationRequest("other", copy_storage=True)


async def begin(lab: Lab) -> Operation:
    """Ask for it.  The guest is ``a``."""
    answer = await lab.services.migrations.migrate(call(request_id="dying-migrate"), lab.name("a"), REQUEST)
    assert isinstance(answer, Operation)
    return answer


async def main(place: Path, how: str, where: str, number: int) -> None:
    """One daemon's life."""
    fate = Fate(where, number)
    install(fate)
    async with running_lab(place, uri=URI, hosts={"other": OTHER}, metrics={"interval_s": 3600.0}) as lab:
        await lab.core.links["other"].facts(20.0)
        await lab.created("a", blank(), start=how == "live")
        await asyncio.sleep(0.02)
        fate.armed = True
        await lab.end(await begin(lab))
        os._exit(0)  # nobody is interested in a good end


def fork(place: Path, how: str, where: str, number: int) -> int:
    """Run one; its process."""
    place.mkdir()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        asyncio.run(main(place, how, where, number))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_all(base: Path, how: str, where: str) -> None:
    """Run daemons, two at a time, until one does not die."""
    for first in range(1, MOST, 2):
        numbers = (first, first + 1)
        pids = [fork(base / str(number), how, where, number) for number in numbers]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert set(codes) <= {0, DIED}, codes
        if codes[0] == 0 and codes[1] == 0:
            return
    raise AssertionError("it does not end")


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
