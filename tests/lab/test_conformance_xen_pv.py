"""The kit over the Xen backend on a real Xen host, with PV guests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.hosts import LabHost
from tests.lab.xen_provision import xen_provision
from virtd.backend.conformance.suite import *  # noqa: F403 - the kit is one import
from virtd.backend.conformance.suite import Provision

pytestmark = [pytest.mark.lab, pytest.mark.conformance_brief, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def provision(lab_xen: LabHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provision]:
    directory = tmp_path_factory.mktemp("xen-pv")
    with xen_provision(lab_xen, "xenpv", "xen-pv", directory) as made:
        yield made
