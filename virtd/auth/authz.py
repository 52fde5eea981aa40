"""Who may call what: one table from method to permission, and a policy that grants permissions.

Default deny: a method without a row may be called by nobody, and a peer that the policy does not
know has no permission.  The check is made before virtd looks whether the resource exists, so that
a refusal tells nothing about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from virtd.auth.identity import Peer
from virtd.errors import ACCESS_DENIED, PermissionDeniedError


class Permission(StrEnum):
    """What a row of the table asks for.  The names are public: roles will be made of them."""

    HEALTH = "health"
    """Ask whether the daemon serves.  Everybody has it."""
    API_DISCOVER = "api.discover"
    SERVER_READ = "server.read"
    HOSTS_READ = "hosts.read"
    HOSTS_MANAGE = "hosts.manage"
    GUESTS_READ = "guests.read"
    GUESTS_OPERATE = "guests.operate"
    """Start, stop and the like: nothing is lost for ever."""
    GUESTS_MANAGE = "guests.manage"
    """Create, change, adopt, delete."""
    SNAPSHOTS_MANAGE = "snapshots.manage"
    BACKUPS_READ = "backups.read"
    BACKUPS_MANAGE = "backups.manage"
    """Make and delete backups, and restore them into new guests."""
    CONSOLE_READ = "console.read"
    CONSOLE_WRITE = "console.write"
    AGENT_EXECUTE = "agent.execute"
    STORAGE_READ = "storage.read"
    STORAGE_MANAGE = "storage.manage"
    NETWORKS_MANAGE = "networks.manage"
    OPERATIONS_READ = "operations.read"
    OPERATIONS_MANAGE = "operations.manage"
    EVENTS_READ = "events.read"
    AUDIT_READ = "audit.read"


_P = Permission


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: what a method needs, and whether a call of it is written to the audit log."""

    permission: Permission
    audited: bool = False


def _rows(service: str, permission: Permission, *methods: str, audited: bool = False) -> dict[str, Rule]:
    return {f"/{service}/{method}": Rule(permission, audited) for method in methods}


# fmt: off
TABLE: Final[Mapping[str, Rule]] = {
    **_rows("virtd.v1.ServerService", _P.SERVER_READ, "GetServerInfo"),
    **_rows("virtd.v1.HostService", _P.HOSTS_READ, "GetHost", "ListHosts", "ProbeHost", "GetCapabilities",
            "DiagnoseHost"),
    **_rows("virtd.v1.HostService", _P.HOSTS_MANAGE, "AddHost", "RemoveHost", audited=True),
    **_rows("virtd.v1.GuestService", _P.GUESTS_READ, "GetGuest", "ListGuests", "PlanGuest", "WaitGuest"),
    **_rows("virtd.v1.GuestService", _P.GUESTS_MANAGE,
            "CreateGuest", "UpdateGuest", "DeleteGuest", "AdoptGuest", "CloneGuest", "ReleaseGuest", audited=True),
    **_rows("virtd.v1.TrashService", _P.GUESTS_READ, "ListTrash", "GetTrashEntry"),
    **_rows("virtd.v1.TrashService", _P.GUESTS_MANAGE, "RecoverGuest", "PurgeTrash", audited=True),
    **_rows("virtd.v1.TransferService", _P.GUESTS_READ, "CheckMigration"),
    **_rows("virtd.v1.TransferService", _P.GUESTS_MANAGE, "Migrate", audited=True),
    **_rows("virtd.v1.DeviceService", _P.GUESTS_MANAGE,
            "AttachDisk", "DetachDisk", "ResizeDisk", "AttachInterface", "DetachInterface", "SetLink", "InsertMedium",
            "EjectMedium", audited=True),
    **_rows("virtd.v1.GuestService", _P.GUESTS_OPERATE,
            "StartGuest", "ShutdownGuest", "StopGuest", "RebootGuest", "ResetGuest", "PauseGuest", "ResumeGuest",
            "SuspendGuest", "DiscardSavedState", audited=True),
    **_rows("virtd.v1.SnapshotService", _P.GUESTS_READ, "GetSnapshot", "ListSnapshots"),
    **_rows("virtd.v1.SnapshotService", _P.SNAPSHOTS_MANAGE,
            "CreateSnapshot", "UpdateSnapshot", "RevertSnapshot", "DeleteSnapshot", audited=True),
    **_rows("virtd.v1.BackupService", _P.BACKUPS_READ,
            "GetBackup", "ListBackups", "ListRepositories"),
    **_rows("virtd.v1.BackupService", _P.BACKUPS_MANAGE,
            "CreateBackup", "VerifyBackup", "RestoreBackup", "DeleteBackup", audited=True),
    **_rows("virtd.v1.ScheduleService", _P.GUESTS_READ, "GetSchedule", "ListSchedules"),
    **_rows("virtd.v1.ScheduleService", _P.SNAPSHOTS_MANAGE,
            "CreateSchedule", "UpdateSchedule", "DeleteSchedule", "RunSchedule", audited=True),
    **_rows("virtd.v1.PoolService", _P.STORAGE_READ, "GetPool", "ListPools"),
    **_rows("virtd.v1.PoolService", _P.STORAGE_MANAGE,
            "CreatePool", "UpdatePool", "StartPool", "StopPool", "RefreshPool", "DeletePool", audited=True),
    **_rows("virtd.v1.VolumeService", _P.STORAGE_READ, "GetVolume", "ListVolumes"),
    # The content of a disk is as secret as what the guest knows: reading it is not mere looking.
    **_rows("virtd.v1.VolumeService", _P.STORAGE_MANAGE,
            "CreateVolume", "ResizeVolume", "CloneVolume", "DeleteVolume", "DownloadVolume", audited=True),
    **_rows("virtd.v1.UploadService", _P.STORAGE_READ, "GetUpload", "ListUploads"),
    **_rows("virtd.v1.UploadService", _P.STORAGE_MANAGE,
            "StartUpload", "WriteUpload", "CommitUpload", "DeleteUpload", audited=True),
    **_rows("virtd.v1.NetworkService", _P.HOSTS_READ, "GetNetwork", "ListNetworks", "ListLeases"),
    **_rows("virtd.v1.NetworkService", _P.NETWORKS_MANAGE,
            "CreateNetwork", "StartNetwork", "StopNetwork", "UpdateNetwork", "DeleteNetwork", audited=True),
    **_rows("virtd.v1.ImageService", _P.STORAGE_READ, "GetImage", "ListImages"),
    **_rows("virtd.v1.ImageService", _P.STORAGE_MANAGE, "ImportImage", "DeleteImage", audited=True),
    **_rows("virtd.v1.ConsoleService", _P.CONSOLE_WRITE, "AttachConsole", audited=True),
    **_rows("virtd.v1.ConsoleService", _P.CONSOLE_WRITE, "CreateConsoleTicket", "AttachGraphics", audited=True),
    **_rows("virtd.v1.ConsoleService", _P.CONSOLE_READ, "ReadConsoleLog", "FollowConsoleLog", "TakeScreenshot"),
    **_rows("virtd.v1.AgentService", _P.AGENT_EXECUTE,
            "ExecCommand", "ExecStream", "ReadFile", "WriteFile", audited=True),
    **_rows("virtd.v1.AgentService", _P.GUESTS_OPERATE, "FreezeFilesystems", "ThawFilesystems", audited=True),
    **_rows("virtd.v1.AgentService", _P.GUESTS_READ, "GetOsInfo"),
    **_rows("virtd.v1.EventService", _P.EVENTS_READ, "WatchEvents", "PullEvents"),
    **_rows("virtd.v1.MetricsService", _P.GUESTS_READ, "GetMetrics", "ListUsage"),
    **_rows("virtd.v1.AuditService", _P.AUDIT_READ, "ListAuditRecords"),
    **_rows("google.longrunning.Operations", _P.OPERATIONS_READ, "GetOperation", "ListOperations", "WaitOperation"),
    **_rows("google.longrunning.Operations", _P.OPERATIONS_MANAGE,
            "CancelOperation", "DeleteOperation", audited=True),
    **_rows("grpc.health.v1.Health", _P.HEALTH, "Check", "List", "Watch"),
    **_rows("grpc.reflection.v1.ServerReflection", _P.API_DISCOVER, "ServerReflectionInfo"),
    **_rows("grpc.reflection.v1alpha.ServerReflection", _P.API_DISCOVER, "ServerReflectionInfo"),
}
"""Every method that is served, by its path (a test fails when one has no row)."""
# fmt: on

EVERYTHING: Final = frozenset(Permission)


@dataclass(frozen=True, slots=True)
class Policy:
    """Whom virtd trusts with everything; everybody else gets nothing.

    root and the daemon's own user always are among them: both could take over the daemon anyway.

    :param uids: further users.
    :param gids: members of these groups, by the groups that their process has.
    :param tcp: whether callers by TCP are trusted.  They are not authenticated at all, so this is
        for ``--insecure`` on loopback only, where every local user then has full rights.
    """

    own_uid: int
    uids: frozenset[int] = field(default_factory=frozenset)
    gids: frozenset[int] = field(default_factory=frozenset)
    tcp: bool = False

    def permissions(self, peer: Peer) -> frozenset[Permission]:
        """What this peer may do, besides asking for the daemon's health."""
        if peer.kind == "unix" and (
            peer.uid in {0, self.own_uid} or peer.uid in self.uids or not self.gids.isdisjoint(peer.groups)
        ):
            return EVERYTHING
        if peer.kind == "tcp" and self.tcp:
            return EVERYTHING
        return frozenset()


def authorize(policy: Policy, peer: Peer, method: str) -> Rule:
    """The method's row, if the peer may call it.

    :param method: the path of the method, ``/virtd.v1.GuestService/StartGuest``.
    :raises PermissionDeniedError: ACCESS_DENIED: it may not, or the method has no row.
    """
    rule = TABLE.get(method)
    if rule is None:
        raise PermissionDeniedError(ACCESS_DENIED, f"{method} has no row in the table of permissions")
    if rule.permission is Permission.HEALTH or rule.permission in policy.permissions(peer):
        return rule
    raise PermissionDeniedError(
        ACCESS_DENIED,
        f"{peer.caller} may not call {method}: it needs {rule.permission.value}",
        metadata={"permission": rule.permission.value, "caller": peer.caller},
    )
