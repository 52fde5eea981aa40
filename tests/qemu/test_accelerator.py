"""The accelerator probe, on this machine's real accelerators."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from virtd_kvm import accelerator as module
from virtd_kvm import probe_disk
from virtd_kvm.accelerator import Accelerators

from tests.qemu.fixtures import Lab
from virtd.libvirt.xml.domain import Domain
from virtd.model.guest import Accelerator
from virtd.model.host import CapabilityLevel


async def test_probe_proves_tcg_and_judges_kvm(lab: Lab) -> None:
    facts = await lab.session.probe()
    found = {status.accelerator: status for status in facts.accelerators}
    assert found["TCG"].usable and "64-bit code to its end" in found["TCG"].reason
    assert found["KVM"].reason
    assert facts.default_accelerator == ("KVM" if found["KVM"].usable else "TCG")
    (capability,) = [entry for entry in facts.capabilities if entry.id == "host.acceleration"]
    assert (capability.level is CapabilityLevel.NATIVE) is found["KVM"].usable
    assert capability.reason == found["KVM"].reason
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert not found["KVM"].usable
    started = time.monotonic()
    assert (await lab.session.probe()).accelerators == facts.accelerators
    assert time.monotonic() - started < 1.0, "it is remembered"
    # Nothing is left, and nobody was told of the test guests.
    assert "virtd-probe" not in lab.virsh("list", "--all", "--name")
    assert "virtd-scratch" not in lab.virsh("pool-list", "--all", "--name")
    assert not [path.name for path in lab.directory.iterdir() if "scratch" in path.name]
    assert not [event for event in lab.events.seen if "probe" in event.name]
    assert facts.memory_bytes and facts.cpus == os.cpu_count()
    assert facts.architecture == os.uname().machine and any("q35" in machine for machine in facts.machines)


async def test_guest_that_executes_nothing_is_no_proof(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without code: the guest runs, its firmware runs, and that must not be enough."""
    monkeypatch.setattr(probe_disk, "image", lambda: b"\0" * (1 << 20))
    monkeypatch.setitem(module._EVIDENCE_S, Accelerator.TCG, 2.0)
    probe = Accelerators(lab.session._connections, "x86_64", str(lab.directory / "pool"))
    status = await probe.status(Accelerator.TCG, offered=True)
    assert not status.usable and "ran no 64-bit code" in status.reason


async def test_guest_that_hangs_is_removed_in_bounded_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(_domain: object, _limit: float) -> None:
        time.sleep(6)

    monkeypatch.setattr(module, "_counts", stuck)
    monkeypatch.setattr(module, "_LIMIT_S", 2.0)
    probe = Accelerators(lab.session._connections, "x86_64", str(lab.directory / "pool"))
    started = time.monotonic()
    status = await probe.status(Accelerator.TCG, offered=True)
    assert time.monotonic() - started < 5.0
    assert not status.usable and "hung" in status.reason
    assert "virtd-probe" not in lab.virsh("list", "--all", "--name")


async def test_guest_that_cannot_start_gives_the_reason(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Accelerators(lab.session._connections, "x86_64", str(lab.directory / "pool"))
    original = probe._guest
    monkeypatch.setattr(probe, "_guest", lambda *args: _with_machine(original(*args), "no-such-machine"))
    status = await probe.status(Accelerator.TCG, offered=True)
    assert not status.usable and "could not be started" in status.reason
    missing = await probe.status(Accelerator.KVM, offered=False)
    assert not missing.usable and "/dev/kvm" in missing.reason


def _with_machine(domain: Domain, machine: str) -> Domain:
    return replace(domain, boot=replace(domain.boot, machine=machine))


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="needs binutils to assemble probe.S")
def test_probe_disk_is_its_source_assembled(tmp_path: Path) -> None:
    source = Path(probe_disk.__file__).with_name("probe.S")
    subprocess.run(["as", "-o", str(tmp_path / "p.o"), str(source)], check=True)
    output = tmp_path / "p.bin"
    subprocess.run(
        ["ld", "-Ttext", "0x7c00", "--oformat", "binary", "-o", str(output), str(tmp_path / "p.o")], check=True
    )
    assert probe_disk.image()[:512] == output.read_bytes()
    assert f"ROUNDS, {probe_disk.ROUNDS}" in source.read_text()
