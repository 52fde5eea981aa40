"""The lab's hosts as fixtures; every test here belongs to the tier ``lab``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.hosts import Lab, LabHost, private_lab

# Starting a host takes seconds from its saved state, and minutes where there is none yet.
_TIMEOUT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them, so that ``-m lab`` finds them."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The hosts of this process (each worker of pytest-xdist has its own); they end with it."""
    with private_lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def lab_kvm1(lab: Lab) -> LabHost:
    """The first nested KVM host."""
    return lab.host("kvm1")


@pytest.fixture(scope="session")
def lab_kvm2(lab: Lab) -> LabHost:
    """The second nested KVM host; 10.9.0.1 and 10.9.0.2 are the link between the two."""
    return lab.host("kvm2")


@pytest.fixture(scope="session")
def lab_xen(lab: Lab) -> LabHost:
    """The Xen host."""
    return lab.host("xen")


@pytest.fixture(scope="session")
def lab_xen2(lab: Lab) -> LabHost:
    """The second Xen host; 10.9.0.3 and 10.9.0.4 are the link between the two."""
    return lab.host("xen2")
