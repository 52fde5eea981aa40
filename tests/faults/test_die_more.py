"""As test_die_everywhere, for the other verbs: a module of its own, so that the two run side by side."""

from __future__ import annotations

import pytest

from tests.faults.dying import EMULATED
from tests.faults.test_die_everywhere import dies_and_is_taken_over

OTHERS = ("stop", "shutdown", "suspend", "reboot", "revert", "volume")
# "Before" a place is nearly the same as "after" the one before it, so the others can do without it.
CASES = [(verb, where) for verb in OTHERS for where in ("after-call", "after-commit")]
# They are many small calls, and a death between two of them is what they must stand.
CASES += [(verb, "after-call") for verb in EMULATED]
# An import calls no hypervisor; a seed is made between the request and the first commit.
CASES += [("seeded", "after-commit"), ("network", "after-call"), ("image", "after-commit")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("verb", "where"), CASES)
async def test_it_dies_everywhere(verb: str, where: str) -> None:
    await dies_and_is_taken_over(verb, where)
