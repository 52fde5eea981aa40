"""Consoles, agents and addresses of real guests, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.guests import DemoGuest
from tests.qemu.fixtures import Context, Lab, eventually, open_lab, private_libvirt, read_until
from virtd.backend.api import ResolvedInterface
from virtd.errors import VirtdError
from virtd.libvirt.xml.network import NetworkXml
from virtd.model.console import AgentCommand
from virtd.model.guest import InterfaceKind


async def reason_of(call: object) -> str:
    with pytest.raises(VirtdError) as failed:
        await call  # type: ignore[misc]  # any awaitable
    return failed.value.reason.name


async def test_console_is_taken_over_and_a_flood_is_held_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtd.libvirt.consoles._HIGH_WATER", 16 << 10)
    uuid = await lab.running(lab.resolved("flood"))
    consoles = lab.session.facets.serial_console
    assert consoles is not None
    first = await consoles.open_console(uuid)
    await read_until(first, b"demo: ready", 90)
    second = await consoles.open_console(uuid)
    async with asyncio.timeout(10):
        while await first.read():
            pass
    await second.write(b"i=0; while [ $i -lt 20000 ]; do echo line-$i-abcdefghijklmnopqrstuvwxyz; i=$((i+1)); done\n")
    await asyncio.sleep(6)  # nobody reads: the stream must wait, and nothing may get lost
    assert (16 << 10) <= second._unread < (96 << 10)
    text = await read_until(second, b"line-19999-", 120)
    numbers = [int(line.split(b"-")[1]) for line in text.split(b"\n") if line.startswith(b"line-")]
    assert numbers[-1] == 19999 and numbers == list(range(20000))
    await second.close()
    await second.close()
    assert await second.read() == b""
    assert await reason_of(second.write(b"x")) == "HOST_UNREACHABLE"


async def test_agent_states_are_told_apart(lab: Lab) -> None:
    agent, pause = lab.session.facets.agent, lab.session.facets.pause
    assert agent and pause
    without = await lab.running(lab.empty("no-agent", guest_agent=False))
    assert await reason_of(agent.ping_agent(without)) == "AGENT_NOT_CONFIGURED"
    stopped = await lab.defined(lab.empty("stopped"))
    assert await reason_of(agent.ping_agent(stopped)) == "INVALID_STATE"
    uuid = await lab.running(lab.resolved("agent"))
    assert await reason_of(agent.ping_agent(uuid)) == "AGENT_NOT_READY"
    await lab.agent_answers(uuid)

    slow = AgentCommand("/bin/sleep", ("30",), timeout_s=1.0)
    assert await reason_of(agent.run_command(uuid, slow, Context())) == "DEADLINE_EXCEEDED"
    context = Context()
    asyncio.get_running_loop().call_later(0.5, context.cancel)
    assert (
        await reason_of(agent.run_command(uuid, AgentCommand("/bin/sleep", ("30",)), context)) == "OPERATION_CANCELLED"
    )

    # Freeze the agent from inside: the channel stays connected, and nobody answers.
    await agent.run_command(
        uuid, AgentCommand("/bin/sh", ("-c", "(sleep 0.5; kill -STOP $(pidof qemu-ga)) >/dev/null 2>&1 &")), Context()
    )
    await asyncio.sleep(2)
    started = time.monotonic()
    with pytest.raises(VirtdError, match="stuck") as stuck:
        await agent.ping_agent(uuid)
    assert stuck.value.reason.name == "AGENT_STUCK"
    assert time.monotonic() - started < 4
    # Other calls on this guest do not wait for its agent.
    started = time.monotonic()
    waiting = asyncio.create_task(agent.run_command(uuid, AgentCommand("/bin/true"), Context()))
    await asyncio.sleep(0.1)
    await lab.session.get_guest(uuid)
    await lab.session.list_guests()
    assert time.monotonic() - started < 1.5
    with pytest.raises(VirtdError):
        await waiting
    addresses = lab.session.facets.addresses
    assert addresses is not None
    started = time.monotonic()
    assert await addresses.guest_addresses(uuid) == ()
    assert time.monotonic() - started < 2.5


async def test_network_of_the_host_leases_an_address(demo: DemoGuest, tmp_path: object) -> None:
    """A NAT network in the daemon's own network namespace; the guest's lease is seen without an agent."""
    with private_libvirt(network_namespace=True) as daemon:
        directory = daemon.directory / "virtd"
        directory.mkdir()
        async with open_lab(daemon, demo, directory) as lab:
            network = daemon.directory / "net.xml"
            network.write_text(NetworkXml("lan", "nat", "virbr77", ("192.168.77.0/24",)).to_xml())
            lab.virsh("net-define", str(network))
            networks = lab.session.facets.networks
            assert networks is not None
            (found,) = [entry for entry in await networks.list_networks() if entry.name == "lan"]
            assert (found.active, found.mode, found.cidrs) == (False, "nat", ("192.168.77.0/24",))
            lab.virsh("net-start", "lan")
            (found,) = [entry for entry in await networks.list_networks() if entry.name == "lan"]
            assert (found.active, found.bridge) == (True, "virbr77")
            guest = lab.resolved("leased", guest_agent=False, graphics=None)
            mac = guest.interfaces[0].mac
            wired = (ResolvedInterface("lan0", InterfaceKind.NETWORK, mac, "lan"),)
            uuid = await lab.booted(lab.resolved("leased", guest_agent=False, interfaces=wired))
            addresses = lab.session.facets.addresses
            assert addresses is not None
            (address,) = await eventually(lambda: addresses.guest_addresses(uuid), 20)
            assert (address.interface, address.mac, address.source) == ("lan0", mac, "LEASE")
            assert address.address.startswith("192.168.77.")
