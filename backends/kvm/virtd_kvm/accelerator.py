"""Does an accelerator really work on this host?  Run something on it and look.

What libvirt lists is no proof: ``/dev/kvm`` can exist while guests fail at once, hang for ever, or
run firmware but emulate each instruction of a 64-bit kernel.  So a tiny guest is started *through
libvirt, on that host*, that boots a disk of one sector into 64-bit mode with paging, counts, and
leaves its result in memory, where it is looked for (see :mod:`virtd_kvm.probe_disk`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID, uuid4

import libvirt

from virtd.errors import UnavailableError, VirtdError
from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.scratch import scratch_volume
from virtd.libvirt.xml.boot import Boot
from virtd.libvirt.xml.cpu import Cpu
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.domain import Domain
from virtd.model.guest import Accelerator
from virtd.model.host import AcceleratorStatus, CapabilityProvenance
from virtd_kvm import probe_disk

PROBE_PREFIX: Final = "virtd-probe-"
"""Names of probe guests begin so; lists and events leave them out."""

_KINDS: Final = {Accelerator.KVM: "kvm", Accelerator.TCG: "qemu"}
_MEMORY_BYTES: Final = 16 * 1024 * 1024
# From the start to the result: 0.3 s with KVM, about a second with TCG on a slow machine; minutes
# where instructions are emulated one by one.
_EVIDENCE_S: Final = {Accelerator.KVM: 6.0, Accelerator.TCG: 20.0}
_LIMIT_S: Final = 30.0
_CLEAN_UP_S: Final = 10.0
_POLL_S: Final = 0.05
_PC: Final = ("x86_64", "i686")


@dataclass(frozen=True, slots=True)
class _Finding:
    usable: bool
    reason: str
    provenance: CapabilityProvenance = CapabilityProvenance.PROBED


class Accelerators:
    """Probes one host's accelerators, each once a session.

    :param arch: the architecture of the guests.
    :param scratch: a directory of the host beside which a disk of 1 MiB may lie for a moment, or None.
    """

    def __init__(self, connections: HostConnections, arch: str, scratch: str | None) -> None:
        self._connections: Final = connections
        self._arch: Final = arch
        self._scratch: Final = scratch
        self._known: dict[Accelerator, AcceleratorStatus] = {}
        self._locks: Final = {accelerator: asyncio.Lock() for accelerator in _KINDS}

    async def status(self, accelerator: Accelerator, *, offered: bool) -> AcceleratorStatus:
        """Whether it works, and the proof or the reason why not.  Takes seconds the first time.

        :param offered: whether libvirt lists it: what is not even listed is not tried.
        :raises UnavailableError: HOST_UNREACHABLE (then nothing is remembered).
        """
        async with self._locks[accelerator]:
            if accelerator not in self._known:
                finding = await self._probe(accelerator) if offered else _Finding(False, _not_offered(accelerator))  # noqa: FBT003 - the field's name stands above
                self._known[accelerator] = AcceleratorStatus(
                    accelerator.value, finding.usable, finding.reason, finding.provenance
                )
            return self._known[accelerator]

    async def _probe(self, accelerator: Accelerator) -> _Finding:
        uuid = uuid4()
        guest = self._guest(accelerator, uuid)
        limit = _EVIDENCE_S[accelerator]
        try:
            return await self._connections.call(
                "virDomainCreateXML",
                lambda connection: self._try(connection, guest, limit),
                lane=LaneName.BULK,
                timeout_s=_LIMIT_S,
            )
        except UnavailableError:
            # Either the host is away, or only this guest hangs: the clean-up finds out which.
            await self._clean_up(uuid)
            return _Finding(usable=False, reason=f"a test guest hung for {_LIMIT_S:g} s and was removed")
        except VirtdError as error:
            await self._clean_up(uuid)
            said = error.record.native.message if error.record.native else error.message
            return _Finding(usable=False, reason=f"a test guest could not be started: {said}")

    def _guest(self, accelerator: Accelerator, uuid: UUID) -> Domain:
        return Domain(
            kind=_KINDS[accelerator],
            name=f"{PROBE_PREFIX}{_KINDS[accelerator]}-{uuid.hex[:8]}",
            uuid=uuid,
            memory_bytes=_MEMORY_BYTES,
            vcpus=1,
            boot=Boot(arch=self._arch, machine="pc" if self._arch in _PC else "virt"),
            cpu=Cpu(mode="host-passthrough" if accelerator is Accelerator.KVM else "maximum"),
            on_poweroff="destroy",
            on_reboot="destroy",
            on_crash="destroy",
        )

    def _try(self, connection: Any, guest: Domain, limit_s: float) -> _Finding:
        """On a worker: start, look for the result, remove."""
        if self._arch not in _PC or self._scratch is None:
            with _running(connection, guest) as domain:
                return _stays(domain)
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(scratch_volume(connection, self._scratch, probe_disk.image()))
            except libvirt.libvirtError:
                # A host without a place for the test disk: less can be proved, and that is said.
                with _running(connection, guest) as domain:
                    return _stays(domain)
            disk = Disk(target="vda", bus="virtio", path=path, format="raw", boot_order=1)
            domain = stack.enter_context(_running(connection, replace(guest, disks=(disk,))))
            return _counts(domain, limit_s)

    async def _clean_up(self, uuid: UUID) -> None:
        """Remove the test guest by another connection; its own is lost with the hung thread.

        :raises UnavailableError: HOST_UNREACHABLE, the host does not answer either.
        """

        def run(connection: Any) -> None:
            try:
                connection.lookupByUUID(uuid.bytes).destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                    raise

        await self._connections.call("virDomainDestroy", run, lane=LaneName.CHANGE, timeout_s=_CLEAN_UP_S)


@contextlib.contextmanager
def _running(connection: Any, guest: Domain) -> Any:
    # Auto-destroy: should virtd die now, the guest goes with its connection.
    domain = connection.createXML(guest.to_xml(), libvirt.VIR_DOMAIN_START_AUTODESTROY)
    try:
        yield domain
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()


def _counts(domain: Any, limit_s: float) -> _Finding:
    started = time.monotonic()
    done = 0
    while (spent := time.monotonic() - started) < limit_s:
        state, reason = domain.state()
        if state != libvirt.VIR_DOMAIN_RUNNING:
            return _Finding(
                usable=False, reason=f"a test guest did not keep running (libvirt state {state}, reason {reason})"
            )
        result = domain.memoryPeek(probe_disk.RESULT_ADDRESS, probe_disk.RESULT_LENGTH, libvirt.VIR_MEMORY_PHYSICAL)
        mark, total = int.from_bytes(result[:4], "little"), int.from_bytes(result[8:], "little")
        if mark == probe_disk.MARK:
            if total == probe_disk.SUM:
                return _Finding(usable=True, reason=f"a test guest ran 64-bit code to its end in {spent:.1f} s")
            return _Finding(usable=False, reason="a test guest ran 64-bit code with a wrong result")
        done = total
        time.sleep(_POLL_S)
    if done:
        share = min(99.9, done / probe_disk.SUM * 100)
        why = (
            f"a test guest had run only {share:.1f} % of its 64-bit code after {limit_s:g} s: instructions are emulated"
        )
    else:
        why = f"a test guest started, but ran no 64-bit code within {limit_s:g} s"
    return _Finding(usable=False, reason=why)


def _stays(domain: Any) -> _Finding:
    """Where no disk can be given, or for other architectures: it must stay up and use CPU time."""
    time.sleep(1.0)
    state, _ = domain.state()
    used = domain.getCPUStats(total=True)[0].get("cpu_time", 0) if state == libvirt.VIR_DOMAIN_RUNNING else 0
    if used:
        return _Finding(
            usable=True,
            reason="a test guest started and used CPU time; that it runs code properly could not be proved here",
            provenance=CapabilityProvenance.DECLARED,
        )
    return _Finding(usable=False, reason=f"a test guest did not keep running (libvirt state {state})")


def _not_offered(accelerator: Accelerator) -> str:
    if accelerator is Accelerator.KVM:
        return (
            "libvirt offers no KVM on this host: the CPU has no virtualization extensions, they are switched off, "
            "or /dev/kvm is missing or closed to libvirt"
        )
    return "libvirt offers no emulation on this host: QEMU is not installed"
