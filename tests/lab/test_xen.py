"""The whole life of a PV, a PVH and an HVM guest on a real Xen host, through the public API.

Each is made, boots to its ready line, is paused, suspended, changed by somebody else past virtd, rebooted, shut
down and deleted; and the control domain can be reached by none of that.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from virtd_client import Client, errors

from tests.lab.daemon import FILES, MIB, XEN_CMDLINE, LabVirtd, Shell, kernel_guest, serving
from virtd.v1 import capability_pb2 as c
from virtd.v1 import event_pb2 as e
from virtd.v1 import guest_pb2 as g
from virtd.v1 import host_pb2 as h
from virtd.v1.guest_service_pb2 import UpdatePlan

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

HOST = "hosts/xen"
BRIDGE = "xenbr0"
START_S = 300.0
TYPES = {"xenpv": "PV", "xenpvh": "PVH", "xenfv": "HVM"}


@pytest.fixture(scope="module")
def virtd(lab_xen: Any) -> Iterator[LabVirtd]:
    with serving({"xen": lab_xen.uri}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(virtd: LabVirtd) -> Client:
    return virtd.client()


@dataclass
class Running:
    """A guest that runs."""

    machine: str
    name: str
    client: Client
    shell: Shell

    @property
    def short(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def state(self) -> int:
        return self.client.guests.get(self.name).status.state

    def seen(self) -> str:
        """All that the console has shown."""
        return self.client.console.read_log(self.name).data.decode(errors="replace").replace("\r", "")

    def ticks(self) -> int:
        return len(re.findall(r"^tick\b", self.seen(), re.MULTILINE))

    def goes_on(self) -> None:
        before = self.ticks()
        until(lambda: self.ticks() > before, "the guest does not go on")


def wanted(machine: str) -> g.Guest:
    bridge = g.InterfaceSpec(name="net0", kind=g.INTERFACE_KIND_BRIDGE, network=BRIDGE)
    if machine == "xenfv":
        guest = g.Guest(spec=g.GuestSpec(memory_bytes=64 * MIB))
        image = g.HostFileSource(path=f"{FILES}/hvm.img", format=g.DISK_FORMAT_RAW)
        guest.spec.disks.append(g.DiskSpec(name="root", host_file=image, bus=g.DISK_BUS_IDE))
        guest.spec.graphics.vnc = True
    else:
        guest = kernel_guest(128, kernel="vmlinux", initrd="guest-initrd.img", command_line=XEN_CMDLINE)
        blank = g.BlankSource(capacity_bytes=8 * MIB, format=g.DISK_FORMAT_RAW)
        guest.spec.disks.append(g.DiskSpec(name="data", blank=blank))
    if machine != "xenpvh":
        guest.spec.machine = machine  # it is what a kernel gets without a word
    guest.spec.interfaces.append(bridge)
    return guest


@pytest.fixture(scope="module", params=TYPES)
def running(client: Client, request: pytest.FixtureRequest) -> Iterator[Running]:
    """One booted guest of each type for the tests of this file, which pass it on from one to the next."""
    machine = request.param
    name = client.guests.create(HOST, f"life-{machine}", wanted(machine), start=True).result(timeout_s=START_S).name
    shell = Shell(client, name)
    try:
        shell.wait(rf"(GUEST|HVM)-READY.*\b{TYPES[machine]}\b|HVM-READY")
        yield Running(machine, name, client, shell)
    finally:
        if any(guest.name == name for guest in client.guests.list(HOST)):
            client.guests.delete(name, force=True).result(timeout_s=120)


def until(check: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def test_it_is_what_was_asked_for(virtd: LabVirtd, running: Running) -> None:
    guest = running.client.guests.get(running.name)
    assert guest.spec.machine == running.machine
    assert guest.status.accelerator == g.ACCELERATOR_NATIVE
    assert guest.status.state == g.GUEST_STATE_RUNNING
    assert f"machine='{running.machine}'" in virtd.virsh("xen", "dumpxml", running.short)


def test_pause_and_resume(virtd: LabVirtd, running: Running) -> None:
    running.client.guests.pause(running.name).result(timeout_s=60)
    assert running.state == g.GUEST_STATE_PAUSED
    assert virtd.virsh("xen", "domstate", running.short).strip() == "paused"
    running.client.guests.resume(running.name).result(timeout_s=60)
    assert running.state == g.GUEST_STATE_RUNNING
    running.goes_on()


def test_a_paused_guest_is_not_suspended(running: Running) -> None:
    """Its own system has to do its part."""
    running.client.guests.pause(running.name).result(timeout_s=60)
    with pytest.raises(errors.FailedPrecondition) as refused:
        running.client.guests.suspend(running.name).result(timeout_s=60)
    assert "resume it" in refused.value.message
    assert running.state == g.GUEST_STATE_PAUSED
    running.client.guests.resume(running.name).result(timeout_s=60)


def test_a_disk_and_an_interface_go_in_and_out(lab_xen: Any, running: Running) -> None:
    """By Xen's own word; what the guest sees of it is looked at in ``test_xen_update``."""

    def held() -> tuple[int, int]:
        disks, interfaces = (lab_xen.run(f"xl {what}-list {running.short}") for what in ("block", "network"))
        return len(disks.splitlines()), len(interfaces.splitlines())

    disks, interfaces = held()
    devices = running.client.devices
    blank = g.BlankSource(capacity_bytes=MIB, format=g.DISK_FORMAT_RAW)
    devices.attach_disk(running.name, g.DiskSpec(name="extra", blank=blank)).result(timeout_s=180)
    second = g.InterfaceSpec(name="second", kind=g.INTERFACE_KIND_BRIDGE, network=BRIDGE)
    devices.attach_interface(running.name, second).result(timeout_s=180)
    assert held() == (disks + 1, interfaces + 1)
    devices.detach_interface(running.name, "second").result(timeout_s=180)
    devices.detach_disk(running.name, "extra", delete_volume=True).result(timeout_s=180)
    assert held() == (disks, interfaces)
    assert not running.client.guests.get(running.name).status.pending_restart_fields


def test_suspend_and_restore(virtd: LabVirtd, running: Running) -> None:
    """What runs in the guest goes on where it was: it does not boot anew."""
    boots = len(re.findall("READY", running.seen()))
    running.client.guests.suspend(running.name).result(timeout_s=180)
    assert running.state == g.GUEST_STATE_SUSPENDED
    assert virtd.virsh("xen", "domstate", running.short).strip() == "shut off"
    running.client.guests.start(running.name).result(timeout_s=START_S)
    assert running.state == g.GUEST_STATE_RUNNING
    running.goes_on()
    assert len(re.findall("READY", running.seen())) == boots


def test_metrics(running: Running) -> None:
    def sample() -> Any:
        found = running.client.metrics.get(HOST)
        return next((entry for entry in found if entry.name == running.name), None)

    until(lambda: sample() is not None, "no sample of the guest")
    first = sample()
    assert first.memory_assigned_bytes >= 32 * MIB
    assert first.vcpus == 1
    assert [entry.name[:3] for entry in first.interfaces] == ["vif"]
    if running.machine != "xenfv":  # its disk is QEMU's
        assert [entry.name for entry in first.blocks] == ["xvda"]
    until(lambda: sample().cpu_time_s > first.cpu_time_s, "the guest uses no CPU time", 90)


def test_what_others_do_is_seen(virtd: LabVirtd, running: Running) -> None:
    filter_ = f"type=GUEST_STATE_CHANGED AND resource={running.name}"
    with running.client.events.watch(filter_) as watch:
        virtd.virsh("xen", "suspend", running.short)
        virtd.virsh("xen", "resume", running.short)
        states: list[str] = []
        for item in watch:
            assert isinstance(item, e.Event)
            states.append(item.attributes["state"])
            if states[-1] == "RUNNING":
                break
    assert states == ["PAUSED", "RUNNING"]


def test_reboot(lab_xen: Any, virtd: LabVirtd, running: Running) -> None:
    boots = len(re.findall("READY", running.seen()))
    before = virtd.virsh("xen", "domid", running.short)
    done = running.client.guests.reboot(running.name)
    done.result(timeout_s=START_S)
    log = lab_xen.run("tail -n 12 /var/log/libvirt/libxl/libxl-driver.log; xl list")
    assert running.state == g.GUEST_STATE_RUNNING, virtd.virsh("xen", "domstate", "--reason", running.short) + log
    assert virtd.virsh("xen", "domid", running.short) != before, "Xen starts a domain anew"
    until(lambda: len(re.findall("READY", running.seen())) == boots + 1, "the guest does not boot again", 240)


def test_a_reboot_from_inside_is_no_end(running: Running) -> None:
    """libxl reports it as a start and then an end: the guest must not be taken for stopped."""
    boots = len(re.findall("READY", running.seen()))
    with running.client.events.watch(f"resource={running.name}") as watch:
        with running.client.console.attach(running.name, take=True) as session:
            session.write(b"r" if running.machine == "xenfv" else b"reboot -f\n")
        for item in watch:
            assert isinstance(item, e.Event)
            assert item.attributes.get("state") != "STOPPED"
            if item.type == e.EVENT_TYPE_GUEST_REBOOTED:
                break
    until(lambda: len(re.findall("READY", running.seen())) == boots + 1, "the guest does not boot again", 240)
    assert running.state == g.GUEST_STATE_RUNNING


def test_shutdown_and_delete(virtd: LabVirtd, running: Running) -> None:
    running.client.guests.shutdown(running.name, timeout_s=120).result(timeout_s=180)
    assert running.state == g.GUEST_STATE_STOPPED
    running.client.guests.delete(running.name).result(timeout_s=120)
    assert running.short not in virtd.virsh("xen", "list", "--all", "--name").split()
    with pytest.raises(errors.NotFound):
        running.client.guests.get(running.name)


def test_a_guest_that_still_boots_is_waited_for(client: Client) -> None:
    """Suspended right after its start: as soon as its kernel hears Xen.  What it does goes on afterwards."""
    wanted = kernel_guest(96, kernel="vmlinux", initrd="guest-initrd.img", command_line=XEN_CMDLINE)
    name = client.guests.create(HOST, "early", wanted, start=True).result(timeout_s=START_S).name
    try:
        client.guests.suspend(name).result(timeout_s=240)
        assert client.guests.get(name).status.state == g.GUEST_STATE_SUSPENDED
        client.guests.start(name).result(timeout_s=START_S)
        Shell(client, name).wait(r"GUEST-READY.*\bPVH\b")
    finally:
        client.guests.delete(name, force=True).result(timeout_s=120)


# ----------------------------------------------------------------------------------------- the host


FOREIGN = f"""<domain type='xen'><name>foreign</name><uuid>{{uid}}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type machine='xenpvh'>xenpvh</type><kernel>{FILES}/vmlinux</kernel><initrd>{FILES}/guest-initrd.img</initrd></os>
<devices><disk type='file' device='disk'><driver name='phy' type='raw'/><source file='{FILES}/data2.img'/>
<target dev='xvda' bus='xen'/></disk>
<interface type='bridge'><mac address='00:16:3e:12:34:56'/><source bridge='{BRIDGE}'/><script path='vif-route'/>
</interface>
<console type='pty'><target type='xen' port='0'/></console></devices></domain>"""


def test_a_guest_of_others_is_adopted_and_released_untouched(virtd: LabVirtd, client: Client) -> None:
    uid = str(uuid.uuid4())
    definition = virtd.directory / "foreign.xml"
    definition.write_text(FOREIGN.format(uid=uid))
    virtd.virsh("xen", "define", str(definition))
    name = f"{HOST}/guests/foreign"
    try:
        client.guests.wait(name, state="stopped", timeout_s=60)
        before = virtd.virsh("xen", "dumpxml", "foreign")
        with pytest.raises(errors.FailedPrecondition) as refused:
            client.guests.start(name)
        assert refused.value.reason == "GUEST_NOT_ADOPTED"
        adopted = client.guests.adopt(name).result(timeout_s=60)
        assert adopted.uid == uid
        assert adopted.status.origin == g.ORIGIN_MANAGED
        assert adopted.spec.machine == "xenpvh"
        assert adopted.spec.memory_bytes == 64 * MIB
        assert adopted.spec.direct_kernel_boot.kernel_path == f"{FILES}/vmlinux"
        assert adopted.spec.disks[0].host_file.path == f"{FILES}/data2.img"
        assert adopted.spec.interfaces[0].mac == "00:16:3e:12:34:56"
        assert any("script" in part for part in adopted.status.unmodelled), adopted.status.unmodelled
        # What a document of it says is the guest as it is.
        planned = client.guests.change(adopted, ["spec"], validate_only=True).plan
        assert isinstance(planned, UpdatePlan)
        assert not planned.changes
        released = client.guests.release(name).result(timeout_s=60)
        assert released.status.origin == g.ORIGIN_FOREIGN
        assert virtd.virsh("xen", "dumpxml", "foreign") == before
    finally:
        virtd.virsh("xen", "undefine", "foreign")


def test_a_guest_of_xl_is_not_seen_and_that_is_said(lab_xen: Any, virtd: LabVirtd, client: Client) -> None:
    options = f"'name=\"by-xl\"' 'type=\"pvh\"' 'kernel=\"{FILES}/vmlinux\"' 'memory=96'"
    lab_xen.run(f"xl create -p -q /dev/null {options}", 120)
    try:
        assert "by-xl" in lab_xen.run("xl list")
        assert "by-xl" not in virtd.virsh("xen", "list", "--all", "--name").split()
        assert not [guest for guest in client.guests.list(HOST) if guest.name.endswith("by-xl")]
    finally:
        lab_xen.run("xl destroy by-xl", 120)
    adopt = next(entry for entry in client.hosts.get(HOST).facts.capabilities if entry.id == "guest.adopt")
    assert adopt.level == c.CAPABILITY_LEVEL_PARTIAL
    assert "xl create" in adopt.reason


def test_the_doctor(client: Client) -> None:
    found = {check.id: check for check in client.hosts.diagnose(HOST)}
    for id_ in ("xen.hypervisor", "xen.guests", "xen.control_domain", "xen.memory"):
        assert found[id_].status == h.CHECK_STATUS_OK, found[id_]
    assert "xenpv, xenpvh, xenfv" in found["xen.guests"].summary
    assert "CPU pools" in found["xen.cpu_pools"].summary


def test_the_control_domain_is_the_host_and_no_guest(virtd: LabVirtd, client: Client) -> None:
    assert "Domain-0" in virtd.virsh("xen", "list", "--name")
    assert not [guest for guest in client.guests.list(HOST) if "omain-0" in guest.name]
    control = client.hosts.probe(HOST).facts.control_domain
    assert control.name == "Domain-0"
    assert control.vcpus >= 1
    assert control.memory_bytes >= 256 * MIB
    for name in ("Domain-0", "domain-0", "00000000-0000-0000-0000-000000000000"):
        for call in (
            client.guests.get,
            client.guests.stop,
            client.guests.pause,
            client.guests.delete,
            client.guests.adopt,
        ):
            with pytest.raises((errors.NotFound, errors.InvalidArgument)):
                call(f"{HOST}/guests/{name}")
    assert virtd.virsh("xen", "domstate", "Domain-0").strip() == "running"


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("accelerator", {"accelerator": g.ACCELERATOR_KVM}, "guest.spec.accelerator", "no accelerator KVM"),
    ("machine", {"machine": "q35"}, "guest.spec.machine", "no machine type"),
    ("firmware", {"firmware": g.FIRMWARE_UEFI}, "guest.spec.firmware", "OVMF"),
    ("tpm", {"tpm": g.TpmSpec()}, "guest.spec.tpm", "vtpm"),
]


@pytest.mark.parametrize(("fields", "path", "why"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_is_refused(client: Client, fields: dict[str, Any], path: str, why: str) -> None:
    guest = wanted("xenpvh")
    guest.spec.MergeFrom(g.GuestSpec(**fields))
    with pytest.raises(errors.VirtdError) as caught:
        client.guests.create(HOST, "refused", guest).result(timeout_s=60)
    assert why in str(caught.value)
    assert path in {violation.field for violation in caught.value.violations}
    assert not [found for found in client.guests.list(HOST) if found.name.endswith("/refused")]


def test_interfaces_and_displays_that_cannot_be(client: Client) -> None:
    guest = wanted("xenpvh")
    guest.spec.interfaces[0].CopyFrom(g.InterfaceSpec(name="net0", kind=g.INTERFACE_KIND_USER))
    guest.spec.graphics.vnc = True
    with pytest.raises(errors.InvalidArgument) as caught:
        client.guests.create(HOST, "refused", guest).result(timeout_s=60)
    fields = {violation.field: violation.description for violation in caught.value.violations}
    assert "user-mode network" in fields["guest.spec.interfaces[0].kind"]
    assert "no framebuffer" in fields["guest.spec.graphics"]


def test_what_libvirt_lacks_says_whose_limit_it_is(client: Client) -> None:
    found = {entry.id: entry for entry in client.hosts.get(HOST).facts.capabilities}
    assert found["guest.agent.exec"].level == c.CAPABILITY_LEVEL_UNSUPPORTED
    for id_ in ("guest.agent.exec", "guest.tpm", "guest.filesystem.9p"):
        assert "libvirt's libxl driver" in found[id_].reason
        assert "Xen itself" in found[id_].reason
    kinds = {kind.machine: {entry.id: entry.level for entry in kind.capabilities} for kind in
             client.hosts.get(HOST).facts.guest_kinds}  # fmt: skip
    assert set(kinds) == set(TYPES)
    assert kinds["xenfv"]["guest.reboot"] == c.CAPABILITY_LEVEL_EMULATED
    assert kinds["xenpvh"]["guest.console.graphical"] == c.CAPABILITY_LEVEL_UNSUPPORTED
