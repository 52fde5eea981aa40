"""The backend passes virtd's conformance kit."""

import pytest
from virtd_sample.backend import SampleBackend

from virtd.backend.conformance.suite import *  # noqa: F403
from virtd.backend.conformance.suite import Provision


@pytest.fixture(scope="module")
def provision() -> Provision:
    return Provision(backend=SampleBackend(), uri="sample:///conformance")
