"""Pools, volumes, networks, backups, trash, schedules, devices, files: what each command sends, and refuses to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.guestctl_kit import Ctl, environment, guest, hosts
from tests.rpc.scripted_server import ScriptedServer, operation, stream
from virtd.v1 import (
    agent_pb2,
    backup_pb2,
    device_pb2,
    guest_pb2,
    guest_service_pb2,
    network_pb2,
    operation_pb2,
    schedule_pb2,
    snapshot_pb2,
    storage_pb2,
    trash_pb2,
)

WEB = "hosts/a/guests/web"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as found:
        found.on("ListHosts", hosts("a"))
        yield found


@pytest.fixture
def ctl(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Ctl:
    for name, value in environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GUESTCTL_CONTEXT", raising=False)
    monkeypatch.chdir(tmp_path)
    return Ctl(server, capfd)


def answers(server: ScriptedServer, method: str, response_type: Any, result: Any) -> None:
    server.on(method, response_type(operation=operation("operations/1", response=result)))


def sent(server: ScriptedServer, method: str) -> Any:
    (call,) = server.calls_of(method)
    return call.request


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        (["--path", "/srv/x"], "directory", {"path": "/srv/x"}),
        (["--volume-group", "vg0"], "logical", {"volume_group": "vg0"}),
        (["--nfs", "nas:/export", "--path", "/mnt/x"], "nfs", {"server": "nas", "export": "/export"}),
    ],
)
def test_pool_create(
    ctl: Ctl, server: ScriptedServer, options: list[str], field: str, expected: dict[str, str]
) -> None:
    answers(server, "CreatePool", storage_pb2.CreatePoolResponse, storage_pb2.Pool(name="hosts/a/pools/p"))
    result = ctl("pool", "create", "p", *options, "--autostart")
    assert result.code == 0, result.err
    request = sent(server, "CreatePool")
    assert (request.parent, request.pool_id, request.autostart) == ("hosts/a", "p", True)
    for key, value in expected.items():
        assert getattr(getattr(request, field), key) == value


@pytest.mark.parametrize(
    "options",
    [[], ["--volume-group", "vg", "--path", "/x"], ["--nfs", "nas", "--path", "/x"]],
)
def test_pool_create_refuses_what_is_not_clear(ctl: Ctl, server: ScriptedServer, options: list[str]) -> None:
    assert ctl("pool", "create", "p", *options).code == 2
    assert server.calls_of("CreatePool") == []


def test_pool_verbs(ctl: Ctl, server: ScriptedServer) -> None:
    pool = storage_pb2.Pool(name="hosts/a/pools/p")
    for verb in ("Start", "Stop", "Refresh"):
        answers(server, f"{verb}Pool", getattr(storage_pb2, f"{verb}PoolResponse"), pool)
        result = ctl("pool", verb.lower(), "hosts/a/pools/p")
        assert result.code == 0, result.err
        assert sent(server, f"{verb}Pool").name == pool.name
    answers(server, "DeletePool", storage_pb2.DeletePoolResponse, operation_pb2.OperationResult())
    assert ctl("pool", "delete", "hosts/a/pools/p", "--remove-directory").code == 0
    assert sent(server, "DeletePool").remove_directory


def test_volume_verbs(ctl: Ctl, server: ScriptedServer) -> None:
    volume = storage_pb2.Volume(name="hosts/a/pools/p/volumes/v")
    answers(server, "ResizeVolume", storage_pb2.ResizeVolumeResponse, volume)
    assert ctl("volume", "resize", volume.name, "--size", "2GiB").code == 0
    request = sent(server, "ResizeVolume")
    assert (request.name, request.capacity_bytes, request.allow_shrink) == (volume.name, 2 << 30, False)
    answers(server, "CloneVolume", storage_pb2.CloneVolumeResponse, volume)
    assert ctl("volume", "clone", volume.name, "w", "--format", "raw").code == 0
    request = sent(server, "CloneVolume")
    assert (request.volume_id, request.destination_parent) == ("w", "hosts/a/pools/p")


def test_volume_transfers_look_at_the_file_first(ctl: Ctl, server: ScriptedServer, tmp_path: Path) -> None:
    there = tmp_path / "there.img"
    there.write_bytes(b"x")
    name = "hosts/a/pools/p/volumes/v"
    missing = ctl("volume", "upload", "hosts/a/pools/p", "v", "nowhere.img", "--format", "raw")
    assert missing.code == 2
    assert "nowhere.img" in missing.err
    taken = ctl("volume", "download", name, str(there))
    assert taken.code == 2
    assert "--force" in taken.err
    assert server.calls_of("StartUpload") == []
    assert there.read_bytes() == b"x"


def test_network_create(ctl: Ctl, server: ScriptedServer) -> None:
    network = network_pb2.Network(name="hosts/a/networks/n")
    answers(server, "CreateNetwork", network_pb2.CreateNetworkResponse, network)
    result = ctl("network", "create", "n", "--cidr", "192.0.2.0/24", "--dhcp", "192.0.2.10-192.0.2.20")
    assert result.code == 0, result.err
    request = sent(server, "CreateNetwork")
    spec = request.network
    assert spec.mode == network_pb2.NETWORK_MODE_NAT
    assert (spec.dhcp_range.start, spec.dhcp_range.end) == ("192.0.2.10", "192.0.2.20")
    assert not spec.HasField("dhcp")


@pytest.mark.parametrize("options", [[], ["--cidr", "192.0.2.0/24", "--dhcp", "1"], ["--mode", "magic"]])
def test_network_create_refuses_what_is_not_clear(ctl: Ctl, server: ScriptedServer, options: list[str]) -> None:
    assert ctl("network", "create", "n", *options).code == 2
    assert server.calls_of("CreateNetwork") == []


def test_leases(ctl: Ctl, server: ScriptedServer) -> None:
    lease = network_pb2.DhcpLease(mac="52:54:00:00:00:01", address="192.0.2.10", guest=WEB)
    server.on("ListLeases", network_pb2.ListLeasesResponse(leases=[lease]))
    assert ctl("network", "leases", "hosts/a/networks/n").out.splitlines()[1].split()[:2] == [lease.address, lease.mac]


def test_backup_verbs(ctl: Ctl, server: ScriptedServer) -> None:
    backup = backup_pb2.Backup(name="backups/b1", guest=WEB)
    answers(server, "CreateBackup", backup_pb2.CreateBackupResponse, backup)
    assert ctl("backup", "create", WEB, "b1", "--kind", "full", "--quiesce").code == 0
    request = sent(server, "CreateBackup")
    assert (request.backup_id, request.quiesce, request.kind) == ("b1", True, backup_pb2.BACKUP_KIND_FULL)
    answers(server, "RestoreBackup", backup_pb2.RestoreBackupResponse, guest("again"))
    assert ctl("backup", "restore", "b1", "again", "--start").code == 0
    request = sent(server, "RestoreBackup")
    assert (request.name, request.guest_id, request.start, request.parent) == ("backups/b1", "again", True, "")


def test_backup_create_finds_a_name_of_its_own(ctl: Ctl, server: ScriptedServer) -> None:
    answers(server, "CreateBackup", backup_pb2.CreateBackupResponse, backup_pb2.Backup(name="backups/x"))
    assert ctl("backup", "create", WEB).code == 0
    assert sent(server, "CreateBackup").backup_id.startswith("web-2")


def test_verify_ends_with_1_for_a_damaged_backup(ctl: Ctl, server: ScriptedServer) -> None:
    found = backup_pb2.BackupVerification(name="backups/b1")
    answers(server, "VerifyBackup", backup_pb2.VerifyBackupResponse, found)
    assert ctl("backup", "verify", "b1").code == 0
    found.problems.add(backup="backups/b0", file="root.qcow2", description="other content")
    answers(server, "VerifyBackup", backup_pb2.VerifyBackupResponse, found)
    result = ctl("backup", "verify", "b1")
    assert result.code == 1
    assert "root.qcow2" in result.out


def test_delete_to_the_trash_and_back(ctl: Ctl, server: ScriptedServer) -> None:
    answers(server, "DeleteGuest", guest_service_pb2.DeleteGuestResponse, operation_pb2.OperationResult())
    result = ctl("delete", WEB, "--trash")
    assert result.code == 0, result.err
    assert sent(server, "DeleteGuest").disk_policy == guest_service_pb2.DISK_POLICY_TRASH
    assert ctl("delete", WEB, "--trash", "--keep-disks").code == 2
    entry = trash_pb2.TrashEntry(name="trash/web-1", guest=guest("web"))
    server.on("ListTrash", trash_pb2.ListTrashResponse(entries=[entry]))
    answers(server, "RecoverGuest", trash_pb2.RecoverGuestResponse, guest("web"))
    assert ctl("trash", "recover", "web", "--as", "web2").code == 0
    request = sent(server, "RecoverGuest")
    assert (request.name, request.guest_id) == ("trash/web-1", "web2")
    assert ctl("trash", "purge").code == 2, "not everything by accident"


def test_two_of_a_name_in_the_trash_are_told_apart(ctl: Ctl, server: ScriptedServer) -> None:
    entries = [trash_pb2.TrashEntry(name=f"trash/web-{n}", guest=guest("web")) for n in (1, 2)]
    server.on("ListTrash", trash_pb2.ListTrashResponse(entries=entries))
    result = ctl("trash", "recover", "web")
    assert result.code == 2
    assert "trash/web-1, trash/web-2" in result.err


def test_clone_protect_release(ctl: Ctl, server: ScriptedServer) -> None:
    answers(server, "CloneGuest", guest_service_pb2.CloneGuestResponse, guest("web2"))
    assert ctl("clone", WEB, "web2", "--linked", "--start").code == 0
    request = sent(server, "CloneGuest")
    assert (request.name, request.guest_id, request.start) == (WEB, "web2", True)
    assert request.mode == guest_service_pb2.CLONE_MODE_LINKED
    answers(server, "UpdateGuest", guest_service_pb2.UpdateGuestResponse, guest("web"))
    assert ctl("protect", WEB).code == 0
    request = sent(server, "UpdateGuest")
    assert list(request.update_fields) == ["spec.deletion_protection"]
    assert request.guest.spec.deletion_protection
    answers(server, "ReleaseGuest", guest_service_pb2.ReleaseGuestResponse, guest("web"))
    assert ctl("release", WEB).code == 0


def test_devices(ctl: Ctl, server: ScriptedServer) -> None:
    for method in ("AttachDisk", "DetachDisk", "InsertMedium", "EjectMedium", "ResizeDisk", "AttachInterface"):
        answers(server, method, getattr(device_pb2, f"{method}Response"), guest("web"))
    assert ctl("attach", "disk", WEB, "name=data,size=1GiB").code == 0
    assert sent(server, "AttachDisk").disk.blank.capacity_bytes == 1 << 30
    assert ctl("detach", "disk", WEB, "data", "--delete-volume", "--mode", "live-only").code == 0
    request = sent(server, "DetachDisk")
    assert request.delete_volume
    assert request.mode == guest_service_pb2.UPDATE_MODE_LIVE_ONLY
    assert ctl("insert", WEB, "cd", "file=/srv/x.iso,format=raw").code == 0
    assert ctl("eject", WEB, "cd", "--force").code == 0
    assert ctl("resize", WEB, "root", "2GiB").code == 0
    assert sent(server, "ResizeDisk").capacity_bytes == 2 << 30
    assert ctl("attach", "interface", WEB, "network:default,name=lan").code == 0
    assert sent(server, "AttachInterface").interface.kind == guest_pb2.INTERFACE_KIND_NETWORK


def test_schedules(ctl: Ctl, server: ScriptedServer) -> None:
    made = schedule_pb2.Schedule(name="schedules/nightly", guest=WEB, cron="0 3 * * *")
    server.on("CreateSchedule", schedule_pb2.CreateScheduleResponse(schedule=made))
    result = ctl("schedule", "create", "nightly", "--guest", WEB, "--cron", "0 3 * * *", "--keep-daily", "7")
    assert result.code == 0, result.err
    wanted = sent(server, "CreateSchedule").schedule
    assert (wanted.guest, wanted.cron, wanted.retention.keep_daily) == (WEB, "0 3 * * *", 7)
    assert wanted.WhichOneof("action") == "snapshot"
    server.on("UpdateSchedule", schedule_pb2.UpdateScheduleResponse(schedule=made))
    assert ctl("schedule", "pause", "nightly").code == 0
    assert sent(server, "UpdateSchedule").schedule.paused
    for options in (["--cron", "x"], ["--guest", WEB], ["--guest", WEB, "--cron", "x", "--every", "1h"]):
        assert ctl("schedule", "create", "n", *options).code == 2


def test_snapshot_location(ctl: Ctl, server: ScriptedServer) -> None:
    answers(server, "CreateSnapshot", snapshot_pb2.CreateSnapshotResponse, snapshot_pb2.Snapshot(name="x"))
    assert ctl("snapshot", "create", WEB, "s", "--location", "external", "--quiesce").code == 0
    request = sent(server, "CreateSnapshot")
    assert request.location == snapshot_pb2.SNAPSHOT_LOCATION_EXTERNAL
    assert request.quiesce


def test_cp_wants_exactly_one_guest(ctl: Ctl, server: ScriptedServer) -> None:
    for pair in (("a", "b"), (f"{WEB}:/a", f"{WEB}:/b"), ("./x:y", "/z:w")):
        assert ctl("cp", *pair).code == 2
    assert ctl("cp", "missing", f"{WEB}:/x").code == 2
    assert ctl("cp", "-", f"{WEB}:/x", "--mode", "9").code == 2


def test_cp_out_of_a_guest(ctl: Ctl, server: ScriptedServer, tmp_path: Path) -> None:
    server.on("ReadFile", stream(agent_pb2.ReadFileResponse(data=b"con"), agent_pb2.ReadFileResponse(data=b"tent")))
    result = ctl("cp", f"{WEB}:/etc/motd", str(tmp_path))
    assert result.code == 0, result.err
    assert (tmp_path / "motd").read_bytes() == b"content"


def test_freeze_and_os_info(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("FreezeFilesystems", agent_pb2.FreezeFilesystemsResponse(frozen_count=2))
    assert "2 file systems frozen" in ctl("agent", "freeze", WEB, "--for", "10s").err
    assert sent(server, "FreezeFilesystems").timeout_s == 10
    server.on("GetOsInfo", agent_pb2.GetOsInfoResponse(os_info=agent_pb2.AgentOsInfo(id="debian")))
    assert "id: debian" in ctl("agent", "os-info", WEB).out


def test_snapshots_of_all_guests_are_one_call_and_what_could_not_be_asked_is_said(
    ctl: Ctl, server: ScriptedServer
) -> None:
    answer = snapshot_pb2.ListSnapshotsResponse(snapshots=[snapshot_pb2.Snapshot(name=f"{WEB}/snapshots/s")])
    answer.errors.add(resource="hosts/b", reason="HOST_UNREACHABLE", kind="Unavailable", message="it is silent")
    answer.errors.add(resource="hosts/c", reason="CAPABILITY_UNSUPPORTED", kind="Unsupported", message="has none")
    server.on("ListSnapshots", answer)
    result = ctl("get", "snapshots")
    assert result.code == 8
    assert result.out.splitlines()[1].split()[:2] == ["s", "web"]
    assert "host b does not answer: it is silent" in result.err
    assert "has none" not in result.err
    assert sent(server, "ListSnapshots").parent == "hosts/-/guests/-"
