"""The kit over the fake backend, with everything that it can do."""

from __future__ import annotations

import pytest

from tests.conformance.fake_host import fake_provision
from virtd.backend.conformance.suite import *  # noqa: F403 - the kit is one import
from virtd.backend.conformance.suite import Provision


@pytest.fixture(scope="module")
def provision(tmp_path_factory: pytest.TempPathFactory) -> Provision:
    return fake_provision(tmp_path_factory.mktemp("fake"))
