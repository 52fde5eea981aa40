"""What a change does to a guest of QEMU: the merge of XML, and the table of effects that the how-to page shows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from lxml import etree
from virtd_kvm.designer import Platform, design
from virtd_kvm.effects import POLICY, UNPLUG_REASON

from virtd.backend import capabilities as caps
from virtd.backend.api import ResolvedDisk, ResolvedGuest, ResolvedInterface, UpdateEffect
from virtd.backend.pending import pending_fields
from virtd.libvirt.effects import Facts, effects_of
from virtd.libvirt.xml.build import parse, render
from virtd.libvirt.xml.merge import merge, names_of_disks, names_of_interfaces
from virtd.model.changes import NAMED_LISTS
from virtd.model.devices import (
    CpuFeature,
    CpuSpec,
    DiskCache,
    IoTune,
    LinkState,
    MemorySpec,
    PortForward,
    SoundSpec,
    WatchdogSpec,
)
from virtd.model.guest import Accelerator, DiskBus, DiskDevice, DiskFormat, Firmware, GuestSpec, InterfaceKind

E = UpdateEffect
MIB = 1 << 20
PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "update.md"
DATA = ResolvedDisk("data", "/d/data.qcow2", DiskFormat.QCOW2, DiskBus.VIRTIO)
CD = ResolvedDisk("cd", "", DiskFormat.RAW, DiskBus.SCSI, DiskDevice.CDROM, read_only=True)
NET = ResolvedInterface("net0", InterfaceKind.USER, "52:54:00:00:00:01")
GUEST = ResolvedGuest(UUID(int=7), "g", 1, 64 * MIB, Accelerator.TCG, max_vcpus=2, disks=(DATA, CD), interfaces=(NET,))


def tree(guest: ResolvedGuest) -> Any:
    return parse(design(guest, Platform()).native)


def native(guest: ResolvedGuest = GUEST) -> Any:
    """As libvirt would show it: addresses on everything, and something that somebody has added by hand."""
    domain = tree(guest)
    for number, device in enumerate(domain.findall("devices/*")):
        if device.find("address") is None and device.tag in ("disk", "interface"):
            etree.SubElement(device, "address", type="pci", bus=f"0x{number + 1:02x}", slot="0x00")
    etree.SubElement(domain, "iothreads").text = "2"
    for driver in domain.findall("devices/disk/driver")[:1]:
        driver.set("iothread", "1")
    place = domain.find("metadata")
    note = etree.SubElement(domain, "metadata") if place is None else place
    etree.SubElement(note, "{urn:mine}note").text = "keep"
    etree.SubElement(domain, "currentMemory", unit="KiB").text = str(guest.memory_bytes // 1024)
    return domain


def changed(**changes: Any) -> ResolvedGuest:
    return replace(GUEST, **changes)


def text(domain: Any) -> str:
    return " ".join(sorted(render(domain).split()))


CHANGES = {
    "vcpus": changed(vcpus=2),
    "memory": changed(memory_bytes=96 * MIB),
    "watchdog": changed(watchdog=WatchdogSpec()),
    "sound": changed(sound=SoundSpec()),
    "a disk more": changed(disks=(DATA, CD, replace(DATA, name="more", path="/d/more"))),
    "the first disk less": changed(disks=(CD,)),
    "no disks": changed(disks=()),
    "a medium": changed(disks=(DATA, replace(CD, path="/m.iso"))),
    "limits": changed(disks=(replace(DATA, io_tune=IoTune(5)), CD)),
    "a cache": changed(disks=(replace(DATA, cache=DiskCache.NONE), CD)),
    "another mac": changed(interfaces=(replace(NET, mac="52:54:00:00:00:02"),)),
    "an interface more": changed(interfaces=(NET, replace(NET, name="b", mac="52:54:00:00:00:03"))),
    "forwards": changed(interfaces=(replace(NET, port_forwards=(PortForward(8080, 80),)),)),
    "another cpu": changed(cpu=CpuSpec(model="qemu64", features=(CpuFeature("svm"),))),
    "no balloon": changed(memory=MemorySpec(balloon=False)),
    "no console": changed(serial_console=False),
    "no agent": changed(guest_agent=False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_and_its_inverse_leave_the_native_guest_as_it_was(name: str) -> None:
    wanted, base, before = tree(CHANGES[name]), tree(GUEST), native()
    after = merge(before, base, wanted)
    assert text(after) != text(before)
    for hand_made in ("<iothreads>2</iothreads>", "keep</"):
        assert hand_made in render(after)
    assert text(merge(after, base, wanted)) == text(after), "twice is once"
    assert text(before) == text(native()), "the arguments are not changed"
    back = merge(after, wanted, base)
    for device in ("disk", "interface"):
        for element in (*back.findall(f"devices/{device}"), *before.findall(f"devices/{device}")):
            for lost in (*element.findall("address"), *element.findall("alias")):  # with the device they went
                element.remove(lost)
            if element.find("driver") is not None:
                element.find("driver").attrib.pop("iothread", None)
    for domain in (back, before):
        for spare in domain.findall("devices/controller"):  # ports are added, never taken away
            domain.find("devices").remove(spare)
        for found in domain.findall("currentMemory"):
            domain.remove(found)
    assert text(back) == text(before)


def test_nothing_changes_where_nothing_differs() -> None:
    assert render(merge(native(), tree(GUEST), tree(GUEST))) == render(native())


def test_disks_keep_their_targets_and_their_names() -> None:
    more = replace(DATA, name="more", path="/d/more")
    third = replace(DATA, name="third", path="/d/third")
    start = changed(disks=(DATA, more))
    less = merge(native(start), tree(start), tree(changed(disks=(more,))))
    assert {name: disk.find("target").get("dev") for name, disk in names_of_disks(less).items()} == {"more": "vdb"}
    again = merge(less, tree(changed(disks=(more,))), tree(changed(disks=(more, third))))
    assert {name: disk.find("target").get("dev") for name, disk in names_of_disks(again).items()} == {
        "more": "vdb", "third": "vda",
    }  # fmt: skip
    # What the running guest still has is taken as well.
    live = merge(less, tree(changed(disks=(more,))), tree(changed(disks=(more, third))), native(start))
    assert names_of_disks(live)["third"].find("target").get("dev") == "vdc"


def test_an_interface_is_known_by_its_name_also_with_another_address() -> None:
    after = merge(native(), tree(GUEST), tree(CHANGES["another mac"]))
    (interface,) = after.findall("devices/interface")
    assert interface.find("mac").get("address") == "52:54:00:00:00:02"
    assert interface.find("address") is not None
    assert list(names_of_interfaces(after)) == ["net0"]


def test_a_hand_made_boot_order_stays_unless_it_is_what_changes() -> None:
    bare = replace(GUEST, disks=(), interfaces=())
    domain = native(bare)
    etree.SubElement(domain.find("os"), "boot", dev="network")
    added = merge(domain, tree(bare), tree(replace(bare, disks=(DATA,))))
    assert added.find("os/boot") is not None
    assert added.find("devices/disk/boot") is None
    ordered = replace(GUEST, disks=(replace(DATA, boot_order=2), CD), interfaces=(replace(NET, boot_order=1),))
    domain = native()
    etree.SubElement(domain.find("os"), "boot", dev="hd")
    for disk in domain.findall("devices/disk"):
        for boot in disk.findall("boot"):
            disk.remove(boot)
    after = merge(domain, tree(GUEST), tree(ordered))
    assert after.find("os/boot") is None
    assert after.find("devices/interface/boot").get("order") == "1"


def test_memory_that_grows_is_given_to_the_guest() -> None:
    grown = merge(native(), tree(GUEST), tree(changed(memory_bytes=96 * MIB)))
    assert grown.find("memory").text == str(96 * 1024)
    assert grown.find("currentMemory") is None, "libvirt fills it in: the old value would be a limit"


# -------------------------------------------------------------------------------------------- effects

PATHS: dict[str, tuple[str, ResolvedGuest]] = {
    "vcpus up to max_vcpus": ("spec.vcpus", changed(vcpus=2)),
    "vcpus above max_vcpus": ("spec.vcpus", changed(vcpus=3)),
    "memory_bytes up to what it was started with": ("spec.memory_bytes", changed(memory_bytes=32 * MIB)),
    "memory_bytes above that": ("spec.memory_bytes", changed(memory_bytes=128 * MIB)),
    "max_vcpus, max_memory_bytes": ("spec.max_vcpus", changed(max_vcpus=4)),
    "disks: a virtio or SCSI disk in or out": (
        "spec.disks[more]", changed(disks=(DATA, CD, replace(DATA, name="more"))),
    ),
    "disks: a SATA or IDE disk in or out": (
        "spec.disks[more]", changed(disks=(DATA, CD, replace(DATA, name="more", bus=DiskBus.SATA))),
    ),
    "disks: a CD-ROM drive in or out": ("spec.disks[cd]", changed(disks=(DATA,))),
    "disks: the medium of a CD-ROM drive": ("spec.disks[cd].source", changed(disks=(DATA, replace(CD, path="/m")))),
    "disks: the source of a disk": ("spec.disks[data].source", changed(disks=(replace(DATA, path="/o"), CD))),
    "disks: capacity_bytes, larger": ("spec.disks[data].blank.capacity_bytes", GUEST),
    "disks: io_tune": ("spec.disks[data].io_tune", changed(disks=(replace(DATA, io_tune=IoTune(1)), CD))),
    "disks: cache, discard, serial, bus, boot_order, read_only": (
        "spec.disks[data].cache", changed(disks=(replace(DATA, cache=DiskCache.NONE), CD)),
    ),
    "interfaces: in or out": ("spec.interfaces[b]", changed(interfaces=(NET, replace(NET, name="b")))),
    "interfaces: in or out, with port_forwards": (
        "spec.interfaces[b]",
        changed(interfaces=(NET, replace(NET, name="b", port_forwards=(PortForward(1, 1),)))),
    ),
    "interfaces: link_state": (
        "spec.interfaces[net0].link_state", changed(interfaces=(replace(NET, link_state=LinkState.DOWN),)),
    ),
    "interfaces: everything else": (
        "spec.interfaces[net0].mac", changed(interfaces=(replace(NET, mac="52:54:00:00:00:09"),)),
    ),
    "machine: another version of its kind": ("spec.machine", changed(machine="pc-q35-6.2")),
    "machine: another kind": ("spec.machine", changed(machine="pc")),
    "firmware, secure_boot": ("spec.firmware", changed(firmware=Firmware.UEFI)),
    "cpu, numa, memory, accelerator": ("spec.cpu.model", changed(cpu=CpuSpec(model="qemu64"))),
    "graphics, watchdog, tpm, rng, usb, sound, clock": ("spec.watchdog", changed(watchdog=WatchdogSpec())),
    "filesystems, host_devices": ("spec.filesystems[x]", GUEST),
    "serial_console, guest_agent, direct_kernel_boot, backend_options": ("spec.serial_console", GUEST),
}  # fmt: skip


def effect(label: str, **facts: Any) -> tuple[UpdateEffect, str]:
    path, wanted = PATHS[label]
    known = {"config": native(), "live": native(), "capacities": {DATA.path: MIB}, **facts}
    (entry,) = effects_of(POLICY, Facts(**known), GUEST, wanted, [path])
    assert entry.reason or entry.effect is E.LIVE
    return entry.effect, entry.reason


def page() -> dict[str, str]:
    section = PAGE.read_text().partition("## What a change does to a running guest on KVM")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (LIVE|NEXT_BOOT|REPLACE|REJECTED|NONE)\b[^|]*\|", section, re.MULTILINE)
    return {field.replace("`", ""): word for field, word in rows}


def test_the_page_shows_what_is_done() -> None:
    own = {
        "vcpus fewer": E.NEXT_BOOT,
        "run_strategy, deletion_protection, autostart": E.LIVE,
        "cloud_init": E.NONE,
    }
    assert page() == {**{label: effect(label)[0].value for label in PATHS}, **{k: v.value for k, v in own.items()}}


def test_the_page_names_every_field_of_the_spec() -> None:
    words = set(re.findall(r"\w+", " ".join(page())))
    assert {name for name in GuestSpec.__dataclass_fields__ if name not in words} == set()


def test_processors_are_not_taken_out_under_tcg() -> None:
    two = changed(vcpus=2)
    facts = Facts(config=native(two), live=native(two))
    (entry,) = effects_of(POLICY, facts, two, GUEST, ["spec.vcpus"])
    assert (entry.effect, entry.reason) == (E.NEXT_BOOT, UNPLUG_REASON)
    accelerated = native(two)
    accelerated.set("type", "kvm")
    (entry,) = effects_of(POLICY, Facts(config=native(two), live=accelerated), two, GUEST, ["spec.vcpus"])
    assert entry.effect is E.LIVE


@pytest.mark.parametrize("label", PATHS)
def test_a_guest_that_does_not_run_has_nothing_live_but_sizes(label: str) -> None:
    for facts in ({"live": None}, {"live": None, "suspended": True}):
        found, reason = effect(label, **facts)
        running, _ = effect(label)
        if running in (E.REPLACE, E.REJECTED):
            assert found is running
        elif "capacity" in label:
            assert found is (E.REJECTED if facts.get("suspended") else E.LIVE)
        else:
            assert found is E.NEXT_BOOT
            assert ("suspended" if facts.get("suspended") else "does not run") in reason


def test_without_a_free_port_a_device_waits() -> None:
    live = native()
    for port in live.findall("devices/controller"):
        if port.get("model") == "pcie-root-port":
            live.find("devices").remove(port)
    assert "no PCI Express port is free" in effect("disks: a virtio or SCSI disk in or out", live=live)[1]
    # Two devices need two ports.
    both = changed(disks=(DATA, CD, replace(DATA, name="one"), replace(DATA, name="two")))
    etree.SubElement(live.find("devices"), "controller", type="pci", index="99", model="pcie-root-port")
    found = effects_of(POLICY, Facts(native(), live), GUEST, both, ["spec.disks[one]", "spec.disks[two]"])
    assert [entry.effect for entry in found] == [E.LIVE, E.NEXT_BOOT]


def test_what_the_host_lacks_is_the_reason() -> None:
    for label, capability in {
        "disks: a virtio or SCSI disk in or out": caps.UPDATE_DISKS,
        "disks: the medium of a CD-ROM drive": caps.UPDATE_MEDIUM,
        "interfaces: in or out": caps.UPDATE_INTERFACES,
        "vcpus up to max_vcpus": caps.UPDATE_VCPUS,
        "memory_bytes up to what it was started with": caps.UPDATE_MEMORY,
    }.items():
        assert effect(label, missing={capability: "because"}) == (E.NEXT_BOOT, "because")


def test_pending_fields_are_those_that_somebody_changed() -> None:
    running = GuestSpec(vcpus=2, memory_bytes=64, max_memory_bytes=128, cpu=CpuSpec(features=(CpuFeature("a"),)))
    config = GuestSpec(vcpus=2, memory_bytes=64, cpu=CpuSpec())
    assert pending_fields(running, config) == (), "libvirt's features, a ceiling that nobody set"
    # A host-model is written out as a model with features, the virtualization extensions among them.
    written = replace(running, cpu=CpuSpec(model="EPYC", nested=True, features=(CpuFeature("a"),)))
    assert pending_fields(written, replace(config, cpu=CpuSpec(model="host-model"))) == ()
    assert pending_fields(written, replace(config, cpu=CpuSpec(model="host-model", nested=False))) == (
        "spec.cpu.nested",
    )
    passed = replace(running, cpu=CpuSpec(model="host-passthrough", nested=True))
    assert pending_fields(passed, replace(config, cpu=CpuSpec(model="host-passthrough"))) == ("spec.cpu.nested",)
    # Also where a live change is on its way: should the guest never obey, it is so at its next start.
    assert pending_fields(running, replace(config, memory_bytes=96)) == ("spec.memory_bytes",)
    assert pending_fields(running, replace(config, memory_bytes=256)) == ("spec.memory_bytes",)
    assert pending_fields(running, replace(config, max_vcpus=8)) == ("spec.max_vcpus",)
    assert pending_fields(running, replace(config, machine="x", vcpus=1)) == ("spec.vcpus", "spec.machine")
    assert pending_fields(running, replace(config, cpu=CpuSpec(model="y"))) == ("spec.cpu.model",)
    assert set(NAMED_LISTS) <= set(GuestSpec.__dataclass_fields__)
