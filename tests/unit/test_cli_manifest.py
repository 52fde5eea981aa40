"""Guests as documents and as options: what is built, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from virtd.cli.ctl import spec
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.manifest import Manifest, load
from virtd.v1 import guest_pb2 as pb

GOOD = """
apiVersion: virtd.v1
kind: Guest
metadata:
  name: web1
  host: kvm1
  labels: {env: prod}
  display_name: Web server
spec:
  vcpus: 2
  memory_bytes: 256MiB
  accelerator: tcg
  firmware: FIRMWARE_UEFI
  serial_console: no
  direct_kernel_boot: {kernel_path: /boot/k, command_line: console=ttyS0}
  disks:
    - name: root
      blank: {capacity_bytes: 1GiB, format: qcow2}
      bus: virtio
      boot_order: 1
    - {name: cd, host_file: {path: /iso, format: raw}, device: cdrom}
  interfaces:
    - {name: net0, kind: network, network: default}
  backend_options: {cpu: host}
"""


def one(text: str) -> Manifest:
    (manifest,) = load(text, "f.yaml")
    return manifest


def problem(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(text, "f.yaml")
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_document_becomes_the_message() -> None:
    manifest = one(GOOD)
    assert (manifest.name, manifest.host) == ("web1", "kvm1")
    guest = manifest.guest
    assert guest.labels == {"env": "prod"}
    assert guest.display_name == "Web server"
    assert guest.spec.memory_bytes == 256 * 2**20
    assert guest.spec.accelerator == pb.ACCELERATOR_TCG
    assert guest.spec.firmware == pb.FIRMWARE_UEFI
    assert guest.spec.HasField("serial_console")
    assert guest.spec.serial_console is False
    assert not guest.spec.HasField("guest_agent")
    assert guest.spec.disks[0].blank.capacity_bytes == 2**30
    assert guest.spec.disks[1].WhichOneof("source") == "host_file"
    assert guest.spec.interfaces[0].kind == pb.INTERFACE_KIND_NETWORK
    assert guest.spec.backend_options == {"cpu": "host"}


def test_json_is_a_document_too() -> None:
    text = '{"apiVersion": "virtd.v1", "kind": "Guest", "metadata": {"name": "a"}, "spec": {"memory_bytes": 16777216}}'
    assert one(text).guest.spec.memory_bytes == 2**24


def test_several_documents_in_one_file() -> None:
    names = [manifest.name for manifest in load(f"{GOOD}\n---\n{changed('web1', 'web2')}\n---\n", "f.yaml")]
    assert names == ["web1", "web2"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("memory_bytes: 256MiB", "memry_bytes: 256MiB", "f.yaml:11: spec.memry_bytes: unknown field; did you mean"),
        ("memory_bytes: 256MiB", "memoryBytes: 256MiB", "did you mean 'memory_bytes'?"),
        ("blank: {capacity_bytes: 1GiB", "blank: {capacity: 1GiB", "spec.disks[0].blank.capacity: unknown field"),
        ("name: web1", "nme: web1", "metadata.nme: unknown field; did you mean 'name'?"),
        ("kind: Guest\n", "kind: Host\n", "f.yaml:3: kind: is 'Host'; this guestctl takes 'Guest'"),
        ("apiVersion: virtd.v1", "apiVersion: v1", "apiVersion: is 'v1'"),
        ("vcpus: 2", "vcpus: many", "spec.vcpus: 'many' is not a whole number"),
        ("vcpus: 2", "vcpus: -1", "spec.vcpus: -1 does not fit"),
        ("vcpus: 2", "vcpus: 99999999999", "spec.vcpus: 99999999999 does not fit"),
        ("vcpus: 2", "vcpus: 2\n  vcpus: 3", "spec.vcpus: is there twice"),
        ("vcpus: 2", "vcpus: [2]", "spec.vcpus: must be a single value"),
        ("256MiB", "256 Megs", "spec.memory_bytes: '256 Megs' is not a size"),
        ("accelerator: tcg", "accelerator: tgc", "'tgc' is none of auto, kvm, tcg, native; did you mean 'tcg'?"),
        ("serial_console: no", "serial_console: 1", "spec.serial_console: must be true or false"),
        ("labels: {env: prod}", "labels: {env: 1.10}", 'metadata.labels.env: must be a text; quote it: "1.10"'),
        ("labels: {env: prod}", "labels: [env]", "metadata.labels: must be a mapping"),
        ("1GiB, format: qcow2}", "1GiB}\n      volume: v", "spec.disks[0].volume: excludes blank"),
        ("interfaces:\n    - {name", "interfaces:\n    {name", "spec.interfaces: must be a list"),
        ("kind: network", "kind: network, status: x", "spec.interfaces[0].status: unknown field"),
        ("name: web1", "name: [web1", ": this is not YAML: expected"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_line_its_field_and_what_was_meant(old: str, new: str, said: str) -> None:
    assert said in problem(changed(old, new))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no document in it"),
        ("# nothing\n", "there is no document in it"),
        ("just words", "must be a mapping"),
        ("[1, 2]", "must be a mapping"),
        ("apiVersion: virtd.v1\nkind: Guest\n", "spec: is required"),
        ("kind: Guest\nspec: {}", "apiVersion: is required"),
        ("apiVersion: virtd.v1\nkind: Guest\nspec:\n", "spec: must be a mapping"),
        ("? [a]\n: b\n", "keys must be plain words"),
        ("!!python/object/apply:os.system ['true']", "must be a mapping"),
    ],
)
def test_what_is_no_guest_is_refused(text: str, said: str) -> None:
    assert said in problem(text)


def built(*disks: str, networks: tuple[str, ...] = ()) -> pb.GuestSpec:
    result = pb.GuestSpec()
    for disk in disks:
        spec.add_disk(result, disk, local=True)
    for network in networks:
        spec.add_network(result, network)
    return result


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("name=root,size=1GiB", {"name": "root", "blank": {"capacityBytes": "1073741824"}}),
        ("size=1G,format=raw,pool=p,bus=sata", {"name": "disk0", "bus": "DISK_BUS_SATA",
         "blank": {"capacityBytes": "1073741824", "format": "DISK_FORMAT_RAW", "pool": "p"}}),
        ("name=a,image=debian,size=2G,copy", {"name": "a",
         "image": {"image": "images/debian", "capacityBytes": "2147483648", "copy": True}}),
        ("name=a,file=/x,,y.iso,format=raw,device=cdrom,boot=2", {"name": "a", "device": "DISK_DEVICE_CDROM",
         "hostFile": {"path": "/x,y.iso", "format": "DISK_FORMAT_RAW"}, "bootOrder": 2}),
        ("name=a,volume=hosts/h/pools/p/volumes/v,readonly=yes",
         {"name": "a", "volume": "hosts/h/pools/p/volumes/v", "readOnly": True}),
    ],
)  # fmt: skip
def test_disks_from_options(text: str, wanted: dict[str, object]) -> None:
    assert MessageToDict(built(text).disks[0]) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name=root", "give one of size"),
        ("", "unknown key ''"),
        ("size=1G,file=/x,format=raw", "size does not go with file"),
        ("image=a,volume=b", "give one of size"),
        ("file=/x", "format is needed with file"),
        ("size=1G,copy", "copy does not go with size"),
        ("sise=1G", "unknown key 'sise'; did you mean 'size'?"),
        ("size=1G,size=2G", "size is there twice"),
        ("size", "size needs a value"),
        ("size=big", "'big' is not a size"),
        ("size=1G,format=vmdk", "'vmdk' is not qcow2 or raw"),
        ("size=1G,bus=virtoi", "did you mean 'virtio'?"),
        ("size=1G,boot=0", "boot is a place in the boot order"),
        ("size=1G,readonly=maybe", "'maybe' is not yes or no"),
    ],
)
def test_wrong_disks_are_explained(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="--disk") as caught:
        built(text)
    assert said in str(caught.value)


def test_networks_from_options() -> None:
    found = built(networks=("user", "network:default,mac=52:54:00:00:00:01", "bridge:br0,model=e1000,name=lan"))
    assert [(i.name, i.kind, i.network) for i in found.interfaces] == [
        ("net0", pb.INTERFACE_KIND_USER, ""),
        ("net1", pb.INTERFACE_KIND_NETWORK, "default"),
        ("lan", pb.INTERFACE_KIND_BRIDGE, "br0"),
    ]
    assert found.interfaces[1].mac == "52:54:00:00:00:01"
    assert found.interfaces[2].model == "e1000"


@pytest.mark.parametrize("wrong", ["usr", "network", "network:", "user:x", "bridge:br0,mc=1", "tap:0"])
def test_wrong_networks_are_explained(wrong: str) -> None:
    with pytest.raises(UsageError, match="--network"):
        built(networks=(wrong,))


def test_a_relative_path_is_meant_from_here_only_where_the_daemon_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert spec.local_path("k", local=True) == f"{tmp_path}/k"
    assert spec.local_path("k", local=False) == "k"
    assert spec.local_path("", local=True) == ""
