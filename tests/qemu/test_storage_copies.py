"""Copies of files that are not what they seem, on a real libvirt."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.qemu.fixtures import MIB, Context, Lab
from virtd.backend.api import VolumeRequest
from virtd.errors import InvalidArgumentError
from virtd.libvirt.storage import Storage
from virtd.model.guest import DiskFormat

QCOW2, RAW = DiskFormat.QCOW2, DiskFormat.RAW


def storage_of(lab: Lab) -> Storage:
    storage = lab.session.facets.storage
    assert isinstance(storage, Storage)
    return storage


def image(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


async def test_the_copy_of_an_overlay_is_whole(lab: Lab, tmp_path: Path) -> None:
    """Also of one outside of all pools, which names the file below it by a relative path."""
    base, overlay = tmp_path / "base.raw", tmp_path / "overlay.qcow2"
    base.write_bytes(b"below" * 1000 + bytes(MIB))
    image("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", overlay)
    await storage_of(lab).ensure_default_pool(Context())
    request = VolumeRequest("virtd", "whole.qcow2", QCOW2, source_path=str(overlay), source_format=QCOW2)
    made = await storage_of(lab).create_volume(request, Context())
    try:
        assert made.backing_path == ""
        image("compare", "-f", "raw", "-F", "qcow2", base, made.path)
    finally:
        await storage_of(lab).delete_volume("virtd", "whole.qcow2", Context())


async def test_a_raw_file_that_names_a_file_of_the_host(lab: Lab, tmp_path: Path) -> None:
    """A guest has written that on its raw disk: nobody follows it, whoever copies."""
    secret, disk = tmp_path / "secret", tmp_path / "disk.raw"
    secret.write_bytes(b"secret" * 1000 + bytes(MIB))
    image("create", "-f", "qcow2", "-b", secret, "-F", "raw", disk)
    await storage_of(lab).ensure_default_pool(Context())
    request = VolumeRequest("virtd", "taken.raw", RAW, source_path=str(disk), source_format=RAW)
    for copy in (
        storage_of(lab).create_volume(request, Context()),
        storage_of(lab).convert(request, Context(), exact=True),
    ):
        with pytest.raises(InvalidArgumentError, match=r"looks like qcow2|is not an image of format RAW"):
            await copy
        assert "taken.raw" not in [volume.name for volume in await storage_of(lab).list_volumes("virtd")]


async def test_the_clone_of_a_raw_volume_that_names_a_file_of_the_host(lab: Lab, tmp_path: Path) -> None:
    """The pool itself takes it for an image with a backing file; what its guest takes it for counts."""
    storage, volumes = storage_of(lab), lab.session.facets.volume_changes
    assert volumes is not None
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000 + bytes(MIB))
    await storage.ensure_default_pool(Context())
    made = await storage.create_volume(VolumeRequest("virtd", "disk.raw", RAW, MIB), Context())
    try:
        image("create", "-f", "qcow2", "-b", secret, "-F", "raw", made.path)
        for format_ in (RAW, QCOW2):
            with pytest.raises(InvalidArgumentError, match=r"looks like qcow2|is not an image of format RAW"):
                await volumes.clone_volume("virtd", "disk.raw", "virtd", "taken", format_, Context(), source_format=RAW)
            assert "taken" not in [volume.name for volume in await storage.list_volumes("virtd")]
    finally:
        await storage.delete_volume("virtd", "disk.raw", Context())
