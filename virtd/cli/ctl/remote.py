"""Between the client library and guestctl: errors, names, and lists over several hosts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from virtd.cli.ctl import kinds, text
from virtd.cli.ctl.errors import CtlError, UsageError, details_of, from_record, remedy
from virtd.cli.ctl.exits import Exit, for_error
from virtd.cli.ctl.kinds import Kind, last
from virtd.cli.ctl.session import Session

ItemT = TypeVar("ItemT")

_NEXT = {
    "DAEMON_UNREACHABLE": "start it with: virtd serve (or name another daemon with --target or a context)",
    "CLIENT_TIMEOUT": "What the daemon was doing goes on: look with `guestctl operations list`, or wait longer "
    "with --timeout.",
}


def from_client(error: BaseException) -> CtlError | None:
    """An exception of the client library in guestctl's terms; None for anything else."""
    from virtd_client.errors import VirtdError

    if not isinstance(error, VirtdError):
        return None
    details = details_of(error.message, error.violations, error.allowed_actions)
    if error.native is not None:
        details["native"] = f"{error.native.call} code {error.native.code}: {error.native.message}"
    if error.retry_after_s is not None:
        details["retry after"] = text.duration(error.retry_after_s)
    found = CtlError(
        error.message,
        for_error(error.kind, error.reason),
        error.reason,
        _NEXT.get(error.reason) or remedy(error.reason),
        details,
    )
    if error.reason == "DAEMON_UNREACHABLE":
        _explain_socket(error.metadata.get("target", ""), found)
    return found


def _explain_socket(target: str, error: CtlError) -> None:
    """Say what is wrong with a socket in fewer words than gRPC.

    One that is there and closed to this user is no daemon that is away.
    """
    path = target.removeprefix("unix:")
    if path == target:
        return
    if not os.path.exists(path):  # noqa: PTH110 - a str, from gRPC
        error.message = f"no daemon answers at {target}: there is no such socket"
    elif os.access(path, os.R_OK | os.W_OK):
        error.message = f"no daemon answers at {target}: nobody listens there"
    else:
        error.message = f"the daemon's socket {path} is not open to this user"
        error.exit_code, error.reason = Exit.NOT_ALLOWED, "ACCESS_DENIED"
        error.next = f"Join the group that owns it: ls -l {path}"


def host_name(session: Session, host: str | None) -> str:
    """``hosts/{host}`` of an id or a name; without one: the context's host, or the only one there is.

    :raises UsageError: when there are several hosts and none was chosen.
    """
    chosen = host or session.settings.host
    if chosen:
        return chosen if chosen.startswith("hosts/") else f"hosts/{chosen}"
    hosts = [entry.name for entry in session.client().hosts.list()]
    if len(hosts) == 1:
        return hosts[0]
    if not hosts:
        raise CtlError(
            "the daemon has no host", Exit.NOT_FOUND, next="Add one: guestctl host add NAME URI, or see `virtd serve`."
        )
    raise UsageError(
        f"there are {len(hosts)} hosts: {', '.join(last(name) for name in hosts)}", next="Choose one with --host."
    )


def parent_name(session: Session, host: str | None) -> str:
    """As :func:`host_name`, but all hosts (``hosts/-``) where none was chosen."""
    chosen = host or session.settings.host
    if not chosen or chosen == "-":
        return "hosts/-"
    return chosen if chosen.startswith("hosts/") else f"hosts/{chosen}"


def guest_name(session: Session, given: str, host: str | None = None) -> str:
    """The full name of a guest.

    ``given`` is a full name, ``host/guest``, a bare id that is unique over all hosts, or a uid.

    :raises UsageError: when the id stands for several guests; lists them.
    :raises CtlError: NOT_FOUND when there is none, UNREACHABLE when that cannot be known.
    """
    direct = _direct(given, kinds.GUESTS)
    if direct:
        _agree(direct, host)
        return direct
    if host or session.settings.host:
        return f"{host_name(session, host)}/guests/{given}"
    hosts = [entry.name for entry in session.client().hosts.list()]
    if len(hosts) == 1 and not _is_uid(given):
        return f"{hosts[0]}/guests/{given}"
    found = session.client().guests.list("hosts/-")
    matches = [guest.name for guest in found if given in (last(guest.name), guest.uid)]
    silent = [last(entry.host) for entry in found.host_errors]
    return _one(given, "guest", matches, silent, [last(guest.name) for guest in found])


def _is_uid(given: str) -> bool:
    return len(given) == 36 and given.count("-") == 4  # noqa: PLR2004 - the form of a UUID


def _agree(name: str, host: str | None) -> None:
    if host and kinds.part(name, "hosts") != last(host):
        raise UsageError(f"{name} is not on host {last(host)}", next="Leave --host away, or name the guest alone.")


def _direct(given: str, kind: Kind) -> str:
    """The full name where ``given`` holds all the ids that it needs; else ``""``."""
    pattern = kind.pattern.split("/")
    parts = given.split("/")
    ids = [entry for entry in pattern if entry.startswith("{")]
    if len(parts) == len(pattern) and all(
        p == want or want.startswith("{") for p, want in zip(parts, pattern, strict=True)
    ):
        return given
    if len(parts) == len(ids) and len(ids) > 1 and all(parts):
        values = iter(parts)
        return "/".join(next(values) if entry.startswith("{") else entry for entry in pattern)
    if len(parts) > 1:
        forms = f"{'/'.join(e.strip('{}') for e in ids)} or {kind.pattern}"
        raise UsageError(f"{given!r} is not the name of a {kind.kind.lower()}: write {forms}")
    if not given:
        raise UsageError(f"the name of the {kind.kind.lower()} is empty")
    return ""


def _one(given: str, what: str, matches: list[str], silent: list[str], known: list[str]) -> str:
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(
            f"{given!r} stands for {len(matches)} {what}s: {', '.join(sorted(matches))}",
            next="Write one of these names, or choose the host with --host.",
        )
    if silent:
        raise CtlError(
            f"no host that answers has a {what} {given!r}, and {', '.join(silent)} cannot be asked now",
            Exit.UNREACHABLE,
            "HOST_UNREACHABLE",
            remedy("HOST_UNREACHABLE"),
        )
    raise CtlError(
        f"there is no {what} {given!r}{text.did_you_mean(given, known)}",
        Exit.NOT_FOUND,
        f"{what.upper()}_NOT_FOUND",
        remedy(f"{what.upper()}_NOT_FOUND"),
    )


def resource_name(session: Session, kind: Kind, given: str, host: str | None = None) -> str:
    """The full name of a resource of any kind, from the forms that :func:`guest_name` takes."""
    if kind in (kinds.GUESTS, kinds.METRICS):
        return guest_name(session, given, host)
    direct = _direct(given, kind)
    if direct:
        return direct
    pattern = kind.pattern.split("/")
    if len(pattern) == 2:  # noqa: PLR2004 - collection and id
        return f"{pattern[0]}/{given}"
    if kind in (kinds.POOLS, kinds.NETWORKS) and (host or session.settings.host):
        return f"{host_name(session, host)}/{kind.plural}/{given}"
    listed = listing(session, kind, host=host)
    matches = [item.name for item in listed.items if last(item.name) == given]
    silent = [last(entry.host) for entry in listed.host_errors]
    return _one(given, kind.kind.lower(), matches, silent, [last(item.name) for item in listed.items])


class Listing:
    """What a list found, and what it could not ask."""

    def __init__(self, items: Iterable[Any] = (), host_errors: Iterable[Any] = (), resume_token: str = "") -> None:
        self.items = list(items)
        self.host_errors = list(host_errors)
        self.resume_token = resume_token


def listing(session: Session, kind: Kind, *, host: str | None = None, filter_: str = "", parent: str = "") -> Listing:
    """Everything of a kind, over all hosts unless one is chosen.

    A host that does not answer is an entry in ``host_errors``, never a failed list.
    """
    client = session.client()
    if kind is kinds.GUESTS:
        found = client.guests.list(parent_name(session, host), filter=filter_)
        return Listing(found, found.host_errors, found.resume_token)
    if kind is kinds.METRICS:
        return Listing(client.metrics.get(parent_name(session, host)))
    if kind is kinds.OPERATIONS:
        return Listing(operation.metadata for operation in client.operations.list(filter=filter_))
    if filter_:
        raise UsageError(f"--filter is not for {kind.plural}", next="It is for guests, operations and events.")
    whole: dict[str, Callable[[], Iterable[Any]]] = {
        "hosts": client.hosts.list,
        "images": client.images.list,
        "audit": client.audit.list,
        "backups": client.backups.list,
        "trash": client.trash.list,
        "schedules": client.schedules.list,
        "uploads": client.uploads.list,
    }
    if kind.plural in whole:
        return Listing(whole[kind.plural]())
    return _by_parent(session, kind, host, parent)


def _by_parent(session: Session, kind: Kind, host: str | None, parent: str) -> Listing:
    """Pools, volumes, networks and snapshots: one call for each parent, each with its own fate."""
    client = session.client()
    result = Listing()
    calls: dict[str, Callable[[str], Iterable[Any]]] = {
        "pools": client.pools.list,
        "volumes": client.volumes.list,
        "networks": client.networks.list,
        "snapshots": client.snapshots.list,
    }
    if parent:
        result.items = list(calls[kind.plural](parent))
        return result
    if kind is kinds.SNAPSHOTS:
        found = client.snapshots.list(f"{parent_name(session, host)}/guests/-")
        result.items = list(found)
        # A host without this ability has none of these; that is an answer, not a failure.
        silent = [error for error in found.errors if error.reason != "CAPABILITY_UNSUPPORTED"]
        owners = {"hosts/" + kinds.part(error.resource, "hosts"): error for error in silent}
        result.host_errors = [_host_error(name, error) for name, error in owners.items()]
        return result
    chosen = parent_name(session, host)
    single = chosen != "hosts/-"
    parents = [chosen] if single else [entry.name for entry in client.hosts.list()]
    if single and kind is not kinds.VOLUMES:
        result.items = list(calls[kind.plural](chosen))
        return result
    failed: dict[str, Any] = {}

    def attempt(call: Callable[[str], Iterable[Any]], name: str) -> list[Any]:
        owner = "hosts/" + kinds.part(name, "hosts")
        if owner in failed:
            return []
        try:
            return list(call(name))
        except Exception as error:
            failure = from_client(error)
            if failure is None or failure.reason == "DAEMON_UNREACHABLE":
                raise
            # A host without this ability has none of these; that is an answer, not a failure.
            if failure.reason != "CAPABILITY_UNSUPPORTED":
                failed[owner] = error
            return []

    if kind is kinds.VOLUMES:
        parents = [pool.name for name in parents for pool in attempt(client.pools.list, name)]
    result.items = [item for name in parents for item in attempt(calls[kind.plural], name)]
    result.host_errors = [_host_error(name, error) for name, error in failed.items()]
    return result


def _host_error(host: str, error: Any) -> Any:
    """A HostError message, as ListGuests sends it, for a call that this side made."""
    from virtd.v1 import guest_service_pb2

    message = guest_service_pb2.HostError(host=host)
    message.error.kind, message.error.reason, message.error.message = error.kind, error.reason, error.message
    return message


def warn_of_hosts(session: Session, host_errors: Iterable[Any]) -> None:
    """Say which hosts did not answer; the command then ends with PARTIAL."""
    for entry in host_errors:
        problem = from_record(entry.error)
        session.warn(f"host {last(entry.host)} does not answer: {problem.message} ({problem.reason})")
        session.partial()


def fetch(session: Session, kind: Kind, name: str) -> Any:
    """One resource by its full name."""
    client = session.client()
    if kind is kinds.OPERATIONS:
        return client.operations.get(name).metadata
    if kind is kinds.METRICS:
        found = list(client.metrics.get(name))
        if not found:
            raise CtlError(f"there is no sample of {name} yet", Exit.NOT_FOUND, next="It is taken while a guest runs.")
        return found[0]
    calls: dict[str, Callable[[str], Any]] = {
        "guests": client.guests.get,
        "hosts": client.hosts.get,
        "snapshots": client.snapshots.get,
        "pools": client.pools.get,
        "volumes": client.volumes.get,
        "networks": client.networks.get,
        "images": client.images.get,
        "backups": client.backups.get,
        "trash": client.trash.get,
        "schedules": client.schedules.get,
        "uploads": client.uploads.get,
    }
    if kind.plural not in calls:
        raise UsageError(f"{kind.plural} have no names", next=f"List them: guestctl get {kind.plural}")
    return calls[kind.plural](name)
