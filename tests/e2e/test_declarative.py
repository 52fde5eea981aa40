"""Guests as documents, on real QEMU: applied, changed live by editing the file, exported, edited."""

from __future__ import annotations

import json
import os
import stat
import subprocess

import pytest

from tests.e2e.conftest import BIN, Virtd
from tests.guests import CMDLINE

pytestmark = pytest.mark.qemu


def document(virtd: Virtd, **changes: object) -> str:
    """A guest that boots, as a person would write it (JSON is YAML)."""
    spec: dict[str, object] = {
        "memory_bytes": "192MiB",
        "max_memory_bytes": "256MiB",
        "vcpus": 1,
        "max_vcpus": 2,
        "direct_kernel_boot": {
            "kernel_path": str(virtd.guest.kernel),
            "initrd_path": str(virtd.guest.initrd),
            "command_line": CMDLINE,
        },
        "disks": [{"name": "data", "blank": {"capacity_bytes": "16MiB"}}],
        "interfaces": [{"name": "net0", "kind": "user"}],
    }
    spec |= changes
    metadata = {"name": "declared", "host": "kvm", "labels": {"by": "file"}}
    return json.dumps({"apiVersion": "virtd.v1", "kind": "Guest", "metadata": metadata, "spec": spec}, indent=2)


def current_memory_kib(virtd: Virtd) -> int:
    found = dict(line.split(":", 1) for line in virtd.virsh("dominfo", "declared").splitlines() if ":" in line)
    return int(found["Used memory"].split()[0])


def test_a_guest_from_a_file_is_changed_by_editing_the_file(virtd: Virtd) -> None:
    file = virtd.directory / "declared.yaml"
    file.write_text(document(virtd))

    new = virtd.guestctl("diff", "-f", str(file))
    assert new.returncode == 10, new.stderr
    assert "created" in new.stdout

    made = virtd.guestctl("apply", "-f", str(file), "--start")
    assert made.returncode == 0, made.stderr
    assert "created and started" in made.stderr
    client = virtd.client()
    name = "hosts/kvm/guests/declared"
    client.guests.wait(name, condition="agent-ready", timeout_s=180)

    again = virtd.guestctl("apply", "-f", str(file))
    assert again.returncode == 0, again.stderr
    assert "unchanged" in again.stderr
    generation = client.guests.get(name).generation

    # Memory within the ceiling, a second CPU, a second disk: all of it in the running guest.
    started = virtd.virsh("domid", "declared")
    disks = [
        {"name": "data", "blank": {"capacity_bytes": "16MiB"}},
        {"name": "more", "blank": {"capacity_bytes": "8MiB"}, "serial": "MORE"},
    ]
    file.write_text(document(virtd, memory_bytes="160MiB", vcpus=2, disks=disks))
    seen = virtd.guestctl("diff", "-f", str(file), "-o", "json")
    assert seen.returncode == 10, seen.stderr
    effects = {item["field"]: item["effect"] for item in json.loads(seen.stdout)["items"]}
    assert effects["spec.memory_bytes"] == "UPDATE_EFFECT_LIVE"
    assert effects["spec.vcpus"] == "UPDATE_EFFECT_LIVE"
    assert set(effects.values()) == {"UPDATE_EFFECT_LIVE"}, effects
    changed = virtd.guestctl("apply", "-f", str(file))
    assert changed.returncode == 0, changed.stderr
    assert virtd.virsh("domid", "declared") == started, "it was not restarted"
    inside = client.agent.exec(name, "/bin/sh", ["-c", "ls /sys/block; ls -d /sys/devices/system/cpu/cpu1"])
    assert b"cpu1" in inside.stdout, inside
    assert inside.stdout.count(b"vd") + inside.stdout.count(b"sd") >= 2, inside
    assert client.guests.get(name).generation > generation
    unchanged = virtd.guestctl("diff", "-f", str(file))
    assert unchanged.returncode == 0, unchanged.stdout

    # What cannot be changed in a running guest waits, and is said to.
    file.write_text(document(virtd, memory_bytes="160MiB", vcpus=2, disks=disks, firmware="bios", rng=False))
    pending = virtd.guestctl("apply", "-f", str(file))
    assert pending.returncode == 0, pending.stderr
    assert "waits for the next start: spec.rng" in pending.stderr

    # What is exported is what was applied.
    exported = virtd.guestctl("export", "declared")
    assert exported.returncode == 0, exported.stderr
    out = virtd.directory / "exported.yaml"
    out.write_text(exported.stdout)
    same = virtd.guestctl("diff", "-f", str(out))
    assert same.returncode == 0, same.stdout + same.stderr

    # And in an editor.
    editor = virtd.directory / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/by: file/by: hand/; s/160MiB/192MiB/" "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(
        [str(BIN / "guestctl"), "--target", virtd.target, "edit", "declared"],
        env=os.environ | {"EDITOR": str(editor), "XDG_CONFIG_HOME": str(virtd.directory)},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    edited = client.guests.get(name)
    assert dict(edited.labels) == {"by": "hand"}
    assert edited.spec.memory_bytes == 192 << 20


def test_several_documents_each_with_its_own_fate(virtd: Virtd) -> None:
    file = virtd.directory / "several.yaml"
    small = {"memory_bytes": "32MiB", "direct_kernel_boot": None}
    documents = []
    for name, vcpus in (("one", 1), ("bad", 100_000), ("two", 1)):
        found = json.loads(document(virtd))
        found["metadata"]["name"] = name
        found["spec"] = {"memory_bytes": small["memory_bytes"], "vcpus": vcpus}
        documents.append(json.dumps(found))
    file.write_text("\n---\n".join(documents))
    done = virtd.guestctl("apply", "-f", str(file))
    assert done.returncode == 8, done.stderr
    assert "vcpus" in done.stderr
    names = {guest.name.rpartition("/")[2] for guest in virtd.client().guests.list().guests}
    assert {"one", "two"} <= names
    assert "bad" not in names


def test_names_are_completed_from_the_daemon(virtd: Virtd) -> None:
    virtd.client().guests.create("hosts/kvm", "completed", virtd.spec(boots=False, disk=False)).result(timeout_s=60)
    environment = os.environ | {
        "_GUESTCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "guestctl start com",
        "COMP_CWORD": "2",
        "VIRTD_TARGET": virtd.target,
        "XDG_CONFIG_HOME": str(virtd.directory),
    }
    done = subprocess.run([str(BIN / "guestctl")], env=environment, capture_output=True, text=True, check=False)
    assert "completed" in done.stdout, done.stderr
