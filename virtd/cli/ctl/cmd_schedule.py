"""``schedule``: what virtd does by itself, again and again."""

from __future__ import annotations

from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import Duration, Group
from virtd.cli.ctl.params import Named, host_option
from virtd.cli.ctl.session import Session, pass_session

_RULES = ("last", "hourly", "daily", "weekly", "monthly")


def _name(given: str) -> str:
    return f"schedules/{given.removeprefix('schedules/')}"


@click.group("schedule", cls=Group)
def schedule() -> None:
    """Scheduled snapshots: create, list, pause, run and delete."""


@schedule.command("create")
@click.argument("schedule_id", metavar="SCHEDULE")
@click.option("--guest", metavar="GUEST", type=Named(kinds.GUESTS), help="For this guest.")
@click.option(
    "--filter", "filter_", metavar="FILTER", help="For the managed guests that match, such as labels.env=prod."
)
@click.option("--cron", metavar="EXPR", help="When, as five fields of cron: '0 3 * * *'.")
@click.option("--every", type=Duration(), metavar="T", help="When: every so often, such as 6h.")
@click.option("--time-zone", default="", metavar="TZ", help="Time zone of --cron, such as Europe/Berlin; default UTC.")
@click.option("--memory", is_flag=True, help="With the memory of running guests.")
@click.option("--quiesce", is_flag=True, help="Have the guest's agent freeze its file systems.")
@click.option("--keep-last", type=click.IntRange(0, 1000), default=0, help="Keep the newest so many.")
@click.option("--keep-hourly", type=click.IntRange(0, 1000), default=0, help="Keep one of each of so many hours.")
@click.option("--keep-daily", type=click.IntRange(0, 1000), default=0, help="Keep one of each of so many days.")
@click.option("--keep-weekly", type=click.IntRange(0, 1000), default=0, help="Keep one of each of so many weeks.")
@click.option("--keep-monthly", type=click.IntRange(0, 1000), default=0, help="Keep one of each of so many months.")
@click.option("--description", default="", metavar="TEXT", help="Text of your own.")
@host_option("The guest's host.")
@pass_session
def create(
    session: Session,
    *,
    schedule_id: str,
    guest: str | None,
    filter_: str | None,
    cron: str | None,
    every: float | None,
    time_zone: str,
    memory: bool,
    quiesce: bool,
    description: str,
    host: str | None,
    **keep: int,
) -> None:
    """Take snapshots again and again, and delete those that no rule keeps; without rules all stay."""
    from virtd.cli.ctl.remote import guest_name
    from virtd.v1 import schedule_pb2 as pb

    if bool(guest) == bool(filter_):
        raise UsageError("give one of --guest and --filter")
    if bool(cron) == bool(every):
        raise UsageError("give one of --cron and --every")
    wanted = pb.Schedule(
        description=description,
        guest=guest_name(session, guest, host) if guest else "",
        filter=filter_ or "",
        cron=cron or "",
        every_s=every or 0,
        time_zone=time_zone,
        snapshot=pb.SnapshotAction(memory=memory, quiesce=quiesce),
    )
    for rule in _RULES:
        if keep[f"keep_{rule}"]:
            setattr(wanted.retention, f"keep_{rule}", keep[f"keep_{rule}"])
    made = session.client().schedules.create(schedule_id, wanted)
    session.say(f"{made.name} created")
    if session.output is not None:
        session.printer.items(kinds.SCHEDULES, [made])


@schedule.command("list")
@pass_session
def list_(session: Session) -> None:
    """List schedules, when they run next, and how the last run ended."""
    found = list(session.client().schedules.list())
    session.printer.items(kinds.SCHEDULES, found)
    if not found and not session.printer.structured:
        session.say("no schedules")


def _verb(name: str, text: str, done: str) -> None:
    @schedule.command(name, help=text)
    @click.argument("names", nargs=-1, required=True, metavar="SCHEDULE...", type=Named(kinds.SCHEDULES))
    @pass_session
    def run(session: Session, *, names: tuple[str, ...]) -> None:
        from virtd.cli.ctl.errors import explain

        for entry in dict.fromkeys(map(_name, names)):
            try:
                _do(session.client().schedules, name, entry)
            except Exception as error:
                session.failed(explain(error), subject=entry)
            else:
                session.done()
                session.say(f"{entry} {done}")

    assert run is not None


def _do(schedules: Any, verb: str, name: str) -> None:
    from virtd.v1 import schedule_pb2 as pb

    if verb in {"pause", "resume"}:
        schedules.update(pb.Schedule(name=name, paused=verb == "pause"), ["paused"])
    else:
        getattr(schedules, verb)(name)


_verb("run", "Let schedules run now, whatever their time.", "runs")
_verb("pause", "Let schedules not run by themselves.", "is paused")
_verb("resume", "Let paused schedules run by themselves again.", "runs by itself again")
_verb("delete", "Delete schedules; the snapshots that they took stay.", "deleted")
