"""Networks of a host: made, used by a real guest, changed, and deleted when nobody uses them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import Virtd
from tests.guests import CMDLINE
from tests.qemu.fixtures import private_libvirt
from virtd.libvirt.private import PrivateLibvirt
from virtd.v1.guest_pb2 import INTERFACE_KIND_BRIDGE, INTERFACE_KIND_NETWORK, Guest, InterfaceSpec
from virtd.v1.network_pb2 import (
    NETWORK_MODE_BRIDGE,
    NETWORK_MODE_ISOLATED,
    NETWORK_MODE_NAT,
    DhcpRange,
    DhcpReservation,
    NetworkSpec,
)

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

MAC = "52:54:00:0a:0b:0c"


@pytest.fixture(scope="module")
def libvirt_host() -> Iterator[PrivateLibvirt]:
    """A libvirt with networks of its own: what a test makes cannot meet those of the machine."""
    with private_libvirt(network_namespace=True) as daemon:
        yield daemon


@pytest.fixture
def client(virtd: Virtd) -> Iterator[Client]:
    client = virtd.client()
    yield client
    for network in client.networks.list("hosts/kvm"):
        for guest in network.used_by:
            client.guests.delete(guest, force=True).result(timeout_s=60)
        client.networks.delete(network.name).result(timeout_s=30)


def nat() -> NetworkSpec:
    return NetworkSpec(
        mode=NETWORK_MODE_NAT,
        cidr="10.77.1.0/24",
        dhcp_range=DhcpRange(start="10.77.1.100", end="10.77.1.150"),
        domain="lab.example",
        reservations=[DhcpReservation(mac=MAC, address="10.77.1.42", hostname="lodger")],
    )


def on(virtd: Virtd, network: str, *networks: str) -> Guest:
    guest = virtd.spec(disk=False)
    guest.spec.direct_kernel_boot.command_line = CMDLINE
    del guest.spec.interfaces[:]
    for index, name in enumerate((network, *networks)):
        interface = InterfaceSpec(name=f"net{index}", kind=INTERFACE_KIND_NETWORK, network=name)
        if index == 0:
            interface.mac = MAC
        guest.spec.interfaces.append(interface)
    return guest


def inside(virtd: Virtd, *command: str) -> str:
    """What a command says in the network namespace of the test's libvirt."""
    into = ["nsenter", "--target", str(virtd.libvirt.pid), "--net", "--"]
    return subprocess.run([*into, *command], check=True, capture_output=True, text=True).stdout


def test_a_guest_gets_addresses_on_a_nat_and_an_isolated_network(virtd: Virtd, client: Client) -> None:
    made = client.networks.create("hosts/kvm", "outward", nat()).result(timeout_s=30)
    assert (made.name, made.mode, made.active) == ("hosts/kvm/networks/outward", "nat", True)
    assert (list(made.cidrs), made.domain, made.autostart) == (["10.77.1.0/24"], "lab.example", False)
    spec = NetworkSpec(mode=NETWORK_MODE_ISOLATED, cidr="10.77.2.0/24", autostart=True)
    alone = client.networks.create("hosts/kvm", "alone", spec).result(timeout_s=30)
    assert (alone.mode, alone.autostart, alone.dhcp_ranges[0].start) == ("isolated", True, "10.77.2.2")
    assert "<forward" not in virtd.virsh("net-dumpxml", "alone")
    assert client.networks.leases(made.name) == ()

    wanted = on(virtd, "outward", "alone")
    # The third one is connected to the bridge device itself, as to one that an administrator has made.
    wanted.spec.interfaces.add(name="net2", kind=INTERFACE_KIND_BRIDGE, network=alone.bridge)
    guest = client.guests.create("hosts/kvm", "lodger", wanted, start=True).result(timeout_s=90)
    assert "<source bridge=" in virtd.virsh("dumpxml", "lodger")
    deadline = time.monotonic() + 60
    while not (first := client.networks.leases(made.name)) or len(second := client.networks.leases(alone.name)) < 2:
        assert time.monotonic() < deadline, "no lease"
        time.sleep(0.5)
    assert [(lease.mac, lease.address, lease.guest, lease.prefix_length) for lease in first] == [
        (MAC, "10.77.1.42", guest.name, 24)
    ]
    assert {lease.guest for lease in second} == {guest.name}
    assert second[0].expire_time.seconds > time.time()
    client.guests.wait(guest.name, condition="network-ready", timeout_s=30)
    while {a.address for a in client.guests.get(guest.name).status.addresses} < {first[0].address, second[0].address}:
        assert time.monotonic() < deadline, client.guests.get(guest.name).status
        time.sleep(0.5)

    for refused in (client.networks.delete, client.networks.stop):
        with pytest.raises(errors.FailedPrecondition) as error:
            refused(alone.name)
        assert error.value.reason == "NETWORK_IN_USE"
        assert guest.name in error.value.message
    assert list(client.networks.get(alone.name).used_by) == [guest.name]

    changed = client.networks.update(
        alone.name, autostart=False, reservations={"52:54:00:00:00:99": "10.77.2.9"}
    ).result(timeout_s=30)
    assert (changed.autostart, changed.reservations[0].address) == (False, "10.77.2.9")
    assert "10.77.2.9" in virtd.virsh("net-dumpxml", "alone"), "the running network does not know it"
    gone = client.networks.update(alone.name, remove_reservations=["52:54:00:00:00:99"]).result(timeout_s=30)
    assert not gone.reservations

    client.guests.delete(guest.name, force=True).result(timeout_s=60)
    stopped = client.networks.stop(made.name).result(timeout_s=30)
    assert stopped.active is False
    with pytest.raises(errors.InvalidArgument) as inactive:
        client.guests.create("hosts/kvm", "early", on(virtd, "outward"))
    assert inactive.value.reason == "FIELD_UNSUPPORTED"
    assert client.networks.start(made.name).result(timeout_s=30).active is True
    for name in (made.name, alone.name):
        client.networks.delete(name).result(timeout_s=30)
    assert "outward" not in virtd.virsh("net-list", "--all", "--name").split()
    assert client.networks.list("hosts/kvm") == ()


def test_a_network_that_the_host_refuses_is_not_left_behind(virtd: Virtd, client: Client) -> None:
    first = client.networks.create("hosts/kvm", "first", nat()).result(timeout_s=30)
    # Behind virtd's back, and not in libvirt's books either: a device has an address of the range.
    inside(virtd, "ip", "link", "add", "taken0", "type", "bridge")
    inside(virtd, "ip", "addr", "add", "10.88.0.1/24", "dev", "taken0")
    inside(virtd, "ip", "link", "set", "taken0", "up")
    spec = NetworkSpec(mode=NETWORK_MODE_NAT, cidr="10.88.0.0/24")
    with pytest.raises(errors.FailedPrecondition) as refused:
        client.networks.create("hosts/kvm", "second", spec).result(timeout_s=30)
    assert refused.value.reason == "NETWORK_REFUSED"
    assert "taken0" in refused.value.message
    assert [network.name for network in client.networks.list("hosts/kvm")] == [first.name]


def test_a_bridge_that_exists_is_used_as_it_is(virtd: Virtd, client: Client) -> None:
    spec = NetworkSpec(mode=NETWORK_MODE_BRIDGE, bridge="br-test")
    made = client.networks.create("hosts/kvm", "lan", spec).result(timeout_s=30)
    assert (made.mode, made.bridge, list(made.cidrs), list(made.dhcp_ranges)) == ("bridge", "br-test", [], [])
    inside(virtd, "ip", "link", "add", "br-test", "type", "bridge")
    inside(virtd, "ip", "link", "set", "br-test", "up")
    guest = virtd.spec(boots=False, disk=False)
    guest.spec.interfaces.append(InterfaceSpec(name="net0", kind=INTERFACE_KIND_NETWORK, network="lan"))
    client.guests.create("hosts/kvm", "neighbour", guest, start=True).result(timeout_s=60)
    assert "master br-test" in inside(virtd, "ip", "link", "show", "master", "br-test")
