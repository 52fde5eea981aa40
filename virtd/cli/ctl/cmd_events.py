"""``events``: what happens, as it happens."""

from __future__ import annotations

import threading
from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import CtlError, UsageError
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.lazy import command
from virtd.cli.ctl.session import RIDE_OUT_S, Session, pass_session


@command("events")
@click.option("--since", metavar="TOKEN", default="", help="Everything after this resume token, without a gap.")
@click.option(
    "--filter",
    "filter_",
    metavar="EXPR",
    default="",
    help="For example: type=GUEST_STATE_CHANGED AND attributes.state=STOPPED",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("--once", is_flag=True, help="End when there is nothing more now; needs --since.")
@click.option("--initial", is_flag=True, help="The present guests and hosts first.")
@pass_session
def events(session: Session, *, since: str, filter_: str, limit: int | None, once: bool, initial: bool) -> None:
    """Follow what happens, over restarts of the daemon, until interrupted.

    At the end the token is said from which `events --since` goes on. With -o json, every line is an
    object {apiVersion, kind, resumeToken, item}: the token belongs to the end of what was shown, and
    going on from it shows nothing too few and perhaps a few events again.
    """
    if once and not since:
        raise UsageError("--once needs --since: without a token there is nothing yet")
    if initial and since:
        raise UsageError("--initial and --since do not go together")
    if once:
        _once(session, since, filter_, limit)
    else:
        _follow(session, since, filter_, limit, initial=initial)


def _once(session: Session, token: str, filter_: str, limit: int | None) -> None:
    client = session.client()
    shown = 0
    while True:
        room = min(1000, (limit or 1000 + shown) - shown)
        page = client.events.pull(token, filter=filter_, max_events=room)
        for event in page.events:
            # The page's token lies behind its last event; in its middle, the one before it misses nothing.
            _show(session, event, page.resume_token if event is page.events[-1] else token)
            shown += 1
        token = page.resume_token
        if not page.events or (limit is not None and shown >= limit):
            break
    _farewell(session, token)


def _show(session: Session, event: Any, token: str) -> None:
    session.printer.stream(kinds.EVENTS, event, resumeToken=token)


def _farewell(session: Session, token: str) -> None:
    if token:
        session.say(f"go on with: guestctl events --since {token}")


def _follow(session: Session, since: str, filter_: str, limit: int | None, *, initial: bool) -> None:
    from virtd_client import Reset

    client = session.client()
    if not since and not initial:
        # Asked without patience: where no daemon is, that is said at once.
        since = client.events.pull("", filter=filter_).resume_token
    client = session.client(ride_out_s=RIDE_OUT_S)
    shown = 0
    over = threading.Event()
    watch = client.events.watch(filter_, resume_token=since, initial_state=initial)
    timer = None
    if session.limit_s is not None:

        def stop() -> None:
            over.set()
            watch.close()

        timer = threading.Timer(session.limit_s, stop)
        timer.daemon = True
        timer.start()
    try:
        with watch:
            for item in watch:
                if isinstance(item, Reset):
                    _reset(session, item)
                elif hasattr(item, "revision"):
                    _show(session, item, watch.resume_token)
                    shown += 1
                if limit is not None and shown >= limit:
                    break
    finally:
        if timer is not None:
            timer.cancel()
        _farewell(session, watch.resume_token)
    if over.is_set() and (limit is None or shown < limit):
        raise CtlError("the time is over", Exit.TIMEOUT, "CLIENT_TIMEOUT", "Go on from the token above.")


def _reset(session: Session, reset: Any) -> None:
    from virtd.cli.ctl.output import envelope

    if session.printer.format in {"json", "jsonl"}:
        session.printer.json_line(envelope("EventReset", cause=reset.cause, resumeToken=reset.resume_token))
    session.warn(f"events may be missing here ({reset.cause}): list again what you need to know")
