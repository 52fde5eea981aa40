"""The kit over a fake host whose snapshots, reboots, resets and pictures are virtd's own doing."""

from __future__ import annotations

import pytest

from tests.conformance.fake_host import fake_provision
from virtd.backend.conformance.suite import *  # noqa: F403 - the kit is one import
from virtd.backend.conformance.suite import Provision

EMULATE = "guest.snapshot,guest.reboot,guest.reset,guest.screenshot"


@pytest.fixture(scope="module")
def provision(tmp_path_factory: pytest.TempPathFactory) -> Provision:
    uri = f"fake:///by-virtd?emulate={EMULATE}"
    return fake_provision(tmp_path_factory.mktemp("by-virtd"), uri, label="fake-by-virtd", golden=False)
