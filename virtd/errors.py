"""Every error that virtd raises on purpose, and the catalogue of reasons.

The tree is small: one class per *kind* of failure (the kinds are those of
``google.rpc.Code``), and one :class:`Reason` per *cause*.  Code that handles errors branches on
the class or on ``error.reason.name``, never on message text.  The shape follows psycopg's
"code -> class" registry.

This module knows nothing of gRPC; :mod:`virtd.rpc.status` turns these classes into a
``google.rpc.Status``.

Reason names are part of the public API: they are never renamed and never reused.

Longer than 500 lines because the catalogue is one list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Self

DOMAIN: Final = "virtd"
"""The ``ErrorInfo.domain`` of every error."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that cannot be accepted.

    ``field`` is the path of the field in the request (``guest.spec.disks[0].capacity_bytes``),
    ``description`` says what is wrong and what would be right; ``alternatives`` lists values
    that would be accepted here (may be empty).
    """

    field: str
    description: str
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NativeError:
    """What the hypervisor's own API said: kept verbatim, for the person who has to look further.

    ``call`` is the native call (``virDomainCreate``), ``code`` its code as text (``1`` for
    VIR_ERR_INTERNAL_ERROR), ``message`` its message.  Never contains secrets.
    """

    call: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Reason:
    """One entry of the catalogue: a stable name, the kind of error, and what to do next."""

    name: str
    kind: str
    summary: str
    remedy: str


_CATALOGUE: dict[str, Reason] = {}


def _reason(name: str, kind: str, summary: str, remedy: str) -> Reason:
    if name in _CATALOGUE:
        message = f"reason {name} is declared twice"
        raise RuntimeError(message)
    entry = Reason(name, kind, summary, remedy)
    _CATALOGUE[name] = entry
    return entry


# fmt: off
FIELD_INVALID = _reason("FIELD_INVALID", "InvalidArgument",
    "A field of the request has a value that is never valid.",
    "Correct the field that the BadRequest detail names and send the request again.")
FIELD_UNSUPPORTED = _reason("FIELD_UNSUPPORTED", "InvalidArgument",
    "A field is valid, but this host cannot do what it asks.",
    "Use one of the alternatives, or another host; `guestctl capabilities HOST` lists what a host can do.")
PATH_NOT_ALLOWED = _reason("PATH_NOT_ALLOWED", "InvalidArgument",
    "A host path lies outside the directories that the configuration allows.",
    "Move the file into an allowed directory, import it as an image, or extend `storage.allowed_directories`.")
REQUEST_ID_REUSED = _reason("REQUEST_ID_REUSED", "InvalidArgument",
    "The request_id was used before with another request body.",
    "Use a new UUID for a new request; repeat a request_id only with an identical request.")
FILTER_INVALID = _reason("FILTER_INVALID", "InvalidArgument",
    "The filter expression cannot be parsed or names an unknown field.",
    "See the reference of filter expressions; the message gives the position.")
PAGE_TOKEN_INVALID = _reason("PAGE_TOKEN_INVALID", "InvalidArgument",
    "The page token was not issued by this list call.",
    "Start again with the first page.")
DIGEST_MISMATCH = _reason("DIGEST_MISMATCH", "InvalidArgument",
    "The bytes that arrived do not have the digest that was stated.",
    "Compute the digest of the whole file anew; if it is as stated, delete the upload and send it again.")
IMAGE_INVALID = _reason("IMAGE_INVALID", "InvalidArgument",
    "The file is not an image of the stated format, or has a backing file.",
    "Convert it to a stand-alone image with qemu-img and state its true format.")
CONFIG_INVALID = _reason("CONFIG_INVALID", "InvalidArgument",
    "The configuration cannot be used.",
    "Run `virtd config check` and correct the option that the message names.")

GUEST_NOT_FOUND = _reason("GUEST_NOT_FOUND", "NotFound",
    "No such guest on this host.",
    "List the guests with `guestctl get guests`.")
HOST_NOT_FOUND = _reason("HOST_NOT_FOUND", "NotFound",
    "No such host is configured.",
    "List the hosts with `guestctl get hosts`, or add one.")
SNAPSHOT_NOT_FOUND = _reason("SNAPSHOT_NOT_FOUND", "NotFound",
    "The guest has no such snapshot.",
    "List the snapshots with `guestctl snapshot list GUEST`.")
POOL_NOT_FOUND = _reason("POOL_NOT_FOUND", "NotFound",
    "No such storage pool on this host.",
    "List the pools with `guestctl get pools`.")
VOLUME_NOT_FOUND = _reason("VOLUME_NOT_FOUND", "NotFound",
    "No such volume in this pool.",
    "List the volumes with `guestctl get volumes`.")
NETWORK_NOT_FOUND = _reason("NETWORK_NOT_FOUND", "NotFound",
    "No such network on this host.",
    "List the networks with `guestctl get networks`.")
NETWORK_EXISTS = _reason("NETWORK_EXISTS", "AlreadyExists",
    "A network of this name exists on this host.",
    "Choose another name, or delete the network first.")
NETWORK_OVERLAPS = _reason("NETWORK_OVERLAPS", "InvalidArgument",
    "The network's addresses are those of another network, or of one that the host is connected to.",
    "Choose another range of addresses; `guestctl get networks` shows those in use.")
NETWORK_IN_USE = _reason("NETWORK_IN_USE", "FailedPrecondition",
    "A guest has an interface on this network.",
    "Delete these guests, or connect them to another network, first.")
NETWORK_REFUSED = _reason("NETWORK_REFUSED", "FailedPrecondition",
    "The host cannot set up the network.",
    "The detail gives the host's own words: a bridge that is missing, no right to make one, no DHCP server.")
URL_NOT_ALLOWED = _reason("URL_NOT_ALLOWED", "InvalidArgument",
    "virtd does not fetch from this URL: its scheme, or the address that it leads to, is not allowed.",
    "Use http or https and a public address, or set `images.allow_private_addresses` for a server of your own.")
FETCH_FAILED = _reason("FETCH_FAILED", "Unavailable",
    "The URL could not be fetched.",
    "The message gives the server's answer; check the URL, the proxy and the network of the daemon's machine.")
BACKUP_NOT_FOUND = _reason("BACKUP_NOT_FOUND", "NotFound",
    "No such backup in any repository.",
    "List the backups with `guestctl get backups`.")
REPOSITORY_NOT_FOUND = _reason("REPOSITORY_NOT_FOUND", "NotFound",
    "No such backup repository is configured.",
    "Use one of those that the message names, or configure it in `storage.backup_repositories`.")
SCHEDULE_NOT_FOUND = _reason("SCHEDULE_NOT_FOUND", "NotFound",
    "No such schedule.",
    "List the schedules (ScheduleService.ListSchedules).")
IMAGE_NOT_FOUND = _reason("IMAGE_NOT_FOUND", "NotFound",
    "No such image in the catalogue.",
    "List the images with `guestctl get images`, or import one.")
AGENT_FILE_NOT_FOUND = _reason("AGENT_FILE_NOT_FOUND", "NotFound",
    "The guest has no such file.",
    "Check the path in the guest; it must be absolute.")
UPLOAD_NOT_FOUND = _reason("UPLOAD_NOT_FOUND", "NotFound",
    "No such upload: it was committed, deleted, or has expired.",
    "Look whether the volume or image is there already; else start a new upload.")
OPERATION_NOT_FOUND = _reason("OPERATION_NOT_FOUND", "NotFound",
    "No such operation, or it ended longer ago than the retention time.",
    "List the operations with `guestctl operations list`.")

TRASH_ENTRY_NOT_FOUND = _reason("TRASH_ENTRY_NOT_FOUND", "NotFound",
    "The trash has no such entry: it was recovered or purged.",
    "List what is there with TrashService.ListTrash.")

GUEST_EXISTS = _reason("GUEST_EXISTS", "AlreadyExists",
    "A guest of this name exists on this host.",
    "Choose another name, or delete the guest first.")
HOST_EXISTS = _reason("HOST_EXISTS", "AlreadyExists",
    "A host of this name is configured.",
    "Choose another name, or remove the host first.")
SNAPSHOT_EXISTS = _reason("SNAPSHOT_EXISTS", "AlreadyExists",
    "The guest has a snapshot of this name.",
    "Choose another name, or delete the snapshot first.")
VOLUME_EXISTS = _reason("VOLUME_EXISTS", "AlreadyExists",
    "A volume of this name exists in this pool.",
    "Choose another name, or delete the volume first.")
POOL_EXISTS = _reason("POOL_EXISTS", "AlreadyExists",
    "A pool of this name, or of this directory, exists on this host.",
    "Choose another name or directory, or use the pool that exists.")
BACKUP_EXISTS = _reason("BACKUP_EXISTS", "AlreadyExists",
    "A backup of this name is in one of the repositories.",
    "Choose another name, or delete the backup first.")
SCHEDULE_EXISTS = _reason("SCHEDULE_EXISTS", "AlreadyExists",
    "A schedule of this name exists.",
    "Choose another name, or update the schedule that there is.")
IMAGE_EXISTS = _reason("IMAGE_EXISTS", "AlreadyExists",
    "An image of this name is in the catalogue.",
    "Choose another name, or delete the image first.")

CAPABILITY_UNSUPPORTED = _reason("CAPABILITY_UNSUPPORTED", "Unsupported",
    "This host cannot do this.",
    "`guestctl capabilities HOST` gives the reason and what the host can do instead.")
INVALID_STATE = _reason("INVALID_STATE", "FailedPrecondition",
    "The action is not legal in the guest's present state.",
    "The detail lists the actions that are allowed now.")
GUEST_NOT_ADOPTED = _reason("GUEST_NOT_ADOPTED", "FailedPrecondition",
    "The guest was defined outside virtd, which never touches it before it is adopted.",
    "Run `guestctl adopt GUEST` first if virtd shall manage it.")
GUEST_PROTECTED = _reason("GUEST_PROTECTED", "FailedPrecondition",
    "The guest is protected against deletion.",
    "Take the protection away first: UpdateGuest with `spec.deletion_protection: false`.")
CLONE_IMPOSSIBLE = _reason("CLONE_IMPOSSIBLE", "FailedPrecondition",
    "The guest cannot be cloned in this way as it is now.",
    "The message says which disk or snapshot is in the way, and what to do.")
MIGRATION_BLOCKED = _reason("MIGRATION_BLOCKED", "FailedPrecondition",
    "The guest cannot be migrated to that host as things are now; nothing was touched.",
    "CheckMigration (`guestctl migrate GUEST --to HOST --dry-run`) lists what is in the way, each with what to do.")
MIGRATION_FAILED = _reason("MIGRATION_FAILED", "FailedPrecondition",
    "The hypervisors gave the migration up; the guest is on the source host, as the message says.",
    "Correct what the message names, and migrate again.")
MIGRATION_BROKEN = _reason("MIGRATION_BROKEN", "Internal",
    "The connection between the hosts broke after the switch to post-copy: each has a part of the guest's memory.",
    "Mend the connection, then `virsh migrate --postcopy --postcopy-resume` on the source goes on with it (libvirt 8.5 "
    "and later). Else stop the guest on both hosts and start it: what its memory held is lost.")
VOLUME_IN_USE = _reason("VOLUME_IN_USE", "FailedPrecondition",
    "A guest uses this volume.",
    "Delete the guest, or detach the disk, first.")
DEVICE_BUSY = _reason("DEVICE_BUSY", "FailedPrecondition",
    "The guest does not let go of a device, and keeps it.",
    "Unmount or stop using the device in the guest and try again, or make the change with mode NEXT_BOOT.")
RESTART_REQUIRED = _reason("RESTART_REQUIRED", "FailedPrecondition",
    "A change cannot be made in the running guest, and the request asked for LIVE_ONLY.",
    "Stop the guest first, or let the change wait for its next start with mode LIVE_OR_NEXT_BOOT.")
REPLACE_REQUIRED = _reason("REPLACE_REQUIRED", "FailedPrecondition",
    "A change needs the native guest to be removed and defined anew, which is never done unasked.",
    "Look at the plan (validate_only), stop the guest, and repeat the request with `allow_replace`.")
POOL_IN_USE = _reason("POOL_IN_USE", "FailedPrecondition",
    "Guests use volumes of this pool.",
    "The metadata's `used_by` names the guests; delete them, or move their disks, first.")
POOL_NOT_EMPTY = _reason("POOL_NOT_EMPTY", "FailedPrecondition",
    "The pool's directory cannot be removed: there are files in it.",
    "Delete the volumes one by one, or delete the pool without `remove_directory`: the files then stay.")
POOL_INACTIVE = _reason("POOL_INACTIVE", "FailedPrecondition",
    "The pool is known but not started, so that its volumes cannot be seen.",
    "Start it with StartPool.")
SHRINK_REFUSED = _reason("SHRINK_REFUSED", "FailedPrecondition",
    "The volume would become smaller, which cuts off what lies at its end.",
    "Shrink the file systems in it first, then repeat the request with `allow_shrink`.")
UPLOAD_INCOMPLETE = _reason("UPLOAD_INCOMPLETE", "FailedPrecondition",
    "Not all bytes of the upload have arrived.",
    "Send the rest, from the offset that the metadata's `received_bytes` tells.")
BACKUP_IN_USE = _reason("BACKUP_IN_USE", "FailedPrecondition",
    "Incremental backups depend on this backup.",
    "Delete the increments first, or delete it with `with_increments`.")
BACKUP_DAMAGED = _reason("BACKUP_DAMAGED", "FailedPrecondition",
    "A backup, or one that it depends on, is damaged or incomplete.",
    "Verify it to see what is wrong, restore another one, and make a new full backup.")
BACKUP_CHAIN_BROKEN = _reason("BACKUP_CHAIN_BROKEN", "FailedPrecondition",
    "What has changed since the last backup cannot be told, so an incremental backup is not possible.",
    "Ask for the kind AUTO or FULL: that makes a full backup, and the next can be incremental again.")
IMAGE_IN_USE = _reason("IMAGE_IN_USE", "FailedPrecondition",
    "A volume is based on this image.",
    "Delete the volumes that are based on it first.")
HOST_NOT_EMPTY = _reason("HOST_NOT_EMPTY", "FailedPrecondition",
    "virtd manages guests on this host.",
    "Delete these guests first, or remove the host with force: the guests themselves stay.")
SNAPSHOT_CHAIN_BROKEN = _reason("SNAPSHOT_CHAIN_BROKEN", "FailedPrecondition",
    "The snapshot's chain of disk images is not what the records say.",
    "Do not delete anything; compare `guestctl snapshot list GUEST` with `qemu-img info --backing-chain`.")
SNAPSHOT_MIXED = _reason("SNAPSHOT_MIXED", "FailedPrecondition",
    "The guest has snapshots of the other kind; one guest's snapshots are all internal or all external.",
    "Take one of the kind that the guest has, or delete the others first; `validate_only` shows the plan.")
SNAPSHOT_BLOCKED = _reason("SNAPSHOT_BLOCKED", "FailedPrecondition",
    "Something else of the guest stands in the way: a block job, a saved state, checkpoints of a backup.",
    "The message names it; end or delete it first.")
OPERATION_NOT_CANCELLABLE = _reason("OPERATION_NOT_CANCELLABLE", "FailedPrecondition",
    "The operation has ended or has passed the point where it can be cancelled.",
    "Wait for it with `guestctl operations watch`.")
AGENT_NOT_CONFIGURED = _reason("AGENT_NOT_CONFIGURED", "FailedPrecondition",
    "The guest has no guest-agent channel.",
    "Create the guest with `guest_agent: true` and install the agent in it.")
AGENT_DISABLED = _reason("AGENT_DISABLED", "FailedPrecondition",
    "The guest agent's own configuration forbids this command.",
    "Allow it in the guest (`block-rpcs` or `blacklist` in qemu-ga.conf) and restart the agent there.")
AGENT_FILE_REFUSED = _reason("AGENT_FILE_REFUSED", "FailedPrecondition",
    "The guest's system does not let the agent open, read or write this file.",
    "The message gives the system's own words; check the path, its permissions and the free space in the guest.")
AGENT_FREEZE_FAILED = _reason("AGENT_FREEZE_FAILED", "FailedPrecondition",
    "The guest's system could not freeze its file systems; none is frozen.",
    "The message gives the agent's own words; a mount point may be wrong, or a file system may not know freezing.")
GUEST_FROZEN = _reason("GUEST_FROZEN", "FailedPrecondition",
    "The guest's file systems are frozen, and its agent does nothing else until they are thawed.",
    "Thaw them (AgentService.ThawFilesystems), or wait: virtd thaws what it froze when the time is over.")
ADDRESS_IN_USE = _reason("ADDRESS_IN_USE", "FailedPrecondition",
    "Another process listens on the socket or address that virtd shall serve.",
    "Stop the other process, or configure another `server.socket` or `server.tcp_listen`.")
STATE_DIRECTORY_LOCKED = _reason("STATE_DIRECTORY_LOCKED", "FailedPrecondition",
    "Another virtd uses this state directory.",
    "Stop the other daemon, or give this one a state directory of its own.")
JOURNAL_CORRUPT = _reason("JOURNAL_CORRUPT", "Internal",
    "The journal database is damaged; virtd changed nothing in it.",
    "Restore it from a backup, or move it away: guests stay as they are and can be adopted again.")

OPERATION_IN_PROGRESS = _reason("OPERATION_IN_PROGRESS", "Conflict",
    "Another operation works on this resource, and the request asked not to queue.",
    "Wait for the operation that the detail names, or let the request queue.")
ETAG_MISMATCH = _reason("ETAG_MISMATCH", "Conflict",
    "The resource has changed since it was read.",
    "Read it again, look at what changed, and repeat the request with the new etag.")

AGENT_FILE_TOO_LARGE = _reason("AGENT_FILE_TOO_LARGE", "ResourceExhausted",
    "The file is larger than what is passed through the guest agent.",
    "Pass it in parts by `offset`, raise `agent.file_max_bytes`, or use a disk or the network instead.")
STORAGE_FULL = _reason("STORAGE_FULL", "ResourceExhausted",
    "There is no space left for what the request needs.",
    "Free space in the pool or state directory and repeat the request.")
LIMIT_EXCEEDED = _reason("LIMIT_EXCEEDED", "ResourceExhausted",
    "A configured limit would be exceeded.",
    "Lower the request, or raise the limit that the message names.")
WATCHER_TOO_SLOW = _reason("WATCHER_TOO_SLOW", "ResourceExhausted",
    "The watcher did not read fast enough and its buffer is full; nothing was skipped.",
    "Resume with the last token that was received.")

UPLOAD_OFFSET_MISMATCH = _reason("UPLOAD_OFFSET_MISMATCH", "OutOfRange",
    "The stream does not begin where the received bytes end.",
    "Begin at the metadata's `received_bytes`, which GetUpload tells as well.")
RESUME_TOKEN_EXPIRED = _reason("RESUME_TOKEN_EXPIRED", "OutOfRange",
    "The event log no longer holds the events since this token.",
    "List again and watch from the token that the list returns.")

HOST_UNREACHABLE = _reason("HOST_UNREACHABLE", "Unavailable",
    "The host does not answer.",
    "virtd reconnects by itself; look at `guestctl describe host HOST` for the last error.")
AGENT_NOT_READY = _reason("AGENT_NOT_READY", "Unavailable",
    "The guest agent does not answer yet.",
    "Wait with `guestctl wait GUEST --for agent-ready`, then try again.")
AGENT_STUCK = _reason("AGENT_STUCK", "Unavailable",
    "The guest agent is connected but does not answer.",
    "Look at the agent in the guest (by its console): it is busy, stopped or hung; restart it there.")
DAEMON_STOPPING = _reason("DAEMON_STOPPING", "Unavailable",
    "The daemon is shutting down and accepts no new work.",
    "Send the request again to the restarted daemon with the same request_id.")
LIBVIRT_MISSING = _reason("LIBVIRT_MISSING", "Unavailable",
    "No libvirt daemon answers and none could be started.",
    "Install libvirt-daemon-system and qemu-system-x86, or configure a host.")

CONSOLE_TICKET_INVALID = _reason("CONSOLE_TICKET_INVALID", "PermissionDenied",
    "The ticket is unknown, was used, has expired, or its guest has stopped since.",
    "Ask for a new one with CreateConsoleTicket; each opens one connection.")
ACCESS_DENIED = _reason("ACCESS_DENIED", "PermissionDenied",
    "The caller may not do this.",
    "Ask the administrator; the check is made before virtd looks whether the resource exists.")

DEADLINE_EXCEEDED = _reason("DEADLINE_EXCEEDED", "DeadlineExceeded",
    "The time limit passed before the work was done.",
    "The operation's state says what was done; raise the time limit if the work needs longer.")
SHUTDOWN_IGNORED = _reason("SHUTDOWN_IGNORED", "DeadlineExceeded",
    "The guest did not obey the shutdown request in time; it is still running.",
    "Wait longer, use `guestctl shutdown --force-after`, or `guestctl stop`.")
REBOOT_IGNORED = _reason("REBOOT_IGNORED", "DeadlineExceeded",
    "The guest was asked to reboot and was not seen to do so in time; it is still running.",
    "Look at its console; `guestctl reset` reboots it without its cooperation.")
SUSPEND_IGNORED = _reason("SUSPEND_IGNORED", "DeadlineExceeded",
    "The guest was asked to suspend and did not do so in time; it is still running.",
    "Try again when its system has booted (its console shows that); a system without drivers for the host cannot "
    "suspend.")
OPERATION_CANCELLED = _reason("OPERATION_CANCELLED", "Cancelled",
    "The operation was cancelled on request, and what it had done was undone.",
    "Nothing; repeat the request if it is wanted after all.")
UPLOAD_TAKEN_OVER = _reason("UPLOAD_TAKEN_OVER", "Aborted",
    "Another stream writes this upload now, or it was deleted.",
    "Nothing, if that was you; else ask GetUpload how far it is.")
OPERATION_INTERRUPTED = _reason("OPERATION_INTERRUPTED", "Aborted",
    "The daemon died during a step that cannot be repeated safely.",
    "Look at the guest's state, then repeat the request if it is still wanted.")

BACKEND_ERROR = _reason("BACKEND_ERROR", "Internal",
    "The hypervisor refused for a reason that virtd does not know.",
    "The detail gives the native call, code and message; look in the hypervisor's log.")
INTERNAL_ERROR = _reason("INTERNAL_ERROR", "Internal",
    "A defect in virtd.",
    "Report it with the request id; the daemon's log has the traceback.")
# fmt: on


def catalogue() -> Mapping[str, Reason]:
    """Every reason by name, in order of declaration (feeds docs/ and its test)."""
    return dict(_CATALOGUE)


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An error as data: what a journal row, an event or a partial list carries."""

    kind: str
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    native: NativeError | None = None
    resource: str = ""
    retry_after_s: float | None = None
    allowed_actions: tuple[str, ...] = ()


_KINDS: dict[str, type[VirtdError]] = {}


class VirtdError(Exception):
    """Base of all contract errors.

    :param reason: an entry of the catalogue whose ``kind`` is this class's name.
    :param message: one sentence for a person: what is wrong with *this* request.
    :param resource: the resource name concerned (``hosts/a/guests/b``), or ``""``.
    :param metadata: machine-readable facts (strings), for ``ErrorInfo.metadata``.
    :param violations: the fields concerned, for ``BadRequest``.
    :param native: what the hypervisor said.
    :param retry_after_s: seconds after which a repetition may succeed, or None.
    :param allowed_actions: the actions that would be legal now (INVALID_STATE).
    """

    kind: ClassVar[str] = "Internal"

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__.removesuffix("Error") if cls.__name__ != "InternalError" else "Internal"
        _KINDS[cls.kind] = cls

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        resource: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        native: NativeError | None = None,
        retry_after_s: float | None = None,
        allowed_actions: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        if reason.kind != self.kind:
            wrong = f"{reason.name} is a reason of {reason.kind}, not of {self.kind}"
            raise TypeError(wrong)
        self.reason = reason
        self.record = ErrorRecord(
            kind=self.kind,
            reason=reason.name,
            message=message,
            metadata=dict(metadata or {}),
            violations=tuple(violations),
            native=native,
            resource=resource,
            retry_after_s=retry_after_s,
            allowed_actions=tuple(allowed_actions),
        )

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return self.record.message

    def with_resource(self, resource: str) -> Self:
        """Name the resource where the raiser could not know it; keeps one that is set."""
        if not self.record.resource:
            self.record = replace(self.record, resource=resource)
        return self


class InvalidArgumentError(VirtdError):
    """The request is wrong whatever the state of the world."""


class NotFoundError(VirtdError):
    """The named resource is *known* to be absent (never raised for "cannot see it")."""


class AlreadyExistsError(VirtdError):
    """The name is taken."""


class FailedPreconditionError(VirtdError):
    """The request is fine, but not in the present state."""


class UnsupportedError(VirtdError):
    """The host cannot do this at all.  Raised before any side effect."""


class ConflictError(VirtdError):
    """Somebody else is at work on the resource, or has changed it."""


class AbortedError(VirtdError):
    """Work ended part-way for an outside cause; its record says where."""


class ResourceExhaustedError(VirtdError):
    """No space, or a limit."""


class OutOfRangeError(VirtdError):
    """A position that no longer exists."""


class UnavailableError(VirtdError):
    """A host, an agent or the daemon does not answer now; a repetition may succeed."""


class PermissionDeniedError(VirtdError):
    """The caller has no right to do this."""


class DeadlineExceededError(VirtdError):
    """Time ran out."""


class CancelledError(VirtdError):
    """Ended on request: a result, where asyncio's CancelledError is a signal."""


class InternalError(VirtdError):
    """A defect, or a native error of unknown meaning."""


def from_record(record: ErrorRecord) -> VirtdError:
    """The exception that a stored record stands for (inverse of ``error.record``)."""
    cls = _KINDS.get(record.kind, InternalError)
    reason = _CATALOGUE.get(record.reason)
    if reason is None or reason.kind != cls.kind:
        cls, reason = InternalError, INTERNAL_ERROR
    error = cls(reason, record.message)
    error.record = record
    return error


def unsupported(capability: str, why: str, *, resource: str = "") -> UnsupportedError:
    """The one way to say that a host cannot do something.

    :param capability: the capability's id (``guest.snapshot.memory``).
    :param why: the reason, as the capability states it.
    """
    return UnsupportedError(
        CAPABILITY_UNSUPPORTED,
        f"{capability} is not supported here: {why}",
        resource=resource,
        metadata={"capability": capability, "why": why},
    )


def invalid_field(path: str, description: str, *alternatives: str) -> InvalidArgumentError:
    """FIELD_INVALID for one field."""
    return InvalidArgumentError(
        FIELD_INVALID,
        f"{path}: {description}",
        violations=(FieldViolation(path, description, alternatives),),
    )
