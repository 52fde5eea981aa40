"""The kit over fake hosts that lack abilities: what is not declared is refused."""

from __future__ import annotations

import pytest

from tests.conformance.fake_host import fake_provision
from virtd.backend.capabilities import LIFECYCLE, SUMMARIES
from virtd.backend.conformance.suite import *  # noqa: F403 - the kit is one import
from virtd.backend.conformance.suite import Provision

WITHOUT = {
    "bare": ",".join(id_ for id_ in SUMMARIES if id_ != LIFECYCLE),
    # One of each pair that shares a facet, so that the method itself must refuse.
    "partial": "guest.snapshot.memory,guest.snapshot.revert,host.volumes,guest.pause,guest.agent.exec,guest.boot.disk",
    "other": "host.events,guest.suspend,guest.console.serial,guest.firmware.uefi,host.acceleration,guest.metrics",
}


@pytest.fixture(scope="module", params=tuple(WITHOUT))
def provision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Provision:
    uri = f"fake:///{request.param}?without={WITHOUT[request.param]}"
    return fake_provision(tmp_path_factory.mktemp(request.param), uri, label=f"fake-{request.param}", golden=False)
