"""Updates and devices over the public socket, with both flavours of the client, on the fake backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import virtd_client
from virtd_client import errors

from tests.rpc.client_flavours import Threaded
from tests.support.daemons import MIB, Lab, running_lab, short_directory
from virtd.v1 import guest_pb2 as g
from virtd.v1 import guest_service_pb2 as gs

NAME = "hosts/lab/guests/one"
SPEC = g.GuestSpec(
    memory_bytes=64 * MIB,
    disks=[
        g.DiskSpec(name="root", blank=g.BlankSource(capacity_bytes=8 * MIB)),
        g.DiskSpec(name="cd", device=g.DISK_DEVICE_CDROM),
    ],
    interfaces=[g.InterfaceSpec(name="net0", kind=g.INTERFACE_KIND_NETWORK, network="default")],
)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


@pytest.fixture(params=["async", "sync"])
async def client(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    target = f"unix:{lab.daemon.config.server.socket}"
    connect = virtd_client.AsyncClient.connect if request.param == "async" else virtd_client.Client.connect
    made: Any = connect(target, timeout_s=20)
    async with made if request.param == "async" else Threaded(made) as opened:
        client = opened
        created = await client.guests.create("hosts/lab", "one", g.Guest(spec=SPEC), start=True)
        await created.result(timeout_s=20)
        yield client


async def test_devices_one_at_a_time(lab: Lab, client: Any) -> None:
    devices = client.devices
    disk = g.DiskSpec(name="data", blank=g.BlankSource(capacity_bytes=MIB))
    planned = await devices.attach_disk(NAME, disk, validate_only=True)
    assert [(c.field, c.effect) for c in planned.plan.changes] == [("spec.disks[data]", gs.UPDATE_EFFECT_LIVE)]
    for method, arguments, options in (
        ("attach_disk", (disk,), {}),
        ("resize_disk", ("data", 2 * MIB), {}),
        ("attach_interface", (g.InterfaceSpec(name="net1"),), {"mode": "next-boot"}),
        ("set_link", ("net0",), {"up": False}),
        ("detach_interface", ("net1",), {}),
        ("detach_disk", ("data",), {"delete_volume": True}),
    ):
        operation = await getattr(devices, method)(NAME, *arguments, **options)
        guest = await operation.result(timeout_s=20)
        assert operation.metadata.verb == "update"
    assert [entry.name for entry in guest.spec.disks] == ["root", "cd"]
    assert guest.spec.interfaces[0].link_state == g.LINK_STATE_DOWN
    assert guest.generation == 7
    assert not guest.status.pending_restart_fields


async def test_a_device_that_is_there_or_is_not(lab: Lab, client: Any) -> None:
    devices, before = client.devices, await client.guests.get(NAME)
    empty = g.DiskSpec()
    for method, arguments, field in (
        ("attach_disk", (g.DiskSpec(name="root", blank=g.BlankSource(capacity_bytes=MIB)),), "disk.name"),
        ("attach_disk", (empty,), "disk.name"),
        ("detach_disk", ("none",), "disk"),
        ("detach_disk", ("",), "disk"),
        ("resize_disk", ("cd", MIB), "disk"),
        ("resize_disk", ("root", MIB), "guest.spec.disks[root].blank.capacity_bytes"),
        ("attach_interface", (g.InterfaceSpec(name="net0"),), "interface.name"),
        ("detach_interface", ("none",), "interface"),
        ("insert_medium", ("root", empty), "disk"),
        ("insert_medium", ("cd", empty), "medium.source"),
        ("eject_medium", ("root",), "disk"),
    ):
        with pytest.raises(errors.InvalidArgument) as wrong:
            await getattr(devices, method)(NAME, *arguments)
        assert [violation.field for violation in wrong.value.violations] == [field], method
    with pytest.raises(errors.NotFound):
        await devices.detach_disk("hosts/lab/guests/none", "root")
    with pytest.raises(errors.Conflict) as old:
        await devices.set_link(NAME, "net0", up=False, etag="old")
    assert old.value.reason == "ETAG_MISMATCH"
    assert await client.guests.get(NAME) == before


async def test_what_the_wire_says_is_obeyed_also_if_it_is_a_default(client: Any) -> None:
    kept = g.Guest(name=NAME, spec=g.GuestSpec(interfaces=[g.InterfaceSpec(name="net0")]))
    assert not (await client.guests.plan_for(NAME, kept)).update.changes
    kept.spec.interfaces[0].kind = g.INTERFACE_KIND_USER
    operation = await client.guests.change(kept, ["spec.interfaces[net0].kind", "spec.interfaces[net0].network"])
    changed = await operation.result(timeout_s=20)
    assert changed.spec.interfaces[0].kind == g.INTERFACE_KIND_USER
    assert changed.spec.interfaces[0].mac
    assert list(changed.status.pending_restart_fields) == [
        "spec.interfaces[net0].kind",
        "spec.interfaces[net0].network",
    ]


async def test_a_plan_for_a_name_is_a_creation_or_an_update(client: Any) -> None:
    wanted = g.Guest(spec=SPEC, labels={"a": "b"})
    new = await client.guests.plan_for("hosts/lab/guests/new", wanted)
    assert not new.HasField("update")
    assert new.native
    same = await client.guests.plan_for(NAME, wanted)
    assert same.HasField("update")
    assert not same.update.changes
    wanted.spec.vcpus = 4
    different = await client.guests.plan_for(NAME, wanted, mode="next-boot")
    assert [(c.field, c.old, c.new) for c in different.update.changes] == [("spec.vcpus", "1", "4")]
    assert '"vcpus": 4' in different.update.native
    wanted.spec.machine = "none"
    wrong = await client.guests.plan_for(NAME, wanted)
    assert wrong.error.reason == "FIELD_UNSUPPORTED"
    with pytest.raises(errors.NotFound):
        await client.guests.plan_for("hosts/none/guests/x", wanted)


async def test_spec_and_labels_in_one_operation(client: Any) -> None:
    before = await client.guests.get(NAME)
    wanted = g.Guest(name=NAME, display_name="One", labels={"a": "b"}, spec=g.GuestSpec(deletion_protection=True))
    operation = await client.guests.change(wanted, ["spec", "labels"])
    after = await operation.result(timeout_s=20)
    assert (dict(after.labels), after.display_name) == ({"a": "b"}, before.display_name)
    assert after.spec.deletion_protection
    assert after.generation == before.generation + 1
    off = await client.guests.change(g.Guest(name=NAME), ["spec.deletion_protection"])
    assert not (await off.result(timeout_s=20)).spec.deletion_protection
