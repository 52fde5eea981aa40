"""Images: fetched, sent, and used by guests of this machine and of another one.

The other machine is a second libvirt that is reached by TCP: virtd cannot know that it is near.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import MIB, Virtd, serving
from tests.qemu.fixtures import private_libvirt
from virtd.libvirt.private import PrivateLibvirt
from virtd.v1.guest_pb2 import DISK_FORMAT_QCOW2, DISK_FORMAT_RAW, DiskSpec, Guest, GuestSpec, ImageSource

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]


@contextlib.contextmanager
def by_tcp(path: Path) -> Iterator[int]:
    """A TCP port of this machine that leads to a unix socket."""

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(path))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(scope="module")
def far() -> Iterator[PrivateLibvirt]:
    with private_libvirt() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def virtd_process(libvirt_host: PrivateLibvirt, far: PrivateLibvirt) -> Iterator[Virtd]:
    with by_tcp(far.socket) as port:
        extra = (
            f'[hosts.far]\nuri = "qemu+tcp://127.0.0.1:{port}/system"\n'
            f'[hosts.far.options]\npool_directory = "{far.directory}/images"\n'
            "[images]\nallow_private_addresses = true\n"
        )
        with serving(libvirt_host, extra) as virtd:
            yield virtd


@pytest.fixture
def client(virtd: Virtd) -> Iterator[Client]:
    client = virtd.client()
    yield client
    for guest in client.guests.list():
        client.guests.delete(guest.name, force=True).result(timeout_s=60)
    for image in client.images.list():
        client.images.delete(image.name).result(timeout_s=60)


@pytest.fixture
def demo_image(virtd: Virtd, client: Client) -> str:
    """The demo guest's disk, imported by URL."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(virtd.guest.disk.parent))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{virtd.guest.disk.name}"
        image = client.images.import_("demo", url=url, format="qcow2").result(timeout_s=60)
        assert image.source == url
        assert image.size_bytes == virtd.guest.disk.stat().st_size
        server.shutdown()
    return image.name


def of(image: str, *, memory: int = 32, **source: object) -> Guest:
    disk = DiskSpec(name="root", image=ImageSource(image=image, **source))
    return Guest(spec=GuestSpec(memory_bytes=memory * MIB, disks=[disk]))


def info(path: str) -> dict[str, object]:
    done = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], check=True, capture_output=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("host", ["kvm", "far"])
def test_guests_are_made_of_an_image_by_overlay_and_by_copy(
    virtd: Virtd, client: Client, demo_image: str, host: str
) -> None:
    parent = f"hosts/{host}"
    first = client.guests.create(parent, "first", of(demo_image, memory=192), start=True).result(timeout_s=120)
    second = client.guests.create(parent, "second", of(demo_image, capacity_bytes=64 * MIB)).result(timeout_s=60)
    copy = client.guests.create(parent, "copy", of(demo_image, copy=True, capacity_bytes=64 * MIB)).result(timeout_s=60)
    raw = of(demo_image, copy=True, format=DISK_FORMAT_RAW)
    plain = client.guests.create(parent, "plain", raw).result(timeout_s=60)
    facts = [info(guest.status.disks[0].path) for guest in (first, second, copy, plain)]
    assert facts[0]["backing-filename"] == facts[1]["backing-filename"]
    assert [fact["format"] for fact in facts] == ["qcow2", "qcow2", "qcow2", "raw"]
    assert [fact.get("virtual-size") == 64 * MIB for fact in facts] == [False, True, True, False]
    assert not any("backing-filename" in fact for fact in facts[2:])
    digest = client.images.get(demo_image).digest.replace(":", "-")
    assert Path(str(facts[0]["backing-filename"])).stem == digest
    client.guests.wait(first.name, condition="booted", timeout_s=120)

    with pytest.raises(errors.FailedPrecondition) as refused:
        client.images.delete(demo_image)
    assert refused.value.reason == "IMAGE_IN_USE"
    for guest in (first, second):
        client.guests.delete(guest.name, force=True).result(timeout_s=60)
    client.images.delete(demo_image).result(timeout_s=60)
    assert not Path(str(facts[0]["backing-filename"])).exists(), "it is still on the host"
    assert not any(digest in volume.name for volume in client.volumes.list(f"{parent}/pools/virtd"))
    assert info(copy.status.disks[0].path)["virtual-size"] == 64 * MIB


def test_an_image_is_sent_by_the_client(virtd: Virtd, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "small.raw"
    path.write_bytes(b"\x55" * MIB + bytes(3 * MIB))
    upload = client.uploads.start_image("sent", path.stat().st_size, "raw")
    image = client.uploads.complete(upload, path).result(timeout_s=60)
    assert (image.name, image.source, image.capacity_bytes) == ("images/sent", "upload", 4 * MIB)
    guest = client.guests.create("hosts/kvm", "g", of(image.name, format=DISK_FORMAT_QCOW2)).result(timeout_s=60)
    assert info(guest.status.disks[0].path)["backing-filename-format"] == "raw"


def test_files_that_lie_are_refused_and_leave_nothing(virtd: Virtd, client: Client) -> None:
    place = virtd.directory / "import"
    place.mkdir(exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(place / "disk.vmdk"), "4M"], check=True)
    backing = ["-b", str(virtd.guest.disk), "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(place / "child.qcow2")], check=True)
    for name, format_ in (
        ("disk.vmdk", "raw"),
        ("disk.vmdk", "qcow2"),
        ("child.qcow2", "qcow2"),
        ("child.qcow2", "raw"),
    ):
        with pytest.raises(errors.InvalidArgument) as refused:
            client.images.import_("liar", str(place / name), format_).result(timeout_s=30)
        assert refused.value.reason == "IMAGE_INVALID"
    assert client.images.list() == ()
    assert list((virtd.directory / "images").iterdir()) == []
