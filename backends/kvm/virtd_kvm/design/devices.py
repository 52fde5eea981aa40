"""The lesser devices: displays, shared directories, TPM, watchdog, USB, sound, and devices of the host."""

from __future__ import annotations

import ipaddress
from typing import Final

from virtd.backend.api import ResolvedGuest
from virtd.backend.notes import Notes
from virtd.libvirt.words import FILESYSTEM_DRIVERS, SOUND_MODELS, TPM_MODELS, WATCHDOG_ACTIONS, WATCHDOGS
from virtd.libvirt.xml.display import Graphics, Video
from virtd.libvirt.xml.filesystem import Filesystem
from virtd.libvirt.xml.inputs import Input
from virtd.libvirt.xml.sound import Sound
from virtd.libvirt.xml.tpm import Tpm
from virtd.libvirt.xml.watchdog import Watchdog
from virtd.model.devices import (
    FilesystemKind,
    FilesystemSpec,
    TpmModel,
    WatchdogModel,
)
from virtd_kvm.design.machine import is_q35
from virtd_kvm.design.platform import Platform

DEFAULT_LISTEN: Final = "127.0.0.1"
VIDEO_MODELS: Final = ("vga", "virtio", "qxl", "bochs", "cirrus", "ramfb", "none")
_ITCO_SINCE: Final = (9, 1, 0)


def graphics_of(guest: ResolvedGuest, platform: Platform, notes: Notes) -> tuple[Graphics, ...]:
    """``<graphics>``."""
    if guest.graphics is None or not guest.graphics.vnc:
        return ()
    if platform.test:
        notes.reject("spec.graphics", "libvirt's test driver has no displays that can be connected to")
        return ()
    listen = guest.graphics.listen or DEFAULT_LISTEN
    try:
        ipaddress.ip_address(listen)
    except ValueError:
        notes.reject("spec.graphics.listen", f"{listen!r} is not an IP address", DEFAULT_LISTEN, "::1")
    return (Graphics(listen=listen),)


def videos_of(guest: ResolvedGuest, platform: Platform, notes: Notes) -> tuple[Video, ...]:
    """``<video>``: as asked, or what every system can show where there is a display."""
    asked = guest.graphics.video_model if guest.graphics is not None else ""
    shown = guest.graphics is not None and guest.graphics.vnc and not platform.test
    if not asked:
        return (Video("vga" if platform.pc else "virtio"),) if shown else ()
    known = platform.video_models or VIDEO_MODELS
    if asked not in known:
        notes.reject("spec.graphics.video_model", f"guests of this host cannot have a video card {asked!r}", *known)
    return (Video(asked),)


def filesystems_of(guest: ResolvedGuest, platform: Platform, notes: Notes) -> tuple[Filesystem, ...]:
    """``<filesystem>``."""
    for index, filesystem in enumerate(guest.filesystems):
        if filesystem.read_only and filesystem.kind is FilesystemKind.VIRTIOFS and not platform.test:
            reason = "libvirt cannot make virtiofs read-only"
            notes.reject(f"spec.filesystems[{index}].read_only", reason, FilesystemKind.P9.value)
    return tuple(map(filesystem_device, guest.filesystems))


def filesystem_device(filesystem: FilesystemSpec) -> Filesystem:
    """One ``<filesystem>``."""
    virtiofs = filesystem.kind is FilesystemKind.VIRTIOFS
    return Filesystem(
        tag=filesystem.name,
        path=filesystem.path,
        driver=FILESYSTEM_DRIVERS[filesystem.kind],
        read_only=filesystem.read_only,
        # mapped: owners and modes that the guest sets are kept beside the file, so QEMU needs no rights.
        access="passthrough" if virtiofs else "mapped",
    )


def tpm_of(guest: ResolvedGuest, platform: Platform) -> Tpm | None:
    """``<tpm>``, by swtpm."""
    if guest.tpm is None:
        return None
    model = guest.tpm.model or (TpmModel.CRB if platform.pc else TpmModel.TIS)
    return Tpm(TPM_MODELS[model])


def watchdog_of(guest: ResolvedGuest, platform: Platform, machine: str, notes: Notes) -> Watchdog | None:
    """``<watchdog>``."""
    spec = guest.watchdog
    if spec is None:
        return None
    if spec.model is WatchdogModel.ITCO and not platform.test:
        other = WatchdogModel.I6300ESB.value
        if not is_q35(machine):
            notes.reject("spec.watchdog.model", f"ITCO is part of the machine q35, not of {machine}", other)
        elif platform.version < _ITCO_SINCE:
            has = ".".join(map(str, platform.version))
            notes.reject("spec.watchdog.model", f"ITCO needs libvirt 9.1, the host has {has}", other)
    return Watchdog(WATCHDOGS[spec.model], WATCHDOG_ACTIONS[spec.action])


def inputs_of(guest: ResolvedGuest) -> tuple[Input, ...]:
    """``<input>``, the USB ones."""
    if guest.usb is None:
        return ()
    return tuple(
        Input(kind) for kind, wanted in (("tablet", guest.usb.tablet), ("keyboard", guest.usb.keyboard)) if wanted
    )


def sound_of(guest: ResolvedGuest) -> Sound | None:
    """``<sound>``."""
    return None if guest.sound is None else Sound(SOUND_MODELS[guest.sound.model])


def needs_usb(guest: ResolvedGuest) -> bool:
    """Whether a USB controller is needed that takes every device."""
    return bool(inputs_of(guest)) or any(device.usb is not None for device in guest.host_devices)
