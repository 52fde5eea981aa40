"""``get --watch``: a list, and then what changes in it, without a gap between the two."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from virtd.cli.ctl import kinds
from virtd.cli.ctl.kinds import Kind
from virtd.cli.ctl.session import RIDE_OUT_S, Session

_PREFIX = {"guests": "GUEST_", "hosts": "HOST_", "operations": "OPERATION_"}
_PAYLOAD = {"guests": "guest", "hosts": "host", "operations": "operation"}
_CHANGE = {"ADDED": "added", "REMOVED": "removed"}


def follow(session: Session, kind: Kind, names: tuple[str, ...], host: str | None, filter_: str) -> None:
    """Print what is there (``change`` is ``present``), then each change, until interrupted.

    The list and the watch meet at a resume token that is older than the list: an event may repeat
    what the list showed, none is missing.  When the daemon's log no longer reaches back, the list is
    shown again.
    """
    from virtd.cli.ctl.remote import resource_name

    wanted = {resource_name(session, kind, name, host) for name in names}
    client = session.client(ride_out_s=RIDE_OUT_S)
    token = session.client().events.pull("").resume_token
    matching = _list(session, kind, wanted, host, filter_)
    from virtd_client.types import Reset

    with client.events.watch(resume_token=token) as watch:
        for item in watch:
            if isinstance(item, Reset):
                session.warn("events were lost while the daemon or this command was away; listing again")
                matching = _list(session, kind, wanted, host, filter_)
            elif hasattr(item, "revision"):
                _show(session, kind, item, wanted, host, filter_, matching)


def _list(session: Session, kind: Kind, wanted: set[str], host: str | None, filter_: str) -> set[str]:
    from virtd.cli.ctl.remote import listing, warn_of_hosts

    found = listing(session, kind, host=host, filter_=filter_)
    warn_of_hosts(session, found.host_errors)
    items = [item for item in found.items if not wanted or item.name in wanted]
    for item in items:
        session.printer.stream(kind, item, change="present")
    return {item.name for item in items}


def _show(
    session: Session, kind: Kind, event: Any, wanted: set[str], host: str | None, filter_: str, shown: set[str]
) -> None:
    word = kinds.enum(event, "type")
    if not word.startswith(_PREFIX[kind.plural]) or (wanted and event.resource not in wanted):
        return
    if host and kinds.part(event.resource, "hosts") != kinds.last(host):
        return
    change = _CHANGE.get(word.removeprefix(_PREFIX[kind.plural]), "changed")
    payload = _PAYLOAD[kind.plural]
    item = getattr(event, payload) if event.HasField(payload) else None
    if change != "removed" and filter_:
        # The daemon's filter language is the daemon's: ask it whether this one still matches.
        item = _still_matching(session, kind, event.resource, filter_)
        change = "changed" if event.resource in shown else "added"
        if item is None:
            change = "removed"
    if change == "removed":
        if filter_ and event.resource not in shown:
            return
        shown.discard(event.resource)
        item = kind.load()(name=event.resource)
    else:
        shown.add(event.resource)
        if item is None:
            return
    session.printer.stream(kind, item, change=change)


def _still_matching(session: Session, kind: Kind, name: str, filter_: str) -> Any | None:
    from virtd.cli.ctl.remote import listing

    found: Iterable[Any] = listing(session, kind, filter_=filter_).items
    return next((item for item in found if item.name == name), None)
