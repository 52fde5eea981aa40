"""Virtd's words and libvirt's: tables that every hypervisor behind libvirt shares."""

from __future__ import annotations

from typing import Final

from virtd.model.devices import (
    ClockBase,
    FilesystemKind,
    LinkState,
    NumaPolicy,
    SoundModel,
    TpmModel,
    WatchdogAction,
    WatchdogModel,
)
from virtd.model.guest import DiskFormat, InterfaceKind

AGENT_CHANNEL: Final = "org.qemu.guest_agent.0"
"""The name by which the QEMU guest agent finds its channel in the guest."""

BOOT_DEVICES: Final = {"hd": "disk", "cdrom": "cdrom", "network": "interface"}
"""Kinds of devices in ``<os><boot dev=...>`` -> what they are the first of."""
CLOCKS: Final = {ClockBase.UTC: "utc", ClockBase.LOCALTIME: "localtime"}
CPU_MODES: Final = ("host-passthrough", "host-model", "maximum")
FILESYSTEM_DRIVERS: Final = {FilesystemKind.VIRTIOFS: "virtiofs", FilesystemKind.P9: "path"}
FORMATS: Final = {DiskFormat.QCOW2: "qcow2", DiskFormat.RAW: "raw"}
INTERFACE_KINDS: Final = {InterfaceKind.USER: "user", InterfaceKind.NETWORK: "network", InterfaceKind.BRIDGE: "bridge"}
LINKS: Final = {LinkState.UP: "up", LinkState.DOWN: "down"}
NUMA_MODES: Final = {
    NumaPolicy.STRICT: "strict",
    NumaPolicy.PREFERRED: "preferred",
    NumaPolicy.INTERLEAVE: "interleave",
}
SOUND_MODELS: Final = {model: model.value.lower() for model in SoundModel}
TPM_MODELS: Final = {TpmModel.TIS: "tpm-tis", TpmModel.CRB: "tpm-crb"}
VIRTUALIZATION: Final = ("svm", "vmx")
"""The CPU features by which a guest can run a hypervisor."""
WATCHDOGS: Final = {WatchdogModel.I6300ESB: "i6300esb", WatchdogModel.ITCO: "itco"}
WATCHDOG_ACTIONS: Final = {action: action.value.lower() for action in WatchdogAction}

LIMITS: Final = {
    "total_bytes_sec": "total_bytes_per_s",
    "read_bytes_sec": "read_bytes_per_s",
    "write_bytes_sec": "write_bytes_per_s",
    "total_iops_sec": "total_requests_per_s",
    "read_iops_sec": "read_requests_per_s",
    "write_iops_sec": "write_requests_per_s",
}
"""libvirt's word for a disk's limit -> the spec's."""
