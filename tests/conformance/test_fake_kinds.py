"""The kit over a fake host whose guests are of two kinds: each kind keeps what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.conformance.fake_host import fake_provision
from virtd.backend.conformance.provision import GuestMaker
from virtd.backend.conformance.suite import *  # noqa: F403 - the kit is one import
from virtd.backend.conformance.suite import Provision


def _of(machine: str, make: GuestMaker | None) -> GuestMaker:
    assert make is not None
    return lambda name, uuid: replace(make(name, uuid), machine=machine)


@pytest.fixture(scope="module", params=["fake-1", "fake-2"])
def provision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Provision:
    machine = request.param
    uri = "fake:///kinds?second_without=guest.suspend,guest.screenshot"
    made = fake_provision(tmp_path_factory.mktemp(machine), uri, label=machine, golden=False)
    bootable = made.bootable
    assert bootable is not None
    forms = {name: _of(machine, getattr(bootable, name)) for name in ("guest", "disk_guest", "uefi_guest")}
    return replace(made, machine=machine, guest=_of(machine, made.guest), bootable=replace(bootable, **forms))
