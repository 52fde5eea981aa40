"""Bad input: every row names its field and says what would be right; and nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.daemons import HOST, MIB, Lab, call, running_lab, short_directory
from virtd.errors import InvalidArgumentError, NotFoundError, VirtdError
from virtd.model.guest import (
    Accelerator,
    BlankSource,
    DirectKernelBoot,
    DiskBus,
    DiskFormat,
    DiskSpec,
    Firmware,
    GraphicsSpec,
    GuestSpec,
    HostFileSource,
    ImageSource,
    InterfaceKind,
    InterfaceSpec,
)
from virtd.model.names import GuestName, check_new_id, parse, parse_guest, parse_host, shown, slug
from virtd.service.guests import GuestDraft
from virtd.service.validate import check_allowed_path, check_spec

GOOD = GuestSpec(vcpus=1, memory_bytes=64 * MIB)


def disk(**changes: Any) -> GuestSpec:
    return replace(GOOD, disks=(DiskSpec(**{"name": "root", "blank": BlankSource(MIB), **changes}),))


def blank(size: int) -> GuestSpec:
    return disk(blank=BlankSource(size))


def nic(**changes: Any) -> GuestSpec:
    return replace(GOOD, interfaces=(InterfaceSpec(**{"name": "net", **changes}),))


def kernel(path: str, **changes: Any) -> GuestSpec:
    return replace(GOOD, direct_kernel_boot=DirectKernelBoot(path, **changes))


D0, I0, K = "disks[0]", "interfaces[0]", "direct_kernel_boot"

SYNTAX: list[tuple[GuestSpec, str, str]] = [
    (replace(GOOD, vcpus=0), "vcpus", "must be 1 to 512"),
    (replace(GOOD, vcpus=-1), "vcpus", "must be 1 to 512"),
    (replace(GOOD, vcpus=513), "vcpus", "must be 1 to 512"),
    (replace(GOOD, memory_bytes=None), "memory_bytes", "is required"),
    (replace(GOOD, memory_bytes=0), "memory_bytes", "16 MiB"),
    (replace(GOOD, memory_bytes=2**63 - 1), "memory_bytes", "16 TiB"),
    (replace(GOOD, machine="q35\n"), "machine", "control characters"),
    (replace(GOOD, machine="x" * 300), "machine", "short"),
    (blank(0), f"{D0}.blank.capacity_bytes", "greater than zero"),
    (blank(-1), f"{D0}.blank.capacity_bytes", "greater than zero"),
    (blank(2**63 - 1), f"{D0}.blank.capacity_bytes", "1 PiB"),
    (blank(1000), f"{D0}.blank.capacity_bytes", "multiple of 512"),
    (disk(name=""), f"{D0}.name", "not a valid name"),
    (disk(name="a/b"), f"{D0}.name", "not a valid name"),
    (disk(name="a\0b"), f"{D0}.name", "not a valid name"),
    (disk(name="a\n"), f"{D0}.name", "not a valid name"),
    (disk(name="<b>"), f"{D0}.name", "not a valid name"),
    (disk(name="x" * 64), f"{D0}.name", "not a valid name"),
    (disk(blank=None), f"{D0}.source", "exactly one"),
    (disk(volume="hosts/lab/pools/p/volumes/v"), f"{D0}.source", "exactly one"),
    (disk(blank=None, volume="v"), f"{D0}.volume", "hosts/{host}/pools/{pool}/volumes/{volume}"),
    (disk(blank=None, volume="hosts/other/pools/p/volumes/v"), f"{D0}.volume", "is a volume of host other"),
    (disk(blank=None, image=ImageSource("nope")), f"{D0}.image.image", "images/{image}"),
    (disk(blank=None, image=ImageSource("images/a", pool="a/b")), f"{D0}.image.pool", "not a pool"),
    (disk(blank=None, image=ImageSource("images/a", capacity_bytes=7)), f"{D0}.image.capacity_bytes", "multiple"),
    (disk(blank=BlankSource(MIB, pool="../x")), f"{D0}.blank.pool", "not a pool"),
    (disk(blank=None, host_file=HostFileSource("", DiskFormat.RAW)), f"{D0}.host_file.path", "is required"),
    (disk(blank=None, host_file=HostFileSource("x", DiskFormat.RAW)), f"{D0}.host_file.path", "absolute"),
    (disk(blank=None, host_file=HostFileSource("/a\0", DiskFormat.RAW)), f"{D0}.host_file.path", "control"),
    (disk(blank=None, host_file=HostFileSource("/" + "x" * 9999, DiskFormat.RAW)), f"{D0}.host_file.path", "path"),
    (disk(boot_order=0), f"{D0}.boot_order", "must be 1 to 1000"),
    (replace(GOOD, disks=(DiskSpec("a", blank=BlankSource(MIB)),) * 2), "disks[1].name", "used twice"),
    (replace(GOOD, disks=tuple(DiskSpec(f"d{n}", blank=BlankSource(MIB)) for n in range(65))), "disks", "at most 64"),
    (
        replace(GOOD, disks=tuple(DiskSpec(n, blank=BlankSource(MIB), boot_order=1) for n in "ab")),
        "disks[1].boot_order",
        "taken by disk a",
    ),
    (nic(mac="nonsense"), f"{I0}.mac", "aa:bb:cc:dd:ee:ff"),
    (nic(mac="01:00:00:00:00:01"), f"{I0}.mac", "multicast"),
    (nic(kind=InterfaceKind.NETWORK), f"{I0}.network", "not the name"),
    (nic(kind=InterfaceKind.BRIDGE, network="br0;rm"), f"{I0}.network", "not the name"),
    (nic(network="default"), f"{I0}.network", "empty for kind USER"),
    (nic(model="<x/>\n"), f"{I0}.model", "control"),
    (nic(name="A"), f"{I0}.name", "not a valid name"),
    (
        replace(GOOD, interfaces=tuple(InterfaceSpec(n, mac="52:54:00:00:00:01") for n in "ab")),
        "interfaces[1].mac",
        "is the address of interface a too",
    ),
    (kernel(""), f"{K}.kernel_path", "is required"),
    (kernel("vmlinuz"), f"{K}.kernel_path", "absolute"),
    (kernel("/k", initrd_path="i"), f"{K}.initrd_path", "absolute"),
    (kernel("/k", command_line="a\nb"), f"{K}.command_line", "control"),
    (kernel("/k", command_line="x" * 3000), f"{K}.command_line", "2048"),
    (replace(GOOD, graphics=GraphicsSpec(listen="everywhere")), "graphics.listen", "not an IP address"),
]


@pytest.mark.parametrize(("spec", "field", "what"), SYNTAX, ids=[f"{row[1]}-{n}" for n, row in enumerate(SYNTAX)])
def test_every_wrong_field_is_named(spec: GuestSpec, field: str, what: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_spec(spec, HOST)
    error = caught.value
    assert error.reason.name == "FIELD_INVALID"
    found = {violation.field: violation.description for violation in error.record.violations}
    assert f"guest.spec.{field}" in found, found
    assert what in found[f"guest.spec.{field}"]
    assert all(text.isprintable() for text in (error.message, *found.values()))
    assert len(error.message) < 1500


def test_everything_wrong_is_named_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_spec(GuestSpec(vcpus=0, memory_bytes=0, disks=(DiskSpec("X"),), machine="\0"), HOST)
    assert {violation.field.removeprefix("guest.spec.") for violation in caught.value.record.violations} == {
        "vcpus",
        "memory_bytes",
        "machine",
        "disks[0].name",
        "disks[0].source",
    }


def test_what_is_right_passes() -> None:
    check_spec(GOOD, HOST)
    check_spec(blank(512), HOST)
    check_spec(nic(kind=InterfaceKind.NETWORK, network="default", mac="52:54:00:AA:bb:cc"), HOST)


# -------------------------------------------------------------------------------------------- names

BAD_IDS = ["", "a/b", "a\0b", "a\nb", "a\n", "<a>", "a b", "A", "-a", "a-", ".", "..", "x" * 64, "é", "a;b", "hosts/x"]


@pytest.mark.parametrize("value", BAD_IDS)
def test_ids_that_cannot_be(value: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_new_id(value, "guest_id")
    assert caught.value.record.violations[0].field == "guest_id"
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("value", ["a", "0", "web-1", "a.b_c", "x" * 63])
def test_ids_that_can(value: str) -> None:
    assert check_new_id(value, "f") == value


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "hosts/a",
        "hosts//guests/b",
        "hosts/a/guests/",
        "hosts/a/guests/b/c",
        "hosts/-/guests/b",
        "guests/b",
        "hosts/a/guests/b\n",
    ],
)
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"hosts/\{host\}/guests/\{guest\}"):
        parse_guest(name)


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_is_refused(text: str) -> None:
    for check in (parse_guest, parse_host, lambda name: parse(name, "operations/{operation}")):
        try:
            check(text)  # type: ignore[operator]
        except InvalidArgumentError as error:
            assert error.message.isprintable()
    assert shown(text).isprintable()
    assert str(parse_guest(str(GuestName("h", slug(text))))) == f"hosts/h/guests/{slug(text)}"


def test_the_wildcard_is_for_reading_only() -> None:
    assert parse_host("hosts/-", wildcard=True) == "-"
    with pytest.raises(InvalidArgumentError):
        parse_host("hosts/-")


# -------------------------------------------------------------------------------------------- paths


def test_paths_stay_in_the_allowed_directories(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    (allowed / "sub").mkdir(parents=True)
    (tmp_path / "allowed-too").mkdir()
    secret = tmp_path / "secret"
    secret.write_text("x")
    (allowed / "link").symlink_to(secret)
    (allowed / "dir").symlink_to(tmp_path)
    directories = (str(allowed),)
    assert check_allowed_path(str(allowed / "sub" / "x"), directories, "f", local=True) == str(allowed / "sub" / "x")
    for bad in (
        str(secret),
        str(allowed / ".." / "secret"),
        str(allowed / "link"),
        str(allowed / "dir" / "secret"),
        f"{allowed}-too/x",
        "/etc/passwd",
        "/",
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            check_allowed_path(bad, directories, "f", local=True)
        assert caught.value.reason.name == "PATH_NOT_ALLOWED"
        assert caught.value.record.violations[0].alternatives == directories
    # A path of another machine cannot be followed, but its dots can be counted.
    with pytest.raises(InvalidArgumentError):
        check_allowed_path(f"{allowed}/../secret", directories, "f", local=False)
    with pytest.raises(InvalidArgumentError, match="none"):
        check_allowed_path(str(secret), (), "f", local=True)


# ------------------------------------------------------------------- against a host, through the core


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place, "without=guest.firmware.uefi,guest.boot.kernel") as made:
            yield made


ON_HOST: list[tuple[GuestSpec, str, str, tuple[str, ...]]] = [
    (replace(GOOD, firmware=Firmware.UEFI), "FIELD_UNSUPPORTED", "guest.spec.firmware", ("BIOS",)),
    (
        replace(GOOD, backend_options={"colour": "red"}),
        "FIELD_UNSUPPORTED",
        "guest.spec.backend_options[colour]",
        ("mood", "presses"),
    ),
    (
        replace(GOOD, backend_options={"mood": "bad"}),
        "FIELD_UNSUPPORTED",
        "guest.spec.backend_options[mood]",
        ("calm", "loud"),
    ),
    (replace(GOOD, machine="pc-42"), "FIELD_UNSUPPORTED", "guest.spec.machine", ("fake-1", "fake-2")),
    (
        disk(blank=None, host_file=HostFileSource("/etc/passwd", DiskFormat.RAW)),
        "PATH_NOT_ALLOWED",
        "guest.spec.disks[0].host_file.path",
        (),
    ),
    (kernel("/boot/vmlinuz"), "PATH_NOT_ALLOWED", "guest.spec.direct_kernel_boot.kernel_path", ()),
]


@pytest.mark.parametrize(("spec", "reason", "field", "alternatives"), ON_HOST, ids=[row[2] for row in ON_HOST])
async def test_what_a_host_cannot_do_names_the_field_and_leaves_nothing(
    lab: Lab, spec: GuestSpec, reason: str, field: str, alternatives: tuple[str, ...]
) -> None:
    before = lab.world.digest()
    with pytest.raises(VirtdError) as caught:
        await lab.services.guests.create(call(), HOST, "a", GuestDraft(spec), False)
    assert caught.value.reason.name == reason
    violation = caught.value.record.violations[0]
    assert violation.field == field
    if alternatives:
        assert violation.alternatives == alternatives
    _nothing(lab, before)


MISSING: list[tuple[GuestSpec, str]] = [
    (disk(blank=None, image=ImageSource("images/none")), "IMAGE_NOT_FOUND"),
    (disk(blank=BlankSource(MIB, pool="none")), "POOL_NOT_FOUND"),
    (disk(blank=None, volume=f"hosts/{HOST}/pools/none/volumes/v"), "POOL_NOT_FOUND"),
    (nic(kind=InterfaceKind.NETWORK, network="none"), "NETWORK_NOT_FOUND"),
]


@pytest.mark.parametrize(("spec", "reason"), MISSING, ids=[row[1] for row in MISSING])
async def test_what_is_not_there_is_named(lab: Lab, spec: GuestSpec, reason: str) -> None:
    before = lab.world.digest()
    with pytest.raises(NotFoundError) as caught:
        await lab.services.guests.create(call(), HOST, "a", GuestDraft(spec), False)
    assert caught.value.reason.name == reason
    assert "none" in caught.value.message
    _nothing(lab, before)


async def test_a_file_that_is_not_there_and_one_that_is_a_link_out(lab: Lab) -> None:
    directory = lab.daemon.config.state.import_directory
    (directory / "out").symlink_to("/etc/passwd")
    before = lab.world.digest()
    for name, reason in (("none.raw", "FIELD_INVALID"), ("out", "PATH_NOT_ALLOWED")):
        source = HostFileSource(os.fspath(directory / name), DiskFormat.RAW)
        with pytest.raises(InvalidArgumentError) as caught:
            await lab.services.guests.create(call(), HOST, "a", GuestDraft(disk(blank=None, host_file=source)), False)
        assert caught.value.reason.name == reason
        assert caught.value.record.violations[0].field == "guest.spec.disks[0].host_file.path"
    _nothing(lab, before)


@pytest.mark.parametrize("guest_id", BAD_IDS)
async def test_a_wrong_id_leaves_nothing(lab: Lab, guest_id: str) -> None:
    before = lab.world.digest()
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.services.guests.create(call(), HOST, guest_id, GuestDraft(GOOD), False)
    assert caught.value.record.violations[0].field == "guest_id"
    _nothing(lab, before)


def _nothing(lab: Lab, before: str) -> None:
    assert lab.core.inventory.guests() == []
    assert lab.core.engine.live() == ()
    assert lab.world.digest() == before


async def test_texts_that_cannot_be(lab: Lab) -> None:
    draft = GuestDraft(
        GOOD,
        display_name="a\nb",
        labels={"": "x", "ok": "a\0", "-bad": "y", "l" * 80: "z"},
        annotations={"": "x", "big": "x" * 70_000},
    )
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.services.guests.create(call(), HOST, "a", draft, False)
    fields = {violation.field for violation in caught.value.record.violations}
    assert {"guest.display_name", "guest.annotations", "guest.labels['']", "guest.labels['ok']"} <= fields


async def test_an_accelerator_that_does_not_work_here() -> None:
    with short_directory() as place:
        async with running_lab(place, "without=host.acceleration") as poor:
            with pytest.raises(InvalidArgumentError) as caught:
                await poor.create("a", accelerator=Accelerator.KVM)
            violation = caught.value.record.violations[0]
            assert violation.field == "guest.spec.accelerator"
            assert violation.alternatives == ("TCG", "AUTO")
            made = await poor.created("a", accelerator=Accelerator.AUTO)
            assert made.status.accelerator is Accelerator.TCG
            assert "does not work here" in made.status.accelerator_reason


async def test_what_is_done_in_another_way_is_told(lab: Lab) -> None:
    draft = GuestDraft(disk(bus=DiskBus.IDE))
    plan = await lab.services.guests.plan_one(HOST, "a", draft)
    assert plan.warnings == ("spec.disks[0].bus: degraded: a fake guest sees an IDE disk as SATA",)
    ended = await lab.done(await lab.services.guests.create(call(), HOST, "a", draft, False))
    assert ended.warnings == plan.warnings
