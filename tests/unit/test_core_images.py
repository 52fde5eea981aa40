"""The image catalogue: one file for one digest, fetching by HTTP, uploads, and files that lie."""

from __future__ import annotations

import hashlib
import http.server
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import MIB, Lab, call, running_lab, short_directory
from virtd.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError, VirtdError
from virtd.model.guest import DiskFormat, DiskSpec, ImageSource
from virtd.model.operation import OperationState
from virtd.model.upload import UploadKind
from virtd.service.fetching import FetchOptions, check_url, source_of
from virtd.service.imagefile import check_header

QCOW2, RAW = DiskFormat.QCOW2, DiskFormat.RAW
CONTENT = bytes(range(256)) * 16384  # 4 MiB, no header of anything


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Site:
    """An HTTP server: what it serves, what it was asked, and how it misbehaves."""

    content: bytes = CONTENT
    etag: str = '"one"'
    cut_after: int = 0
    cuts: int = 0
    status: int = 0
    location: str = ""
    length: bool = True
    stalled: threading.Event | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    def url(self, path: str = "/disk.raw") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.asked.append(dict(self.headers))
        if site.location and self.path != "/end":
            self.send_response(302)
            self.send_header("Location", site.location)
            self.end_headers()
            return
        if site.status:
            self.send_error(site.status)
            return
        begin = 0
        ranged = self.headers.get("Range", "")
        if ranged and self.headers.get("If-Range") == site.etag:
            begin = int(ranged.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(site.content) - 1}/{len(site.content)}")
        else:
            self.send_response(200)
        if site.etag:
            self.send_header("ETag", site.etag)
        body = site.content[begin:]
        if site.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if site.cuts > 0:
            site.cuts -= 1
            self.wfile.write(body[: site.cut_after])
            self.wfile.flush()
            if site.stalled is not None:
                site.stalled.wait(20)
            return
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not on the console."""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    handler = type("SiteHandler", (Handler,), {"site": site})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield site
    if site.stalled is not None:
        site.stalled.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
async def lab(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with short_directory() as place:
        async with running_lab(place, images={"allow_private_addresses": True, "max_bytes": 64 * MIB}) as made:
            yield made


def files(lab: Lab) -> list[str]:
    return sorted(path.name for path in Path(lab.daemon.config.state.images_directory).iterdir())


def put(lab: Lab, name: str, content: bytes) -> str:
    path = Path(lab.daemon.config.state.import_directory) / name
    path.write_bytes(content)
    return str(path)


async def fetch(lab: Lab, site: Site, name: str = "web", url: str = "", digest: str = "") -> Any:
    return await lab.services.images.import_(call(), name, "", RAW, url or site.url(), digest)


# --------------------------------------------------------------------------------------- one file


async def test_the_same_bytes_are_one_file_until_the_last_name_goes(lab: Lab) -> None:
    images = lab.services.images
    path = put(lab, "a.raw", CONTENT)
    await lab.done(await images.import_(call(), "one", path, RAW, digest=digest(CONTENT)))
    await lab.done(await images.import_(call(), "two", path, RAW))
    name = f"sha256-{hashlib.sha256(CONTENT).hexdigest()}.raw"
    assert files(lab) == [name]
    assert [image.digest for image in (await images.list(0, "")).items] == [digest(CONTENT)] * 2
    await lab.created("a", DiskSpec("root", image=ImageSource("images/two")))
    await lab.done(await images.delete(call(), "one"))
    assert files(lab) == [name]
    with pytest.raises(VirtdError) as caught:
        await images.delete(call(), "two")
    assert caught.value.reason.name == "IMAGE_IN_USE"
    await lab.done(await lab.services.guests.delete(call(), lab.name("a"), force=False, keep_disks=False, etag=""))
    await lab.done(await images.delete(call(), "two"))
    assert files(lab) == []


async def test_a_disk_that_is_based_on_the_last_names_file_keeps_it_whatever_name_was_used(lab: Lab) -> None:
    images = lab.services.images
    path = put(lab, "a.raw", CONTENT)
    for name in ("one", "two"):
        await lab.done(await images.import_(call(), name, path, RAW))
    await lab.created("a", DiskSpec("root", image=ImageSource("images/one")))
    await lab.done(await images.delete(call(), "two"))
    with pytest.raises(VirtdError, match="based on"):
        await images.delete(call(), "one")


async def test_a_failed_import_takes_nothing_from_another_with_the_same_bytes(lab: Lab) -> None:
    path = put(lab, "a.raw", CONTENT)
    await lab.done(await lab.services.images.import_(call(), "one", path, RAW))
    await lab.failed(
        await lab.services.images.import_(call(), "two", path, RAW, digest=digest(b"other")), "DIGEST_MISMATCH"
    )
    assert len(files(lab)) == 1
    with pytest.raises(NotFoundError):
        await lab.services.images.get("two")


# --------------------------------------------------------------------------------------- fetching


async def test_an_image_is_fetched(lab: Lab, site: Site) -> None:
    await lab.done(await fetch(lab, site, url=site.url("/disk.raw?token=secret"), digest=digest(CONTENT)))
    image = await lab.services.images.get("web")
    assert (image.digest, image.source) == (digest(CONTENT), site.url())
    assert len(files(lab)) == 1
    asked = len(site.asked)
    await lab.done(await fetch(lab, site, "again", digest=digest(CONTENT)))
    assert len(site.asked) == asked, "what is in the catalogue is not fetched again"


async def test_a_cut_fetch_goes_on_where_it_was(lab: Lab, site: Site) -> None:
    site.cut_after, site.cuts = MIB, 2
    await lab.done(await fetch(lab, site, digest=digest(CONTENT)))
    assert [entry.get("Range", "") for entry in site.asked] == ["", f"bytes={MIB}-", f"bytes={2 * MIB}-"]


async def test_a_file_that_has_changed_meanwhile_is_fetched_anew(lab: Lab, site: Site) -> None:
    site.cut_after, site.cuts = MIB, 1
    site.stalled = threading.Event()
    operation = await fetch(lab, site)
    await lab.until(lambda: bool(site.asked))
    site.content, site.etag = CONTENT[::-1], '"two"'
    site.stalled.set()
    await lab.done(operation)
    assert (await lab.services.images.get("web")).digest == digest(CONTENT[::-1])


async def test_without_a_mark_of_the_version_nothing_is_gone_on_with(lab: Lab, site: Site) -> None:
    site.cut_after, site.cuts, site.etag = MIB, 1, ""
    await lab.done(await fetch(lab, site))
    assert not any("Range" in entry for entry in site.asked)
    assert (await lab.services.images.get("web")).digest == digest(CONTENT)


async def test_a_cancelled_fetch_leaves_nothing(lab: Lab, site: Site) -> None:
    site.cut_after, site.cuts, site.stalled = MIB, 1, threading.Event()
    operation = await fetch(lab, site)
    await lab.until(lambda: [(o.bytes_done, o.bytes_total) for o in lab.core.engine.live()] == [(MIB, len(CONTENT))])
    await lab.core.engine.cancel(operation.name)
    site.stalled.set()
    assert (await lab.end(operation)).state is OperationState.CANCELLED
    assert files(lab) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": 404}, "FETCH_FAILED"),
        ({"status": 403}, "FETCH_FAILED"),
        ({"content": CONTENT[:-1]}, "IMAGE_INVALID"),
        ({"content": b""}, "IMAGE_INVALID"),
        ({"content": b"QFI\xfb" + CONTENT[4:]}, "IMAGE_INVALID"),
        ({"location": "file:///etc/passwd"}, "FETCH_FAILED"),
        ({"location": "ftp://example.org/x"}, "URL_NOT_ALLOWED"),
        ({"location": "http://u:p@127.0.0.1/x"}, "URL_NOT_ALLOWED"),
    ],
)
async def test_what_a_server_can_do_wrong(lab: Lab, site: Site, changes: dict[str, Any], reason: str) -> None:
    for name, value in changes.items():
        setattr(site, name, value)
    await lab.failed(await fetch(lab, site), reason)
    assert files(lab) == []


async def test_redirections_are_followed_but_not_for_ever(lab: Lab, site: Site) -> None:
    site.location = "/end"
    await lab.done(await fetch(lab, site))
    site.location = "/again"
    ended = await lab.failed(await fetch(lab, site, "loop"), "FETCH_FAILED")
    assert ended.error is not None
    assert len(files(lab)) == 1


async def test_other_bytes_than_expected_are_refused(lab: Lab, site: Site) -> None:
    ended = await lab.failed(await fetch(lab, site, digest=digest(b"x")), "DIGEST_MISMATCH")
    assert ended.error is not None
    assert ended.error.metadata == {"expected": digest(b"x"), "actual": digest(CONTENT)}
    assert files(lab) == []


@pytest.mark.parametrize("length", [True, False])
async def test_a_file_that_is_too_large_is_refused(site: Site, length: bool) -> None:
    site.length = length
    with short_directory() as place:
        async with running_lab(place, images={"allow_private_addresses": True, "max_bytes": MIB}) as lab:
            await lab.failed(await fetch(lab, site), "LIMIT_EXCEEDED")
            assert files(lab) == []


async def test_private_addresses_are_refused_unless_allowed(site: Site) -> None:
    with short_directory() as place:
        async with running_lab(place) as lab:
            with pytest.raises(InvalidArgumentError) as caught:
                await fetch(lab, site)
            assert caught.value.reason.name == "URL_NOT_ALLOWED"
            assert "images.allow_private_addresses" in caught.value.message
            # A name tells nothing: what it stands for is looked at when the connection is made.
            name = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
            ended = await lab.end(await fetch(lab, site, url=f"http://{name}:{site.port}/x"))
            assert ended.error is not None
            assert ended.error.reason in {"URL_NOT_ALLOWED", "FETCH_FAILED"}
            assert site.asked == []


def test_urls_that_are_not_taken() -> None:
    for url in (
        "file:///etc/passwd", "ftp://example.org/x", "example.org/x", "http://", "http://u:p@example.org/x",
        "http://example.org:x/", "http://exa mple.org/", "http://ex\u00e4mple.org/", "http://example.org/\n",
        "http://127.0.0.1/x", "http://[::1]/x", "http://10.0.0.1/x", "http://169.254.169.254/latest/meta-data",
        "http://localhost/x", "http://[::ffff:127.0.0.1]/x", "http://0.0.0.0/", "https://[fe80::1]/x",
        "http://[64:ff9b:1::1]/", "http://[64:ff9b::7f00:1]/", "http://224.0.0.1/", "http://example.org/" + "x" * 4096,
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError) as caught:
            check_url(url, FetchOptions())
        assert caught.value.reason.name == "URL_NOT_ALLOWED", url
    assert check_url("https://example.org/x?y=z", FetchOptions())
    assert check_url("http://127.0.0.1/x", FetchOptions(allow_private=True))
    assert source_of("https://example.org/x?token=secret#f") == "https://example.org/x"


async def test_requests_that_contradict_themselves(lab: Lab, site: Site) -> None:
    path = put(lab, "a.raw", CONTENT)
    for arguments in (
        ("", RAW, "", ""),
        (path, RAW, site.url(), ""),
        (path, RAW, "", "sha256:x"),
        (path, RAW, "", "A"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await lab.services.images.import_(call(), "x", *arguments)
        assert caught.value.reason.name == "FIELD_INVALID"


# ---------------------------------------------------------------------------------------- uploads


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content[: len(content) // 2]
    yield content[len(content) // 2 :]


async def uploaded(lab: Lab, content: bytes, name: str = "up", format_: DiskFormat = RAW) -> str:
    uploads = lab.services.uploads
    upload = await uploads.start(call(), UploadKind.IMAGE, f"images/{name}", len(content), format_)
    assert upload is not None
    upload_id = upload.name.removeprefix("uploads/")
    async for _ in uploads.write(upload_id, 0, pieces(content)):
        pass
    return upload_id


async def test_an_upload_becomes_an_image(lab: Lab) -> None:
    upload_id = await uploaded(lab, CONTENT)
    await lab.done(await lab.services.uploads.commit(call(), upload_id, digest(CONTENT)))
    image = await lab.services.images.get("up")
    assert (image.digest, image.size_bytes, image.source) == (digest(CONTENT), len(CONTENT), "upload")
    assert not await lab.services.uploads.list(0, "") or not (await lab.services.uploads.list(0, "")).items
    assert len(files(lab)) == 1


async def test_an_upload_that_is_refused_can_be_committed_again(lab: Lab) -> None:
    upload_id = await uploaded(lab, CONTENT)
    await lab.failed(await lab.services.uploads.commit(call(), upload_id, digest(b"x")), "DIGEST_MISMATCH")
    assert files(lab) == []
    await lab.done(await lab.services.uploads.commit(call(), upload_id, digest(CONTENT)))
    with pytest.raises(VirtdError) as caught:
        await uploaded(lab, CONTENT)
    assert caught.value.reason.name == "IMAGE_EXISTS"


async def test_uploads_that_lie_or_are_too_large(lab: Lab) -> None:
    upload_id = await uploaded(lab, b"KDMV" + CONTENT[4:])
    await lab.failed(await lab.services.uploads.commit(call(), upload_id, ""), "IMAGE_INVALID")
    assert files(lab) == []
    for name, size in (("Bad Name", MIB), ("big", 65 * MIB)):
        with pytest.raises((InvalidArgumentError, ResourceExhaustedError)):
            await lab.services.uploads.start(call(), UploadKind.IMAGE, f"images/{name}", size, RAW)


# ------------------------------------------------------------------------------------ files that lie


def qcow2(path: Path, *options: str) -> bytearray:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "4M"], check=True)
    return bytearray(path.read_bytes())


@pytest.mark.parametrize(
    ("head", "at"),
    [
        (b"QFI\xfb", 0), (b"KDMV", 0), (b"COWD", 0), (b"# Disk DescriptorFile\nversion=1", 0), (b"vhdxfile", 0),
        (b"conectix", 0), (b"LUKS\xba\xbe", 0), (b"\x7f\x10\xda\xbe", 64), (b"QED\0", 0), (b"\x1f\x8b\x08", 0),
        (b"\xfd7zXZ\0", 0), (b"\x28\xb5\x2f\xfd", 0),
    ],
)  # fmt: skip
def test_a_raw_file_is_nothing_else(tmp_path: Path, head: bytes, at: int) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes((bytes(at) + head).ljust(MIB, b"\0"))
    with pytest.raises(InvalidArgumentError) as caught:
        check_header(str(path), RAW)
    assert caught.value.reason.name == "IMAGE_INVALID"
    path.write_bytes(bytes(MIB))
    check_header(str(path), RAW)
    path.write_bytes(bytes(MIB + 1))
    with pytest.raises(InvalidArgumentError, match="multiple"):
        check_header(str(path), RAW)


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, b"KDMV", "does not begin"),
        (4, struct.pack(">I", 9), "version 9"),
        (8, struct.pack(">QI", 4096, 10), "backing file"),
        (20, struct.pack(">I", 40), "makes no sense"),
        (24, struct.pack(">Q", 0), "makes no sense"),
        (24, struct.pack(">Q", 2**60), "makes no sense"),
        (32, struct.pack(">I", 2), "encrypted"),
        (40, struct.pack(">Q", 2**40), "cut"),
        (72, struct.pack(">Q", 2), "corrupt"),
        (72, struct.pack(">Q", 4), "another file"),
        (72, struct.pack(">Q", 2**40), "not known"),
    ],
)
def test_a_header_that_is_not_to_be_trusted(tmp_path: Path, offset: int, value: bytes, words: str) -> None:
    path = tmp_path / "disk.qcow2"
    content = qcow2(path)
    check_header(str(path), QCOW2)
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        check_header(str(path), QCOW2)
    assert caught.value.reason.name == "IMAGE_INVALID"
    path.write_bytes(content[:60])
    with pytest.raises(InvalidArgumentError):
        check_header(str(path), QCOW2)


async def test_data_in_another_file_and_encryption_are_refused(lab: Lab) -> None:
    directory = Path(lab.daemon.config.state.import_directory)
    qcow2(directory / "data.qcow2", "-o", f"data_file={directory}/data.raw,data_file_raw=on")
    luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    qcow2(directory / "luks.qcow2", "--object", "secret,id=s,data=x", "-o", luks)
    for name, words in (("data.qcow2", "another file"), ("luks.qcow2", "encrypted")):
        with pytest.raises(InvalidArgumentError, match=words):
            await lab.services.images.import_(call(), "x", str(directory / name), QCOW2)
    assert files(lab) == []


async def test_files_that_a_crash_has_left_are_removed_at_the_start(lab: Lab) -> None:
    await lab.done(await lab.services.images.import_(call(), "one", put(lab, "a.raw", CONTENT), RAW))
    stray = Path(lab.daemon.config.state.images_directory) / f"sha256-{'0' * 64}.raw"
    stray.write_bytes(b"x")
    await lab.services.catalogue.tidy()
    assert not stray.exists()
    assert len(files(lab)) == 1
