"""Golden files of pools: what libvirt is told, also of kinds that no machine of ours can start.

``VIRTD_REGENERATE=1 pytest tests/golden`` writes them anew; look at the difference before it is kept.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtd.backend.api import PoolRequest
from virtd.backend.capabilities import POOL_LOGICAL, POOL_NFS
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.pools import Pools, missing_kinds
from virtd.libvirt.xml.storage import PoolXml
from virtd.model.storage import PoolKind

HERE = Path(__file__).parent / "pools"

CASES = {
    "dir": PoolRequest("disks", PoolKind.DIR, "/srv/disks", autostart=True),
    "dir-markup": PoolRequest("odd", PoolKind.DIR, "/srv/a & <b> \"c\" 'd'"),
    "logical": PoolRequest("vg", PoolKind.LOGICAL, volume_group="vg0"),
    "nfs": PoolRequest("shared", PoolKind.NFS, "/mnt/shared", server="files.example", export="/export/disks"),
    "nfs-ipv6": PoolRequest("shared6", PoolKind.NFS, "/mnt/shared", server="2001:db8::1", export="/export/disks"),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    request = CASES[name]
    pools = Pools(HostConnections("qemu:///system"))
    xml = pools.lower_pool(request)
    assert xml == pools.lower_pool(request), "pure: the same twice"
    path = HERE / f"{name}.xml"
    if os.environ.get("VIRTD_REGENERATE"):
        path.write_text(xml)
    assert xml == path.read_text()
    read = PoolXml.parse(xml)
    assert read.name == request.name
    assert read.path == (request.path or f"/dev/{request.volume_group}")
    assert (read.server, read.export, read.volume_group) == (request.server, request.export, request.volume_group)


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in HERE.glob("*.xml")} == set(CASES)


class Connection:
    """What a libvirt of these abilities says."""

    def __init__(self, uri: str, *offered: str) -> None:
        self._uri, self._offered = uri, offered

    def getURI(self) -> str:  # noqa: N802 - libvirt's name
        return self._uri

    def getStoragePoolCapabilities(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        kinds = "".join(
            f"<pool type='{kind}' supported='{'yes' if kind in self._offered else 'no'}'/>"
            for kind in ("dir", "logical", "netfs")
        )
        return f"<storagepoolCapabilities>{kinds}</storagepoolCapabilities>"


def test_kinds_that_a_host_has_not_and_why() -> None:
    assert missing_kinds(Connection("qemu:///system", "dir", "logical", "netfs")) == {}
    (missing,) = missing_kinds(Connection("qemu+ssh://root@h/system", "dir", "logical")).items()
    assert missing == (POOL_NFS, "the host's libvirt was built or installed without pools of type netfs")
    session = missing_kinds(Connection("qemu:///session?socket=/run/x", "dir", "logical", "netfs"))
    assert session.keys() == {POOL_LOGICAL, POOL_NFS}
    assert "ordinary user" in session[POOL_NFS]
