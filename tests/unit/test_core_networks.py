"""Networks of the fake host: what is refused, what is made, and what is undone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support.daemons import HOST, Lab, call, running_lab, short_directory
from virtd.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from virtd.model.guest import GuestState, InterfaceKind, InterfaceSpec
from virtd.model.network import DhcpRange, DhcpReservation, NetworkMode, NetworkSpec
from virtd.model.operation import OperationState
from virtd.service.network_rules import check_spec, with_defaults
from virtd.service.validate import Violations
from virtd.testing.fake.networks import NO_BRIDGE

MAC = "52:54:00:0a:0b:0c"
NAT = NetworkSpec(NetworkMode.NAT, "10.1.0.0/24")


def wrong(spec: NetworkSpec) -> dict[str, str]:
    found = Violations()
    check_spec(spec, found)
    return {violation.field.removeprefix("network."): violation.description for violation in found.found}


def nat(**changes: Any) -> NetworkSpec:
    return replace(NAT, **changes)


def keeping(*entries: tuple[str, str]) -> NetworkSpec:
    return nat(reservations=tuple(DhcpReservation(mac, address) for mac, address in entries))


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (nat(cidr=""), "cidr", "required"),
        (nat(cidr="10.1.0.0"), "cidr", "not a range"),
        (nat(cidr="ten"), "cidr", "not a range"),
        (nat(cidr="10.1.0.7/24"), "cidr", "bits after the prefix"),
        (nat(cidr="10.1.0.0/31"), "cidr", "prefix of 16 to 30"),
        (nat(cidr="10.0.0.0/8"), "cidr", "prefix of 16 to 30"),
        (nat(cidr="127.0.0.0/24"), "cidr", "cannot be"),
        (nat(cidr="224.1.0.0/24"), "cidr", "cannot be"),
        (nat(cidr="2001:db8::/64"), "cidr", "IPv4"),
        (nat(bridge="a/b"), "bridge", "not the name"),
        (nat(domain="a b"), "domain", "not a domain"),
        (nat(dhcp_range=DhcpRange("10.1.0.9", "10.1.0.8")), "dhcp_range.end", "before"),
        (nat(dhcp_range=DhcpRange("10.2.0.9", "10.1.0.8")), "dhcp_range.start", "outside"),
        (nat(dhcp_range=DhcpRange("10.1.0.1", "10.1.0.8")), "dhcp_range.start", "host's own"),
        (nat(dhcp_range=DhcpRange("10.1.0.2", "10.1.0.255")), "dhcp_range.end", "not an address"),
        (nat(dhcp_range=DhcpRange("10.1.0.2", "x")), "dhcp_range.end", "not an IPv4"),
        (nat(dhcp=False, dhcp_range=DhcpRange("10.1.0.2", "10.1.0.9")), "dhcp_range", "needs dhcp"),
        (replace(keeping((MAC, "10.1.0.9")), dhcp=False), "reservations", "need dhcp"),
        (keeping(("xx", "10.1.0.9")), "reservations[0].mac", "not a MAC"),
        (keeping((MAC, "10.1.0.9"), (MAC.upper(), "10.1.0.10")), "reservations[1].mac", "twice"),
        (keeping((MAC, "10.1.0.9"), (MAC[:-1] + "d", "10.1.0.9")), "reservations[1].address", "twice"),
        (keeping((MAC, "10.9.0.9")), "reservations[0].address", "outside"),
        (nat(reservations=(DhcpReservation(MAC, "10.1.0.9", "a.b"),)), "reservations[0].hostname", "host name"),
        (NetworkSpec(NetworkMode.BRIDGE), "bridge", "required"),
        (NetworkSpec(NetworkMode.BRIDGE, bridge="br 0"), "bridge", "not the name"),
        (NetworkSpec(NetworkMode.BRIDGE, bridge="a" * 16), "bridge", "not the name"),
        (NetworkSpec(NetworkMode.BRIDGE, "10.1.0.0/24", bridge="br0"), "cidr", "must be empty"),
        (NetworkSpec(NetworkMode.BRIDGE, bridge="br0", dhcp=True), "dhcp", "must be empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(spec: NetworkSpec, field: str, words: str) -> None:
    found = wrong(spec)
    assert list(found) == [field]
    assert words in found[field]


def test_the_defaults_leave_nothing_to_choose() -> None:
    made = with_defaults(keeping((MAC.upper(), "10.1.0.9")))
    assert (made.dhcp, made.dhcp_range) == (True, DhcpRange("10.1.0.2", "10.1.0.254"))
    assert made.reservations[0].mac == MAC
    assert with_defaults(nat(dhcp=False)).dhcp_range is None
    small = with_defaults(nat(cidr="10.1.0.4/30"))
    assert small.dhcp_range == DhcpRange("10.1.0.6", "10.1.0.6")
    assert wrong(NetworkSpec(NetworkMode.BRIDGE, bridge="br0")) == {}


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


async def create(lab: Lab, name: str, spec: NetworkSpec = NAT) -> Any:
    return await lab.services.networks.create(call(), HOST, name, spec)


async def names(lab: Lab) -> list[str]:
    return [network.name.rpartition("/")[2] for network in (await lab.services.networks.list(HOST, 0, "")).items]


async def test_a_network_from_its_making_to_its_end(lab: Lab) -> None:
    networks = lab.services.networks
    plan = await networks.create(call(validate_only=True), HOST, "lan", NAT)
    assert isinstance(plan, str)
    assert "lan" in plan
    assert await names(lab) == ["default", "isolated"], "only looking makes nothing"
    await lab.done(await create(lab, "lan", nat(autostart=True, domain="lab.example")))
    made = await networks.get(HOST, "lan")
    assert (made.active, made.autostart, made.mode, made.domain) == (True, True, "nat", "lab.example")
    assert made.bridge.startswith("virtd")
    assert len(made.bridge) <= 15

    interface = InterfaceSpec("net0", InterfaceKind.NETWORK, "lan", MAC)
    await lab.created("a", start=True, interfaces=(interface,))
    await lab.until(lambda: lab.world.native.guests[lab.guest("a").uid].booted)
    (lease,) = (await networks.leases(HOST, "lan", 0, "")).items
    assert (lease.mac, lease.address, lease.guest) == (MAC, "10.1.0.2", "hosts/lab/guests/a")
    assert (await networks.get(HOST, "lan")).used_by == ("hosts/lab/guests/a",)
    for refused in (networks.stop, networks.delete):
        with pytest.raises(FailedPreconditionError) as caught:
            await refused(call(), HOST, "lan")
        assert caught.value.reason.name == "NETWORK_IN_USE"
        assert caught.value.record.metadata["used_by"] == "hosts/lab/guests/a"

    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    await lab.until(lambda: lab.state("a") is GuestState.STOPPED)
    await lab.done(await networks.stop(call(), HOST, "lan"))
    assert (await networks.get(HOST, "lan")).active is False
    assert (await networks.leases(HOST, "lan", 0, "")).items == ()
    with pytest.raises(FailedPreconditionError):
        await networks.delete(call(), HOST, "lan")  # the guest that is down wants it back
    await lab.done(await networks.start(call(), HOST, "lan"))
    await lab.done(await networks.start(call(), HOST, "lan"))
    await lab.done(await lab.services.guests.delete(call(), lab.name("a"), force=False, keep_disks=False, etag=""))
    await lab.done(await networks.delete(call(), HOST, "lan"))
    assert await names(lab) == ["default", "isolated"]


async def test_reservations_and_autostart_are_changed_in_place(lab: Lab) -> None:
    networks = lab.services.networks
    await lab.done(await create(lab, "lan", keeping((MAC, "10.1.0.9"))))
    other = DhcpReservation("52:54:00:00:00:01", "10.1.0.10", "b")
    await lab.done(await networks.update(call(), HOST, "lan", None, [other], [MAC.upper()]))
    made = await networks.get(HOST, "lan")
    assert (made.reservations, made.autostart) == ((other,), False)
    await lab.done(await networks.update(call(), HOST, "lan", True, [], []))
    assert (await networks.get(HOST, "lan")).autostart is True


@pytest.mark.parametrize(
    ("entries", "remove", "field"),
    [
        ([("52:54:00:00:00:01", "10.1.0.9")], [], "set_reservations[0].address"),
        ([("52:54:00:00:00:01", "10.7.0.9")], [], "set_reservations[0].address"),
        ([("zz", "10.1.0.19")], [], "set_reservations[0].mac"),
        ([(MAC, "10.1.0.19")], [MAC], "set_reservations[0].mac"),
        ([], ["zz"], "remove_reservations[0]"),
        ([], [], "autostart"),
    ],
)
async def test_updates_that_are_wrong(lab: Lab, entries: list[tuple[str, str]], remove: list[str], field: str) -> None:
    await lab.done(await create(lab, "lan", keeping((MAC, "10.1.0.9"))))
    before = await lab.services.networks.get(HOST, "lan")
    reservations = [DhcpReservation(mac, address) for mac, address in entries]
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.services.networks.update(call(), HOST, "lan", None, reservations, remove)
    assert [violation.field for violation in caught.value.record.violations] == [field]
    assert await lab.services.networks.get(HOST, "lan") == before


@pytest.mark.parametrize(
    ("cidr", "owner"),
    [
        ("192.0.2.0/25", "hosts/lab/networks/default"),
        ("198.51.0.0/16", "hosts/lab/networks/isolated"),
        ("203.0.113.128/25", "host is connected"),
    ],
)
async def test_a_range_that_is_taken(lab: Lab, cidr: str, owner: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await create(lab, "lan", nat(cidr=cidr))
    assert caught.value.reason.name == "NETWORK_OVERLAPS"
    assert owner in caught.value.message
    assert await names(lab) == ["default", "isolated"]


async def test_of_two_that_want_one_range_at_once_one_gets_it(lab: Lab) -> None:
    hang = lab.world.faults.hang("network_write")
    one = await create(lab, "one")
    await lab.until(lambda: hang.entered > 0)
    two = await create(lab, "two", nat(cidr="10.1.0.128/25"))
    hang.release()
    await lab.done(one)
    await lab.failed(two, "NETWORK_OVERLAPS")
    assert "two" not in await names(lab)


async def test_names_that_are_taken_or_not_there(lab: Lab) -> None:
    networks = lab.services.networks
    with pytest.raises(AlreadyExistsError) as caught:
        await create(lab, "default")
    assert caught.value.reason.name == "NETWORK_EXISTS"
    for bad in ("Upper", "a" * 51, "a/b", ""):
        with pytest.raises(InvalidArgumentError):
            await create(lab, bad)
    for verb in (networks.start, networks.stop, networks.delete):
        with pytest.raises(NotFoundError) as missing:
            await verb(call(), HOST, "nothing")
        assert missing.value.reason.name == "NETWORK_NOT_FOUND"
    with pytest.raises(NotFoundError):
        await networks.leases(HOST, "nothing", 0, "")


async def test_a_network_that_cannot_be_started_is_not_left_behind(lab: Lab) -> None:
    await lab.failed(await create(lab, "lan", NetworkSpec(NetworkMode.BRIDGE, bridge=NO_BRIDGE)), "NETWORK_REFUSED")
    assert await names(lab) == ["default", "isolated"]


async def test_a_network_whose_making_is_cancelled_is_not_left_behind(lab: Lab) -> None:
    hang = lab.world.faults.hang("network_write")
    operation = await create(lab, "lan")
    await lab.until(lambda: hang.entered > 0)
    await lab.core.engine.cancel(operation.name)
    hang.release()
    assert (await lab.end(operation)).state is OperationState.CANCELLED
    assert await names(lab) == ["default", "isolated"]


async def test_a_host_that_cannot_or_does_not_answer(lab: Lab) -> None:
    lab.world.disconnect()
    await lab.until(lambda: lab.link.host.state == "UNREACHABLE")
    with pytest.raises(UnavailableError):
        await create(lab, "lan")
    with short_directory() as place:
        async with running_lab(place, "without=host.networks.change") as other:
            for act in (create(other, "lan"), other.services.networks.delete(call(), HOST, "default")):
                with pytest.raises(UnsupportedError) as caught:
                    await act
                assert caught.value.record.metadata["capability"] == "host.networks.change"
            assert await names(other) == ["default", "isolated"], "listing needs less"
