"""``top``: which guests use how much now, as a live table or once."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import Duration, command
from virtd.cli.ctl.params import host_option
from virtd.cli.ctl.session import RIDE_OUT_S, Session, pass_session

SORTS: Final = ("cpu", "memory", "read", "written", "received", "sent", "name")
FIRST_S: Final = 15.0
"""How long to wait for a second sample, without which there is no rate."""


@dataclass(frozen=True, slots=True)
class Row:
    """One guest between two samples.  None is "not known"."""

    name: str
    cpu: float | None
    vcpus: int | None
    memory: int | None
    rss: int | None
    read: float | None
    written: float | None
    received: float | None
    sent: float | None


@command("top")
@host_option("Guests of this host only.")
@click.option("--sort", type=click.Choice(SORTS), default="cpu", help="What decides the order (default cpu).")
@click.option("--once", is_flag=True, help="Print one table and end; so it does where stdout is no terminal.")
@click.option("--interval", type=Duration(), default="2s", metavar="T", help="Time between two tables (default 2s).")
@pass_session
def top(session: Session, *, host: str | None, sort: str, once: bool, interval: float) -> None:
    """Show which guests use the CPU, memory, disks and networks now.

    CPU is in cores: 1.50 is one and a half. Ends with ^C.
    """
    from virtd.cli.ctl.remote import parent_name

    if interval <= 0:
        raise UsageError("--interval must be more than nothing")
    parent = parent_name(session, host)
    client = session.client(ride_out_s=RIDE_OUT_S)
    live = not once and sys.stdout.isatty() and not session.printer.structured
    before: dict[str, Any] = {}
    deadline = time.monotonic() + FIRST_S
    while True:
        now = {sample.name: sample for sample in client.metrics.get(parent)}
        found = (rate(before.get(name), sample) for name, sample in now.items())
        rows = ordered([row for row in found if row is not None], sort)
        # A sample that has not changed since tells nothing new: keep the one before it.
        before = {name: _older(before.get(name), sample) for name, sample in now.items()}
        complete = bool(now) and len(rows) == len(now)
        if live:
            _redraw(session, rows, len(now))
        elif complete or not now or time.monotonic() > deadline:
            items = [now[row.name] for row in rows]
            session.printer.items(kinds.TOP, items, rows=rows)
            if not rows:
                session.say("no guest runs" if not now else "no guest has been sampled twice yet")
            return
        time.sleep(interval if live else min(interval, 0.5))


def rate(before: Any | None, now: Any) -> Row | None:
    """What a guest used between two samples; None while there are no two."""
    if before is None:
        return None
    seconds = _seconds(now.sample_time) - _seconds(before.sample_time)
    if seconds <= 0:
        return None

    def grown(old: float | None, new: float | None) -> float | None:
        return None if old is None or new is None or new < old else (new - old) / seconds

    def of(message: Any, field: str) -> Any:
        return getattr(message, field) if message.HasField(field) else None

    used = of(now, "memory_used_bytes")
    return Row(
        name=now.name,
        cpu=grown(of(before, "cpu_time_s"), of(now, "cpu_time_s")),
        vcpus=of(now, "vcpus"),
        memory=of(now, "memory_assigned_bytes") if used is None else used,
        rss=of(now, "memory_rss_bytes"),
        read=grown(kinds.total(before, "blocks", "read_bytes"), kinds.total(now, "blocks", "read_bytes")),
        written=grown(kinds.total(before, "blocks", "written_bytes"), kinds.total(now, "blocks", "written_bytes")),
        received=grown(
            kinds.total(before, "interfaces", "received_bytes"), kinds.total(now, "interfaces", "received_bytes")
        ),
        sent=grown(kinds.total(before, "interfaces", "sent_bytes"), kinds.total(now, "interfaces", "sent_bytes")),
    )


def ordered(rows: Sequence[Row], sort: str) -> list[Row]:
    """The busiest first; what is not known last."""
    if sort == "name":
        return sorted(rows, key=lambda row: row.name)

    def key(row: Row) -> tuple[bool, float, str]:
        value = getattr(row, sort)
        return (value is None, -(value or 0.0), row.name)

    return sorted(rows, key=key)


def _older(held: Any | None, now: Any) -> Any:
    """The sample to compare the next one with."""
    return held if held is not None and held.sample_time == now.sample_time else now


def _seconds(stamp: Any) -> float:
    return float(stamp.seconds) + float(stamp.nanos) / 1e9


def _redraw(session: Session, rows: Sequence[Row], guests: int) -> None:
    """The table over the one before.  Only what fits: a scrolled screen cannot be drawn over."""
    import io
    import shutil

    from virtd.cli.ctl.output import Printer

    room = shutil.get_terminal_size().lines - 3
    drawn = io.StringIO()
    printer = Printer(session.printer.format, drawn, color=False)
    printer.items(kinds.TOP, list(rows[:room]), rows=rows[:room])
    left = guests - min(len(rows), room)
    note = f"{guests} guests" + (f", {left} not shown" if left else "") + "; ^C ends"
    sys.stdout.write("\x1b[H\x1b[J" + drawn.getvalue() + "\n" + note + "\n")
    sys.stdout.flush()
