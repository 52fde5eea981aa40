"""The kit over the KVM backend on libvirt's own test driver: the whole of libvirt's API, without a guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from virtd_kvm.backend import KvmBackend

from tests.conformance.libvirt_host import GOLDEN, LibvirtFaults, LibvirtOutside
from virtd.backend.conformance.suite import *  # noqa: F403 - the kit is one import
from virtd.backend.conformance.suite import Provision

URI = "test:///default"


@pytest.fixture(scope="module")
def provision() -> Iterator[Provision]:
    outside = LibvirtOutside(URI, "test")
    yield Provision(
        backend=KvmBackend(),
        uri=URI,
        label="libvirt-test",
        host="libvirt's test driver",
        faults=LibvirtFaults(),
        outside=outside,
        golden_directory=GOLDEN / "libvirt-test",
    )
    outside.close()
