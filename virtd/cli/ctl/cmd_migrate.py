"""``migrate``: a guest goes to another host of the same hypervisor."""

from __future__ import annotations

from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.lazy import Duration, Size, command
from virtd.cli.ctl.params import Named, guest_argument, host_option, reject_option, wait_option
from virtd.cli.ctl.session import Session, pass_session


@command("migrate")
@guest_argument()
@host_option("The host that the guest is on.")
@click.option("--to", "destination", required=True, metavar="HOST", type=Named(kinds.HOSTS), help="The host to go to.")
@click.option("--live", "mode", flag_value="live", help="While it runs; a stopped guest is refused.")
@click.option("--offline", "mode", flag_value="offline", help="While it is stopped; one that runs is refused.")
@click.option("--copy-storage", is_flag=True, help="Copy the disks along; else both hosts must see them.")
@click.option("--copy-disk", "disks", multiple=True, metavar="DISK", help="Only this disk; may be repeated.")
@click.option("--pool", default="", metavar="POOL", help="The other host's pool for the copies.")
@click.option("--post-copy", is_flag=True, help="Let it run there before all of its memory has arrived.")
@click.option("--auto-converge", is_flag=True, help="Slow it down where its memory changes too fast.")
@click.option("--bandwidth", type=Size(), metavar="SIZE", help="Send at most so much a second, as in 100MiB.")
@click.option("--max-downtime", type=Duration(), metavar="T", help="How long it may stand still, as in 300ms.")
@click.option("--discard-saved-state", is_flag=True, help="Throw the saved memory of a suspended guest away.")
@click.option("--dry-run", is_flag=True, help="Only say what is in its way; exit code 5 where it would be refused.")
@wait_option()
@reject_option()
@pass_session
def migrate(
    session: Session,
    *,
    guest: str,
    host: str | None,
    destination: str,
    mode: str | None,
    copy_storage: bool,
    disks: tuple[str, ...],
    pool: str,
    post_copy: bool,
    auto_converge: bool,
    bandwidth: int | None,
    max_downtime: float | None,
    discard_saved_state: bool,
    dry_run: bool,
    wait: bool,
    no_queue: bool,
) -> None:
    """Move a guest to another host of the same hypervisor, live where it runs.

    Ctrl-C leaves the operation at work; `guestctl operations cancel` calls the guest back.
    """
    from virtd.cli.ctl.progress import run_operations
    from virtd.cli.ctl.remote import guest_name, host_name

    name, to = guest_name(session, guest, host), host_name(session, destination)
    options: dict[str, Any] = {
        "mode": mode or "auto",
        "copy_storage": copy_storage or bool(disks),
        "copy_disks": disks,
        "pool": pool,
        "post_copy": post_copy,
        "auto_converge": auto_converge,
        "bandwidth_bytes_per_s": bandwidth,
        "max_downtime_ms": None if max_downtime is None else round(max_downtime * 1000),
        "discard_saved_state": discard_saved_state,
    }
    if dry_run:
        _check(session, name, to, options)
        return

    def call(subject: str) -> Any:
        policy: Any = "reject" if no_queue else "queue"
        return session.client().migrations.migrate(subject, to, **options, on_conflict=policy)

    run_operations(session, [name], call, f"is on {to.partition('/')[2]} now", wait=wait, kind=kinds.GUESTS)


def _check(session: Session, name: str, to: str, options: dict[str, Any]) -> None:
    check = session.client().migrations.check(name, to, **options)
    session.printer.items(kinds.FINDINGS, list(check.findings))
    if not check.findings:
        session.say("nothing is in the way")
    if check.possible:
        session.say(f"{name} could be migrated {kinds.enum(check, 'mode')} as {check.target}")
    else:
        session.say(f"{name} cannot be migrated so")
        session.codes.append(Exit.CONFLICT)
