"""A Debian guest is set up by its specification alone: a user, a key, a host name, a file, a command."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import MIB, Virtd
from tests.guests.debian import build_debian
from virtd.v1.guest_pb2 import (
    CONDITION_STATUS_TRUE,
    CONDITION_TYPE_CLOUD_INIT_DONE,
    CloudInitFile,
    CloudInitInterface,
    CloudInitSpec,
    CloudInitUser,
    DiskSpec,
    Guest,
    GuestSpec,
    ImageSource,
    InterfaceSpec,
)

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

KEY = (
    "ssh-ed25519 "
    + base64.b64encode(b"\x00\x00\x00\x0bssh-ed25519" + b"\x00\x00\x00\x20" + bytes(32)).decode()
    + " a@b"
)
HASH = "$6$saltsalt$" + "x" * 86
SECRET = b"secret \xff content"


@pytest.fixture
def image(virtd: Virtd) -> Iterator[str]:
    """The Debian image, imported from a file of the daemon's machine."""
    client = virtd.client()
    source = virtd.directory / "import" / "debian.qcow2"
    source.parent.mkdir(exist_ok=True)
    shutil.copyfile(build_debian().disk, source)
    imported = client.images.import_("debian", str(source), "qcow2").result(timeout_s=120)
    source.unlink()
    yield imported.name
    for guest in client.guests.list():
        client.guests.delete(guest.name, force=True).result(timeout_s=60)
    client.images.delete(imported.name).result(timeout_s=30)


def spec(image: str) -> Guest:
    guest = GuestSpec(vcpus=2, memory_bytes=512 * MIB)
    guest.disks.append(DiskSpec(name="root", image=ImageSource(image=image)))
    guest.interfaces.append(InterfaceSpec(name="net0"))
    guest.cloud_init.CopyFrom(
        CloudInitSpec(
            hostname="cloudy.example.org",
            users=[
                CloudInitUser(
                    name="ada",
                    full_name="Ada Lovelace",
                    ssh_authorized_keys=[KEY],
                    password_hash=HASH,
                    sudo="ALL=(ALL) NOPASSWD:ALL",
                    groups=["adm"],
                    shell="/bin/bash",
                )
            ],
            run_commands=["echo command ran as $(id -un) > /root/ran"],
            write_files=[CloudInitFile(path="/etc/virtd-test", content=SECRET, permissions="0600")],
            interfaces=[CloudInitInterface(name="net0", dhcp4=True)],
        )
    )
    return Guest(spec=guest)


def run(client: Client, name: str, *command: str) -> str:
    result = client.agent.exec(name, command[0], command[1:], timeout_s=60)
    assert result.exit_code == 0, result.stderr.decode()
    return result.stdout.decode(errors="surrogateescape").strip()


def test_a_debian_guest_is_what_its_specification_says(virtd: Virtd, image: str) -> None:
    client = virtd.client()
    name = "hosts/kvm/guests/cloudy"
    client.guests.create("hosts/kvm", "cloudy", spec(image), start=True).result(timeout_s=120)
    with pytest.raises(errors.FailedPrecondition) as refused:
        client.images.delete(image)
    assert refused.value.reason == "IMAGE_IN_USE"

    done = client.guests.wait(name, condition="cloud-init-done", timeout_s=400)

    (condition,) = [c for c in done.status.conditions if c.type == CONDITION_TYPE_CLOUD_INIT_DONE]
    assert (condition.status, condition.reason) == (CONDITION_STATUS_TRUE, "DONE")
    assert run(client, name, "/bin/hostname") == "cloudy"
    assert run(client, name, "/bin/hostname", "--fqdn") == "cloudy.example.org"
    assert "(adm)" in run(client, name, "/usr/bin/id", "ada")
    assert run(client, name, "/bin/cat", "/home/ada/.ssh/authorized_keys") == KEY
    assert run(client, name, "/usr/bin/getent", "shadow", "ada").split(":")[1] == HASH
    assert run(client, name, "/usr/bin/getent", "passwd", "ada").split(":")[4:] == [
        "Ada Lovelace", "/home/ada", "/bin/bash",
    ]  # fmt: skip
    assert "NOPASSWD: ALL" in run(client, name, "/usr/bin/sudo", "-l", "-U", "ada")
    assert run(client, name, "/bin/cat", "/root/ran") == "command ran as root"
    assert run(client, name, "/usr/bin/stat", "-c", "%a", "/etc/virtd-test") == "600"
    assert run(client, name, "/bin/cat", "/etc/virtd-test").encode(errors="surrogateescape") == SECRET
    assert any(address.address.startswith("10.0.2.") for address in done.status.addresses)

    assert not _holds(virtd.directory, HASH.encode(), base64.b64encode(SECRET), base64.urlsafe_b64encode(SECRET))
    shown = client.guests.get(name).spec.cloud_init
    assert (shown.hostname, shown.users[0].name, shown.users[0].password_hash) == ("cloudy.example.org", "ada", "")
    assert shown.write_files[0].content == b""

    client.guests.delete(name, force=True).result(timeout_s=60)
    assert [v.name for v in client.volumes.list("hosts/kvm/pools/virtd") if "cloud" in v.name] == []


def _holds(directory: Path, *secrets: bytes) -> list[Path]:
    """Files of the daemon (its pool apart: there the seed belongs) that hold a secret, in the open or encoded."""
    files = [path for path in directory.rglob("*") if path.is_file() and "pool" not in path.parts]
    assert any(path.name == "virtd.db" for path in files)
    return [path for path in files if any(secret in path.read_bytes() for secret in secrets)]
