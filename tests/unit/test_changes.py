"""What differs between two specs, and from a request to the spec as it shall be."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtd.errors import InvalidArgumentError
from virtd.model.changes import NAMED_LISTS, apply, diff, parse_path
from virtd.model.devices import (
    CpuSpec,
    CpuTopology,
    HostDeviceSpec,
    IoTune,
    LinkState,
    PciHostDevice,
    PortForward,
    UsbHostDevice,
    WatchdogSpec,
)
from virtd.model.guest import (
    BlankSource,
    DiskBus,
    DiskFormat,
    DiskSpec,
    GuestSpec,
    HostFileSource,
    ImageSource,
    InterfaceKind,
    InterfaceSpec,
)
from virtd.model.host import GuestDefaults
from virtd.service.changes import Presence, merged, without_secrets
from virtd.service.update_resolve import settled

NAMES = st.sampled_from(["a", "b", "c", "d"])
TEXTS = st.sampled_from(["", "x", "y"])
SIZES = st.integers(1, 4)


def oneof(**arms: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(st.just({}), *(values.map(lambda value, arm=arm: {arm: value}) for arm, values in arms.items()))  # type: ignore[misc]


SOURCES = oneof(
    blank=st.builds(BlankSource, SIZES, st.sampled_from(DiskFormat), TEXTS),
    image=st.builds(ImageSource, TEXTS, capacity_bytes=st.none() | SIZES),
    volume=st.sampled_from(["v", "w"]),
    host_file=st.builds(HostFileSource, TEXTS, st.sampled_from(DiskFormat)),
)
DISKS = st.builds(
    lambda name, source, **rest: DiskSpec(name, **source, **rest),
    NAMES,
    SOURCES,
    bus=st.none() | st.sampled_from(DiskBus),
    io_tune=st.none() | st.builds(IoTune, SIZES),
    serial=TEXTS,
    discard=st.booleans(),
)
INTERFACES = st.builds(
    InterfaceSpec,
    NAMES,
    kind=st.sampled_from(InterfaceKind),
    mac=TEXTS,
    link_state=st.none() | st.sampled_from(LinkState),
    port_forwards=st.lists(st.builds(PortForward, SIZES, SIZES), max_size=2).map(tuple),
)
HOST_DEVICES = st.builds(
    lambda name, device: HostDeviceSpec(name, **device),
    NAMES,
    oneof(pci=st.builds(PciHostDevice, TEXTS), usb=st.builds(UsbHostDevice, SIZES)),
)


def unique(entries: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(entries, max_size=3, unique_by=lambda entry: entry.name).map(tuple)


SPECS = st.builds(
    GuestSpec,
    vcpus=st.none() | SIZES,
    machine=TEXTS,
    disks=unique(DISKS),
    interfaces=unique(INTERFACES),
    host_devices=unique(HOST_DEVICES),
    cpu=st.none() | st.builds(CpuSpec, topology=st.none() | st.builds(CpuTopology, SIZES, SIZES, SIZES), model=TEXTS),
    watchdog=st.none() | st.builds(WatchdogSpec),
    backend_options=st.dictionaries(NAMES, TEXTS, max_size=2),
    rng=st.none() | st.booleans(),
    deletion_protection=st.booleans(),
)


def ordered(spec: GuestSpec) -> GuestSpec:
    """The spec with its named lists in order: their order says nothing."""
    lists: Any = {name: tuple(sorted(getattr(spec, name), key=lambda entry: entry.name)) for name in NAMED_LISTS}
    return replace(spec, **lists)


@given(SPECS)
def test_nothing_differs_from_itself(spec: GuestSpec) -> None:
    assert diff(spec, spec) == ()
    assert diff(spec, ordered(spec)) == ()


@given(SPECS, SPECS)
@settings(max_examples=300)
def test_the_differences_lead_from_one_to_the_other(old: GuestSpec, new: GuestSpec) -> None:
    changes = diff(old, new)
    assert ordered(apply(old, changes)) == ordered(new)
    assert all(change.old != change.new for change in changes)
    for change in changes:
        assert str(parse_path(change.field)[-1])
    back = diff(new, old)
    assert {(c.field, c.old) for c in changes if _hashable(c.old)} == {
        (c.field, c.new) for c in back if _hashable(c.new)
    }


def _hashable(value: object) -> bool:
    return isinstance(value, str | int | bool | None)


@given(SPECS, SPECS)
@settings(max_examples=300)
def test_a_document_applied_twice_is_applied_once(current: GuestSpec, document: GuestSpec) -> None:
    present = Presence.of(document)
    once = merged(current, document, present, ["spec"])
    assert merged(once, document, present, ["spec"]) == once
    for name in present.parts:
        if name in NAMED_LISTS:
            assert {e.name for e in getattr(once, name)} == {e.name for e in getattr(document, name)}
    untouched = {field.name for field in fields(GuestSpec)} - set(present.parts)
    assert all(getattr(once, name) == getattr(current, name) for name in untouched)


@given(SPECS, SPECS)
def test_every_path_of_a_difference_can_be_asked_for(current: GuestSpec, wanted: GuestSpec) -> None:
    paths = [change.field for change in diff(current, wanted)]
    assert ordered(merged(current, wanted, Presence.of(wanted), paths)) == ordered(wanted)


@given(SPECS)
def test_what_is_shown_is_a_document_that_changes_nothing(spec: GuestSpec) -> None:
    assert merged(spec, spec, Presence.of(spec), ["spec"]) == spec
    assert settled(spec, spec, GuestDefaults()) == spec


def test_what_an_entry_leaves_out_stays() -> None:
    held = GuestSpec(
        disks=(
            DiskSpec("data", blank=BlankSource(5, DiskFormat.RAW, "fast"), bus=DiskBus.SCSI),
            DiskSpec("old", volume="v"),
        ),
        interfaces=(InterfaceSpec("net0", mac="52:54:00:00:00:01"),),
        memory_bytes=7,
    )
    document = GuestSpec(vcpus=2, disks=(DiskSpec("data", blank=BlankSource(6)), DiskSpec("new", volume="w")))
    once = merged(held, document, Presence.of(document), ["spec"])
    assert once.disks[0] == DiskSpec("data", blank=BlankSource(6, DiskFormat.RAW, "fast"), bus=DiskBus.SCSI)
    assert [disk.name for disk in once.disks] == ["data", "new"]
    assert (once.interfaces, once.memory_bytes, once.vcpus) == (held.interfaces, 7, 2)
    assert merged(held, GuestSpec(), Presence(), ["spec"]) == held
    assert merged(held, GuestSpec(), Presence(), ["spec.disks"]).disks == ()
    assert merged(held, GuestSpec(), Presence(), ["spec.disks[old]"]).disks == held.disks[:1]
    assert merged(held, GuestSpec(), Presence(), ["spec.memory_bytes"]).memory_bytes is None
    said = GuestSpec(disks=(DiskSpec("data"),))
    assert merged(held, said, Presence.of(said), ["spec.disks[data].bus"]).disks[0].bus is None


def test_a_value_that_equals_a_default_is_obeyed_if_it_was_said() -> None:
    held = GuestSpec(interfaces=(InterfaceSpec("net0", InterfaceKind.BRIDGE, "br0"),))
    document = GuestSpec(interfaces=(InterfaceSpec("net0", InterfaceKind.USER),))
    silent = merged(held, document, Presence({"interfaces": Presence({"net0": Presence()})}), ["spec"])
    assert silent.interfaces[0].kind is InterfaceKind.BRIDGE
    said = Presence({"interfaces": Presence({"net0": Presence({"kind": Presence()})})})
    assert merged(held, document, said, ["spec"]).interfaces[0].kind is InterfaceKind.USER


def test_another_source_takes_the_place_of_the_first() -> None:
    held = GuestSpec(disks=(DiskSpec("cd", volume="v"),))
    document = GuestSpec(disks=(DiskSpec("cd", host_file=HostFileSource("/x", DiskFormat.RAW)),))
    for paths in (
        ["spec"],
        ["spec.disks"],
        ["spec.disks[cd]"],
        ["spec.disks[cd].source"],
        ["spec.disks[cd].host_file"],
    ):
        assert merged(held, document, Presence.of(document), paths).disks == document.disks, paths
    empty = GuestSpec(disks=(DiskSpec("cd"),))
    assert merged(held, empty, Presence.of(empty), ["spec.disks[cd].source"]).disks == empty.disks


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("spec.", "not a path"),
        ("spec..vcpus", "not a path"),
        ("spec.disks[", "not a path"),
        ("spec.nothing", "no field"),
        ("spec.cpu.nothing", "no field"),
        ("spec.disks[a].nothing", "no field"),
        ("spec.disks[zz].cache", "no disks[zz]"),
        ("spec.vcpus.much", "no field"),
        ("spec.cpu[x]", "no entry"),
    ],
)
def test_a_path_that_there_is_not(path: str, word: str) -> None:
    held = GuestSpec(disks=(DiskSpec("a"),), cpu=CpuSpec())
    said = GuestSpec(disks=(DiskSpec("a"),), cpu=CpuSpec(model="x"), vcpus=1)
    with pytest.raises(InvalidArgumentError) as wrong:
        merged(held, said, Presence.of(said), ["spec.machine", path])
    assert wrong.value.record.violations[0].field == "update_fields[1]"
    assert word in wrong.value.message


def test_a_name_that_stands_twice() -> None:
    twice = GuestSpec(disks=(DiskSpec("a"), DiskSpec("a")))
    with pytest.raises(InvalidArgumentError) as wrong:
        merged(GuestSpec(), twice, Presence.of(twice), ["spec"])
    assert wrong.value.record.violations[0].field == "guest.spec.disks[1].name"


def test_defaults_are_written_out_only_where_something_changes() -> None:
    adopted = GuestSpec(memory_bytes=1, disks=(DiskSpec("vda", volume="v"),))
    wanted = replace(
        adopted, vcpus=None, disks=(*adopted.disks, DiskSpec("new", volume="w")), interfaces=(InterfaceSpec("n"),)
    )
    full = settled(adopted, wanted, GuestDefaults())
    assert full.graphics is None
    assert full.disks[0] == adopted.disks[0]
    assert full.disks[1].bus is DiskBus.VIRTIO
    assert full.interfaces[0].mac


def test_secrets_are_never_shown() -> None:
    from virtd.model.cloud_init import CloudInitFile, CloudInitSpec, CloudInitUser

    spec = GuestSpec(
        cloud_init=CloudInitSpec(
            users=(CloudInitUser("u", password_hash="$6$secret"),),
            write_files=(CloudInitFile("/x", b"secret"),),
            user_data="secret",
        )
    )
    assert is_dataclass(spec)
    shown = str(without_secrets(spec))
    assert "secret" not in shown
    assert shown.count("(hidden)") == 3
