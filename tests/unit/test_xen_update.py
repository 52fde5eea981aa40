"""What a change does to a guest of Xen: the table of effects that the how-to page shows, and what its reasons name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from virtd_xen.update_policy import (
    EMPTY_DRIVE,
    LINK_REASON,
    NO_QEMU,
    POLICY,
    RESIZE_LIMITS,
    UNSUPPORTED,
    has_qemu,
    needs_qemu,
)

from virtd.backend import capabilities as caps
from virtd.backend.api import ResolvedDisk, ResolvedGuest, ResolvedInterface, UpdateEffect
from virtd.libvirt.effects import Facts, effects_of
from virtd.libvirt.xml.build import parse
from virtd.libvirt.xml.merge import merge, names_of_disks
from virtd.model.devices import DiskCache, IoTune, LinkState, WatchdogSpec
from virtd.model.guest import Accelerator, DiskBus, DiskDevice, DiskFormat, Firmware, InterfaceKind

E = UpdateEffect
MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "howto" / "update.md"
DATA = ResolvedDisk("xvda", "/srv/guest/data.img", DiskFormat.RAW, DiskBus.VIRTIO)
CD = ResolvedDisk("hdc", "", DiskFormat.RAW, DiskBus.IDE, DiskDevice.CDROM, read_only=True)
NET = ResolvedInterface("net0", InterfaceKind.BRIDGE, "00:16:3e:5a:00:01", "xenbr0")
GUEST = ResolvedGuest(
    UUID(int=7), "g", 1, 128 * MIB, Accelerator.NATIVE, machine="xenpv",
    max_vcpus=2, max_memory_bytes=192 * MIB, disks=(DATA, CD), interfaces=(NET,),
)  # fmt: skip


def live(kind: str = "pv") -> Any:
    return parse((ROOT / "tests" / "golden" / "libvirt-xen" / f"{kind}-live.xml").read_text())


def changed(**changes: Any) -> ResolvedGuest:
    return replace(GUEST, **changes)


def disk(**changes: Any) -> ResolvedGuest:
    return changed(disks=(DATA, CD, replace(DATA, name="more", **changes)))


PATHS: dict[str, tuple[str, ResolvedGuest]] = {
    "vcpus up to max_vcpus": ("spec.vcpus", changed(vcpus=2)),
    "vcpus above max_vcpus": ("spec.vcpus", changed(vcpus=3)),
    "memory_bytes up to what it was started with": ("spec.memory_bytes", changed(memory_bytes=192 * MIB)),
    "memory_bytes above that": ("spec.memory_bytes", changed(memory_bytes=256 * MIB)),
    "max_vcpus, max_memory_bytes": ("spec.max_vcpus", changed(max_vcpus=4)),
    "disks: a raw disk in or out": ("spec.disks[more]", disk()),
    "disks: a qcow2 disk in, with no QEMU beside the guest": ("spec.disks[more]", disk(format=DiskFormat.QCOW2)),
    "disks: an IDE or SCSI disk in or out": ("spec.disks[more]", disk(bus=DiskBus.IDE)),
    "disks: a CD-ROM drive in or out": ("spec.disks[hdc]", changed(disks=(DATA,))),
    "disks: the source of a disk": ("spec.disks[xvda].source", changed(disks=(replace(DATA, path="/o"), CD))),
    "disks: capacity_bytes, larger, while it runs": ("spec.disks[xvda].blank.capacity_bytes", GUEST),
    "disks: cache, discard, serial, bus, boot_order, read_only": (
        "spec.disks[xvda].cache", changed(disks=(replace(DATA, cache=DiskCache.NONE), CD)),
    ),
    "interfaces: in or out": ("spec.interfaces[b]", changed(interfaces=(NET, replace(NET, name="b")))),
    "interfaces: in or out, of an emulated model": (
        "spec.interfaces[b]", changed(interfaces=(NET, replace(NET, name="b", model="e1000"))),
    ),
    "interfaces: link_state": (
        "spec.interfaces[net0].link_state", changed(interfaces=(replace(NET, link_state=LinkState.DOWN),)),
    ),
    "interfaces: everything else": (
        "spec.interfaces[net0].mac", changed(interfaces=(replace(NET, mac="00:16:3e:00:00:09"),)),
    ),
    "machine": ("spec.machine", changed(machine="xenfv")),
    "firmware": ("spec.firmware", changed(firmware=Firmware.UEFI)),
    "every other field": ("spec.watchdog", changed(watchdog=WatchdogSpec())),
}  # fmt: skip


def effect(label: str, kind: str = "pv", **facts: Any) -> tuple[UpdateEffect, str]:
    path, wanted = PATHS[label]
    known = {"config": live(kind), "live": live(kind), "capacities": {DATA.path: MIB}, "missing": UNSUPPORTED, **facts}
    (entry,) = effects_of(POLICY, Facts(**known), GUEST, wanted, [path])
    assert entry.reason or entry.effect is E.LIVE
    return entry.effect, entry.reason


def page() -> dict[str, str]:
    section = PAGE.read_text().partition("## What a change does to a running guest on Xen")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (LIVE|NEXT_BOOT|REPLACE|REJECTED|NONE)\b[^|]*\|", section, re.MULTILINE)
    return {field.replace("`", ""): word for field, word in rows}


def test_the_page_shows_what_is_done() -> None:
    own = {
        "disks: io_tune": effects_of_io_tune()[0],
        "disks: the medium of a CD-ROM drive that holds one": medium(empty=False)[0],
        "disks: the medium of an empty CD-ROM drive": medium(empty=True)[0],
    }
    assert page() == {**{label: effect(label)[0].value for label in PATHS}, **{k: v.value for k, v in own.items()}}


def effects_of_io_tune() -> tuple[UpdateEffect, str]:
    wanted = changed(disks=(replace(DATA, io_tune=IoTune(1)), CD))
    facts = Facts(live(), live(), missing=UNSUPPORTED)
    (entry,) = effects_of(POLICY, facts, GUEST, wanted, ["spec.disks[xvda].io_tune"])
    return entry.effect, entry.reason


def medium(*, empty: bool) -> tuple[UpdateEffect, str]:
    wanted = changed(disks=(DATA, replace(CD, path="/m.iso")))
    running = live("hvm")
    if not empty:
        running.find("devices/disk").append(parse("<source file='/other.iso'/>"))
    (entry,) = effects_of(POLICY, Facts(running, running), GUEST, wanted, ["spec.disks[hdc].source"])
    return entry.effect, entry.reason


def test_reasons_say_whose_limit_it_is() -> None:
    assert effect("interfaces: link_state") == (E.REJECTED, LINK_REASON)
    assert effect("disks: capacity_bytes, larger, while it runs") == (E.REJECTED, RESIZE_LIMITS)
    assert effects_of_io_tune()[1] == UNSUPPORTED[caps.UPDATE_IO_TUNE]
    for reason in (LINK_REASON, RESIZE_LIMITS):
        assert "libvirt's libxl driver" in reason


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_processors_go_in_and_out_of_every_guest(kind: str) -> None:
    both = live(kind)
    both.find("vcpu").attrib.pop("current")
    two = changed(vcpus=2)
    (entry,) = effects_of(POLICY, Facts(both, both), two, GUEST, ["spec.vcpus"])
    assert entry.effect is E.LIVE
    assert effect("vcpus up to max_vcpus", kind)[0] is E.LIVE


def test_a_disk_that_qemu_serves_needs_one_that_was_started_with_the_guest() -> None:
    label = "disks: a qcow2 disk in, with no QEMU beside the guest"
    assert effect(label) == (E.NEXT_BOOT, NO_QEMU)
    assert effect(label, "hvm")[0] is E.LIVE
    served = live()
    served.find("devices/disk/driver").set("name", "qemu")
    assert effect(label, live=served)[0] is E.LIVE
    assert (has_qemu(live()), has_qemu(live("hvm")), has_qemu(served)) == (False, True, True)
    assert [needs_qemu(found) for found in (DATA, CD, replace(DATA, format=DiskFormat.QCOW2))] == [False, True, True]


def test_a_stopped_guest_s_disk_can_grow() -> None:
    label = "disks: capacity_bytes, larger, while it runs"
    assert effect(label, live=None)[0] is E.LIVE
    assert effect(label, live=None, suspended=True)[0] is E.REJECTED
    assert effect(label, live=None, capacities={})[0] is E.REJECTED


def test_a_drive_on_an_emulated_bus_stays_where_it_is() -> None:
    """Whatever the spec calls its bus: what the running domain says counts."""
    emulated = live("hvm")
    emulated.findall("devices/disk")[1].find("target").set("bus", "ide")
    facts = Facts(emulated, emulated)
    (entry,) = effects_of(POLICY, facts, GUEST, changed(disks=(CD,)), ["spec.disks[xvda]"])
    assert entry.effect is E.NEXT_BOOT
    assert "IDE" in entry.reason


def test_new_disks_get_names_that_xen_knows() -> None:
    """xvdb, not xvb: what the merge makes of a designed xvda that is taken."""
    base, wanted = live(), live()
    for tree in (base, wanted):
        tree.find("devices").remove(tree.find("devices/disk"))
    more = live().find("devices/disk")
    more.find("source").set("file", "/more.img")
    wanted.find("devices").append(more)
    metadata = parse(
        "<metadata><virtd:guest xmlns:virtd='https://virtd.dev/xmlns/guest/1'>"
        "<virtd:disk target='xvda' name='more'/></virtd:guest></metadata>"
    )
    wanted.insert(3, metadata)
    after = merge(live(), base, wanted)
    assert {found.find("target").get("dev") for found in names_of_disks(after).values()} == {"xvda", "xvdb"}


def test_no_medium_goes_into_an_empty_drive() -> None:
    """Xen's QEMU would crash where it was empty from the start."""
    assert medium(empty=True) == (E.NEXT_BOOT, EMPTY_DRIVE)
    assert medium(empty=False)[0] is E.LIVE


@pytest.mark.parametrize("label", PATHS)
def test_a_guest_that_does_not_run_waits_for_its_start(label: str) -> None:
    found, reason = effect(label, live=None)
    if effect(label)[0] is E.REPLACE or "source" in label:
        assert found is effect(label)[0]
    elif "capacity" in label:
        assert found is E.LIVE
    else:
        assert (found, reason) == (E.NEXT_BOOT, "the guest does not run")


def test_what_the_host_lacks_is_the_reason() -> None:
    for label, capability in {
        "disks: a raw disk in or out": caps.UPDATE_DISKS,
        "interfaces: in or out": caps.UPDATE_INTERFACES,
        "vcpus up to max_vcpus": caps.UPDATE_VCPUS,
        "memory_bytes up to what it was started with": caps.UPDATE_MEMORY,
    }.items():
        assert effect(label, missing={capability: "because"}) == (E.NEXT_BOOT, "because")
