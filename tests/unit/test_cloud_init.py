"""Cloud-init: what is refused, what the seed holds, and that no secret lies about."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pycdlib
import pytest
import yaml

from tests.support.daemons import HOST, Lab, blank, call, running_lab, short_directory, spec
from virtd.errors import InvalidArgumentError
from virtd.model.cloud_init import CloudInitFile, CloudInitInterface, CloudInitSpec, CloudInitUser
from virtd.model.guest import ConditionType, DiskDevice, InterfaceSpec
from virtd.model.operation import OperationState
from virtd.service.cloud_init import SEED_MAX, check_cloud_init, without_secrets
from virtd.service.cloud_seed import build_seed, meta_data, network_config, user_data
from virtd.service.guests import GuestDraft
from virtd.service.seeds import tidy_seeds
from virtd.service.validate import Violations

BLOB = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(32)
RENAMED = f"ssh-rsa {base64.b64encode(BLOB).decode()}"
KEY = f"ssh-ed25519 {base64.b64encode(BLOB).decode()} a@b"
HASH = "$6$saltsalt$" + "x" * 86
UID = UUID("00000000-0000-0000-0000-000000000001")


def wrong(seed: CloudInitSpec) -> dict[str, str]:
    """What is wrong with it, by field, for a guest with the interface net0."""
    found = Violations()
    check_cloud_init(found, spec(interfaces=(InterfaceSpec("net0"),), cloud_init=seed), "spec")
    return {violation.field.removeprefix("spec.cloud_init"): violation.description for violation in found.found}


def user(**changes: Any) -> CloudInitSpec:
    return CloudInitSpec(users=(CloudInitUser(**{"name": "ada", **changes}),))


def interface(**changes: Any) -> CloudInitSpec:
    return CloudInitSpec(interfaces=(CloudInitInterface(**{"name": "net0", "dhcp4": True, **changes}),))


def file(**changes: Any) -> CloudInitSpec:
    return CloudInitSpec(write_files=(CloudInitFile(**{"path": "/etc/x", **changes}),))


GOOD = CloudInitSpec(
    hostname="web.example.org",
    users=(CloudInitUser("ada", "Ada", (KEY,), HASH, "ALL=(ALL) NOPASSWD:ALL", ("adm", "www-data"), "/bin/bash"),),
    ssh_authorized_keys=(KEY,),
    packages=("nginx", "libc6=2.36-9+deb12u4"),
    run_commands=("echo one\necho two",),
    write_files=(CloudInitFile("/etc/x", b"\xff\x00", "0600", "ada:adm"), CloudInitFile("/etc/y")),
    interfaces=(
        CloudInitInterface(
            "net0", addresses=("192.0.2.10/24", "2001:db8::10/64"), gateway4="192.0.2.1", gateway6="fe80::1",
            nameservers=("192.0.2.53",), search_domains=("example.org",),
        ),
    ),
    timezone="Europe/Berlin",
    locale="en_GB.UTF-8",
    ssh_password_authentication=False,
)  # fmt: skip


def test_what_is_right_is_taken() -> None:
    assert wrong(GOOD) == {}
    for text in ("#cloud-config\nusers: []\n", "#!/bin/sh\necho hello\n", "#cloud-config\n", "## template: jinja\nx"):
        assert wrong(CloudInitSpec(hostname="h", user_data=text)) == {}


@pytest.mark.parametrize(
    ("seed", "field", "words"),
    [
        (CloudInitSpec(hostname="under_score"), ".hostname", "not a host name"),
        (CloudInitSpec(hostname="-x"), ".hostname", "not a host name"),
        (CloudInitSpec(hostname="a..b"), ".hostname", "not a host name"),
        (CloudInitSpec(hostname="x" * 64), ".hostname", "not a host name"),
        (CloudInitSpec(hostname="a\nb"), ".hostname", "not a host name"),
        (user(name="Ada"), ".users[0].name", "login name"),
        (user(name="root:x"), ".users[0].name", "login name"),
        (user(name=""), ".users[0].name", "login name"),
        (CloudInitSpec(users=(CloudInitUser("a"), CloudInitUser("a"))), ".users[1].name", "twice"),
        (CloudInitSpec(users=(CloudInitUser("a"),) * 33), ".users", "at most 32"),
        (user(full_name="a:b"), ".users[0].full_name", "':'"),
        (user(ssh_authorized_keys=("ssh-ed25519",)), ".users[0].ssh_authorized_keys[0]", "OpenSSH public key"),
        (user(ssh_authorized_keys=("ssh-ed25519 !!!",)), ".users[0].ssh_authorized_keys[0]", "base64"),
        (user(ssh_authorized_keys=(RENAMED,)), ".users[0].ssh_authorized_keys[0]", "cut"),
        (user(ssh_authorized_keys=(KEY + "\nssh-rsa x",)), ".users[0].ssh_authorized_keys[0]", "one line"),
        (user(ssh_authorized_keys=("command=x " + KEY,)), ".users[0].ssh_authorized_keys[0]", "OpenSSH public key"),
        (CloudInitSpec(ssh_authorized_keys=("BEGIN PRIVATE KEY",)), ".ssh_authorized_keys[0]", "private"),
        (CloudInitSpec(ssh_authorized_keys=(KEY,) * 65), ".ssh_authorized_keys", "at most 64"),
        (user(password_hash="hunter2"), ".users[0].password_hash", "not a crypt"),
        (user(password_hash="$1$abcdefgh$xxxxxxxxxxxxxxxxxxxxxx"), ".users[0].password_hash", "MD5"),
        (user(password_hash=HASH + ":0"), ".users[0].password_hash", "not a crypt"),
        (user(sudo="ALL=(ALL) ALL\nx"), ".users[0].sudo", "one line"),
        (user(groups=("a,b",)), ".users[0].groups[0]", "group"),
        (user(shell="bash"), ".users[0].shell", "absolute"),
        (CloudInitSpec(packages=("a b",)), ".packages[0]", "package"),
        (CloudInitSpec(packages=("-o=x",)), ".packages[0]", "package"),
        (CloudInitSpec(packages=("a",) * 257), ".packages", "at most 256"),
        (CloudInitSpec(run_commands=(" ",)), ".run_commands[0]", "1 to"),
        (CloudInitSpec(run_commands=("a\0b",)), ".run_commands[0]", "control"),
        (file(path="etc/x"), ".write_files[0].path", "absolute"),
        (file(path="/etc/../x"), ".write_files[0].path", "'..'"),
        (file(path="/etc/"), ".write_files[0].path", "absolute"),
        (CloudInitSpec(write_files=(CloudInitFile("/a"), CloudInitFile("/a"))), ".write_files[1].path", "twice"),
        (file(content=b"x" * (2**20 + 1)), ".write_files[0].content", "at most 1048576"),
        (file(permissions="rwx"), ".write_files[0].permissions", "octal"),
        (file(permissions="0999"), ".write_files[0].permissions", "octal"),
        (file(owner="a:b:c"), ".write_files[0].owner", "user:group"),
        (CloudInitSpec(write_files=tuple(CloudInitFile(f"/{n}", b"x" * 2**20) for n in range(9))), "", str(SEED_MAX)),
        (interface(name="net9"), ".interfaces[0].name", "not an interface"),
        (interface(dhcp4=False), ".interfaces[0]", "nothing"),
        (interface(addresses=("192.0.2.1",)), ".interfaces[0].addresses[0]", "prefix"),
        (interface(addresses=("192.0.2.300/24",)), ".interfaces[0].addresses[0]", "prefix"),
        (interface(gateway4="192.0.2.1"), ".interfaces[0].gateway4", "none of the networks"),
        (interface(gateway4="fe80::1"), ".interfaces[0].gateway4", "not an IPv4"),
        (interface(gateway6="x"), ".interfaces[0].gateway6", "not an IP address"),
        (interface(nameservers=("dns",)), ".interfaces[0].nameservers[0]", "not an IP"),
        (interface(search_domains=("a b",)), ".interfaces[0].search_domains[0]", "host name"),
        (CloudInitSpec(interfaces=(CloudInitInterface("net0", True),) * 2), ".interfaces[1].name", "twice"),
        (CloudInitSpec(timezone="../etc"), ".timezone", "time zone"),
        (CloudInitSpec(locale="a b"), ".locale", "locale"),
        (CloudInitSpec(user_data="hello"), ".user_data", "must begin"),
        (CloudInitSpec(user_data="#cloud-config\na: [b\n"), ".user_data", "line"),
        (CloudInitSpec(user_data="#cloud-config\n- a\n"), ".user_data", "mapping"),
        (CloudInitSpec(user_data="#!/bin/sh\0"), ".user_data", "NUL"),
        (CloudInitSpec(user_data="#!/bin/sh", packages=("a",)), ".user_data", "packages"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(seed: CloudInitSpec, field: str, words: str) -> None:
    found = wrong(seed)
    assert list(found) == [field]
    assert words in found[field]


def test_a_secret_that_is_wrong_is_not_repeated() -> None:
    for seed in (user(password_hash="hunter2"), CloudInitSpec(user_data="#cloud-config\npassword: hunter2: [\n")):
        assert "hunter2" not in str(wrong(seed))


def test_user_data_is_what_cloud_init_takes() -> None:
    text = user_data(GOOD, "web")
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert (config["hostname"], config["fqdn"]) == ("web", "web.example.org")
    assert config["users"][0] == "default"
    assert config["users"][1] == {
        "name": "ada", "lock_passwd": False, "gecos": "Ada", "ssh_authorized_keys": [KEY], "passwd": HASH,
        "sudo": "ALL=(ALL) NOPASSWD:ALL", "groups": ["adm", "www-data"], "shell": "/bin/bash",
    }  # fmt: skip
    assert config["write_files"][0] == {
        "path": "/etc/x", "encoding": "b64", "content": "/wA=", "permissions": "0600", "owner": "ada:adm",
        "defer": True,
    }  # fmt: skip
    assert config["packages"] == ["nginx", ["libc6", "2.36-9+deb12u4"]]
    assert config["runcmd"] == ["echo one\necho two"]
    assert config["ssh_pwauth"] is False
    plain = yaml.safe_load(user_data(CloudInitSpec(users=(CloudInitUser("ada"),)), "my_guest"))
    assert plain == {
        "hostname": "my-guest",
        "preserve_hostname": False,
        "users": [{"name": "ada", "lock_passwd": True}],
    }
    assert yaml.safe_load(meta_data(CloudInitSpec(), "g", UID)) == {"instance-id": str(UID), "local-hostname": "g"}


def test_no_text_of_the_caller_becomes_yaml_of_its_own() -> None:
    nasty = "x\n- name: root\n  passwd: ''\n# \"'{}[]&*!|>%@`"
    config = yaml.safe_load(user_data(CloudInitSpec(run_commands=(nasty,)), "g"))
    assert config["runcmd"] == [nasty]
    assert set(config) == {"hostname", "preserve_hostname", "runcmd"}


def test_the_network_is_matched_by_mac_address() -> None:
    config = yaml.safe_load(network_config(GOOD.interfaces, {"net0": "52:54:00:12:34:56"}))
    assert config == {
        "version": 2,
        "ethernets": {
            "net0": {
                "match": {"macaddress": "52:54:00:12:34:56"},
                "dhcp4": False,
                "dhcp6": False,
                "addresses": ["192.0.2.10/24", "2001:db8::10/64"],
                "routes": [{"to": "0.0.0.0/0", "via": "192.0.2.1"}, {"to": "::/0", "via": "fe80::1"}],
                "nameservers": {"addresses": ["192.0.2.53"], "search": ["example.org"]},
            }
        },
    }


def test_the_seed_is_an_image_that_cloud_init_finds() -> None:
    data = build_seed(GOOD, "web", UID, {"net0": "52:54:00:12:34:56"})
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(data))
    assert image.pvd.volume_identifier.strip() == b"cidata"

    def read(name: str) -> bytes:
        found = io.BytesIO()
        image.get_file_from_iso_fp(found, joliet_path=f"/{name}")
        return found.getvalue()

    assert yaml.safe_load(read("meta-data"))["instance-id"] == str(UID)
    assert read("user-data").startswith(b"#cloud-config\n")
    assert yaml.safe_load(read("network-config"))["version"] == 2
    assert {child.file_identifier() for child in image.list_children(rr_path="/") if child is not None}
    raw = pycdlib.PyCdlib()
    raw.open_fp(io.BytesIO(build_seed(CloudInitSpec(user_data="#!/bin/sh\nexit\n"), "g", UID, {})))
    text = io.BytesIO()
    raw.get_file_from_iso_fp(text, rr_path="/user-data")
    assert text.getvalue() == b"#!/bin/sh\nexit\n"


def test_what_is_kept_holds_no_secret() -> None:
    kept = without_secrets(spec(cloud_init=replace(GOOD, user_data="#!secret")))
    assert kept.cloud_init is not None
    assert kept.cloud_init.users[0].password_hash == ""
    assert [entry.content for entry in kept.cloud_init.write_files] == [b"", b""]
    assert kept.cloud_init.user_data == ""
    assert kept.cloud_init.users[0].ssh_authorized_keys == (KEY,)
    assert without_secrets(spec()) == spec()


# ----------------------------------------------------------------------------------- on a host


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


def secrets_in(directory: Path, *secrets: bytes) -> list[Path]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(secret in path.read_bytes() for secret in secrets)]


SECRET = b"a secret that nobody must find"
SEED = CloudInitSpec(users=(CloudInitUser("ada", password_hash=HASH),), write_files=(CloudInitFile("/x", SECRET),))
ENCODED = (HASH.encode(), SECRET, base64.b64encode(SECRET), base64.urlsafe_b64encode(SECRET))


async def test_the_seed_is_a_disk_of_the_guest_and_goes_with_it(lab: Lab) -> None:
    made = await lab.created("a", blank(), interfaces=(InterfaceSpec("net0"),), cloud_init=SEED)
    (disk,) = [disk for disk in made.status.disks if disk.name == "cloud-init"]
    assert (disk.device, disk.read_only) == (DiskDevice.CDROM, True)
    volumes = lab.world.native.pools["virtd"].volumes
    assert f"cloud-init-{made.uid}.iso" in volumes
    assert [entry.name for entry in made.spec.disks] == ["root"], "the seed is not of the specification"
    await lab.done(await lab.services.guests.delete(call(), lab.name("a"), force=False, keep_disks=False, etag=""))
    assert not volumes


async def test_no_secret_is_kept_by_the_daemon(lab: Lab) -> None:
    made = await lab.created("a", blank(), cloud_init=SEED)
    assert made.spec.cloud_init is not None
    assert made.spec.cloud_init.users[0].password_hash == ""
    await lab.core.events.flush()
    assert not secrets_in(lab.daemon.config.state.directory, *ENCODED)
    events = await lab.core.events.read(0, 1000)
    assert events
    assert not any(secret.decode() in repr(event) for event in events for secret in ENCODED)


async def test_a_guest_that_cannot_be_made_leaves_no_seed(lab: Lab) -> None:
    lab.world.faults.fail("guest_write_config")
    operation = await lab.create("a", blank(), cloud_init=SEED)
    assert (await lab.end(operation)).state is OperationState.FAILED
    assert not lab.world.native.pools["virtd"].volumes
    assert not secrets_in(lab.daemon.config.state.directory, *ENCODED)


async def test_the_name_of_the_seed_is_taken(lab: Lab) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.create("a", blank("cloud-init"), cloud_init=SEED)
    assert caught.value.record.violations[0].field == "guest.spec.disks[0].name"
    await lab.created("a", blank("cloud-init"))  # it is nobody's without a seed


async def test_a_host_without_it_says_so_before_anything_is_made() -> None:
    with short_directory() as place:
        async with running_lab(place, "without=guest.cloud_init") as lab:
            with pytest.raises(InvalidArgumentError) as caught:
                await lab.create("a", cloud_init=SEED)
            assert caught.value.reason.name == "FIELD_UNSUPPORTED"
            assert caught.value.record.violations[0].field == "guest.spec.cloud_init"
            assert not lab.world.native.pools
            plan = await lab.services.guests.plan([HOST], "a", GuestDraft(spec(cloud_init=SEED)))
            assert plan[0].error is not None


async def test_whether_it_is_done_is_asked_of_the_agent(lab: Lab) -> None:
    await lab.created("a", blank(), cloud_init=SEED, start=True)

    def reason() -> str:
        found = [c for c in lab.guest("a").status.conditions if c.type is ConditionType.CLOUD_INIT_DONE]
        return found[0].reason if found else ""

    await lab.until(lambda: reason() == "NOT_DONE_YET")
    guest = lab.world.native.guests[lab.guest("a").uid]
    guest.files.write("/run/cloud-init/result.json", b'{"v1": {"errors": ["it burns"]}}')
    await lab.until(lambda: reason() == "DONE_WITH_ERRORS")
    await lab.created("b", blank(), start=True)
    await lab.until(lambda: any(c.type is ConditionType.AGENT_READY for c in lab.guest("b").status.conditions))
    assert not any(c.type is ConditionType.CLOUD_INIT_DONE for c in lab.guest("b").status.conditions)


async def test_a_seed_that_no_operation_waits_for_is_removed_at_the_start(lab: Lab) -> None:
    seeds = Path(lab.link.config.directory) / "seeds"
    hang = lab.world.faults.hang("volume_allocate")
    operation = await lab.create("a", blank(), cloud_init=SEED)
    await lab.until(lambda: hang.entered > 0)
    (waiting,) = seeds.iterdir()
    assert waiting.stat().st_mode & 0o777 == 0o600
    assert seeds.stat().st_mode & 0o777 == 0o700
    tidy_seeds(lab.core)
    assert waiting.exists(), "its operation needs it"
    hang.release()
    await lab.done(operation)
    assert not waiting.exists()
    waiting.write_bytes(b"left by a daemon that was killed")
    tidy_seeds(lab.core)
    assert not waiting.exists()
