"""A backend without a hypervisor: every facet, the same every time, and failures on request.

Open it as a host with the URI ``fake:///`` (see :mod:`virtd.testing.fake.options`).  A test that
wants to look behind the API, to break something or to act from outside takes the world::

    from virtd.testing.fake import WORLDS

    world = WORLDS.get("fake:///lab")
    world.faults.fail("guest_create", 1)
    world.native.kill_guest(uuid)
"""

from virtd.testing.fake.backend import FakeBackend
from virtd.testing.fake.faults import Faults, Hang
from virtd.testing.fake.native import NativeFailure, NativeHypervisor
from virtd.testing.fake.options import FakeOptions
from virtd.testing.fake.world import WORLDS, FakeWorld, Worlds

__all__ = [
    "WORLDS",
    "FakeBackend",
    "FakeOptions",
    "FakeWorld",
    "Faults",
    "Hang",
    "NativeFailure",
    "NativeHypervisor",
    "Worlds",
]
