"""The fake backend as a host under test: the only one of which every check can be made."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from virtd.backend.api import ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.backend.conformance.provision import MIB, Bootable, Provision
from virtd.model.console import AgentCommand
from virtd.model.guest import Accelerator, DirectKernelBoot, DiskBus, DiskFormat, Firmware, InterfaceKind
from virtd.testing.fake import FakeBackend, FakeWorld, Worlds
from virtd.testing.fake.inside import READY


class FakeFaults:
    """See :class:`virtd.backend.conformance.provision.FaultInjector`."""

    hangable: Collection[str] = frozenset(
        {
            "guest_create",
            "guest_save_memory",
            "snapshot_copy_memory",
            "snapshot_copy_disk",
            "snapshot_restore",
            "volume_fill",
            "migration_pass",
        }
    )

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        with self._world.recording() as calls:
            yield calls

    @contextmanager
    def failing(self, call: str, nth: int) -> Iterator[None]:
        with self._world.faults.cleared():
            self._world.faults.fail(call, nth)
            yield

    @contextmanager
    def hanging(self, call: str) -> Iterator[None]:
        with self._world.faults.cleared():
            self._world.faults.hang(call)
            yield


class FakeOutside:
    """See :class:`virtd.backend.conformance.provision.Outside`."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def define_guest(self, name: str) -> UUID:
        return self._world.native.define_foreign(name)

    async def kill_guest(self, uuid: UUID) -> None:
        self._world.native.kill_guest(uuid)

    async def undefine_guest(self, uuid: UUID) -> None:
        self._world.native.undefine_foreign(uuid)


class FakeConnection:
    """See :class:`virtd.backend.conformance.provision.Connection`."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def cut(self) -> None:
        self._world.disconnect()
        await asyncio.sleep(0)

    async def restore(self) -> None:
        self._world.reconnect()


def bootable_guest(name: str, uuid: UUID, *, how: str) -> ResolvedGuest:
    disk = ResolvedDisk("root", f"/images/{name}.raw", DiskFormat.RAW, DiskBus.VIRTIO)
    data = ResolvedDisk("data", f"/images/{name}.qcow2", DiskFormat.QCOW2, DiskBus.VIRTIO)
    return ResolvedGuest(
        uuid=uuid,
        name=name,
        vcpus=1,
        memory_bytes=64 * MIB,
        accelerator=Accelerator.TCG,
        firmware=Firmware.UEFI if how == "uefi" else Firmware.BIOS,
        direct_kernel_boot=DirectKernelBoot("/images/kernel") if how == "kernel" else None,
        disks=(data,) if how == "kernel" else (disk,),
        interfaces=(ResolvedInterface("net0", InterfaceKind.USER, f"52:54:00:00:{uuid.hex[:2]}:01"),),
    )


def fake_provision(
    tmp_path: Path, uri: str = "fake:///conformance", *, label: str = "fake", golden: bool = True
) -> Provision:
    """A fake host of its own."""
    worlds = Worlds()
    path, _, query = uri.partition("?")
    peer_uri = f"{path}-peer" + (f"?{query}" if query else "")
    world = worlds.get(uri, str(tmp_path))
    return Provision(
        backend=FakeBackend(worlds),
        uri=uri,
        label=label,
        host="simulated",
        bootable=Bootable(
            guest=lambda name, uuid: bootable_guest(name, uuid, how="kernel"),
            disk_guest=lambda name, uuid: bootable_guest(name, uuid, how="disk"),
            uefi_guest=lambda name, uuid: bootable_guest(name, uuid, how="uefi"),
            ready_line=READY,
            boot_timeout_s=5,
            agent=True,
            addresses=True,
            obeys_shutdown=True,
            write_disk=lambda text: AgentCommand("/bin/tee", ("/data/marker",), input_data=text.encode()),
            read_disk=AgentCommand("/bin/cat", ("/data/marker",)),
        ),
        faults=FakeFaults(world),
        outside=FakeOutside(world),
        connection=FakeConnection(world),
        digest=world.digest,
        network_cidr="10.213.77.0/24",
        directory=tmp_path,
        peer=peer_uri,
        golden_directory=Path(__file__).parents[1] / "golden" / "fake" if golden else None,
    )
