"""``apply``, ``diff``, ``plan``, ``export`` and ``edit``: guests as documents."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click

from virtd.cli.ctl import documents, kinds, text
from virtd.cli.ctl.documents import Planned, Wanted
from virtd.cli.ctl.errors import CtlError, UsageError, explain
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.lazy import command
from virtd.cli.ctl.params import FunctionT, guest_argument, guests_argument, host_option, wait_option
from virtd.cli.ctl.session import Session, pass_session

MODES: Final = ("live-or-next-boot", "live-only", "next-boot")


def _files(function: FunctionT) -> FunctionT:
    return click.option(
        "-f", "--file", "files", multiple=True, required=True, metavar="FILE",
        help="Guests as YAML or JSON documents; - is stdin. Can be repeated.",
    )(function)  # fmt: skip


def _mode(function: FunctionT) -> FunctionT:
    return click.option(
        "--mode", type=click.Choice(MODES), default=MODES[0],
        help="When changes of a running guest take effect: now where that is possible (default), now or not at all, "
        "or when it is next started.",
    )(function)  # fmt: skip


@command("apply")
@_files
@host_option("The host of documents that name none.")
@_mode
@click.option("--allow-replace", is_flag=True, help="Also what needs the guest to be defined anew; it must be stopped.")
@click.option("--start", is_flag=True, help="Start guests that are created.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, as `diff` does.")
@wait_option()
@pass_session
def apply(
    session: Session,
    *,
    files: tuple[str, ...],
    host: str | None,
    mode: Any,
    allow_replace: bool,
    start: bool,
    dry_run: bool,
    wait: bool,
) -> None:
    """Make guests what documents say: create those that are not there, change what differs.

    What a document leaves out stays as it is. Applied twice, it changes nothing the second time.
    """
    wanted = documents.read(session, files, host)
    if dry_run:
        _show_differences(session, wanted, mode)
        return
    done: list[Any] = []
    for entry in wanted:
        try:
            found = _apply(session, entry, mode, allow_replace=allow_replace, start=start, wait=wait)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            failure = explain(error)
            session.failed(failure, subject=entry.where)
            if failure.reason == "DAEMON_UNREACHABLE":
                break
            continue
        session.done()
        if found is not None:
            done.append(found)
    if session.output is not None:
        session.printer.items(kinds.GUESTS if wait else kinds.OPERATIONS, done)


def _apply(session: Session, wanted: Wanted, mode: Any, *, allow_replace: bool, start: bool, wait: bool) -> Any | None:
    """Apply one document; the guest, or the operation's metadata where it is not waited for."""
    from virtd.cli.ctl.progress import wait_for

    began = time.monotonic()
    planned = documents.plan(session, wanted, mode)
    refused = documents.refuse(planned)
    if refused is not None:
        raise refused
    client = session.client()
    if not planned.different:
        session.say(f"{wanted.name} unchanged")
        return client.guests.get(wanted.name) if wait else None
    if planned.exists:
        word = "changed"
        wanted.guest.name = wanted.name
        fields = ["spec", *(key for key in ("display_name", "labels", "annotations") if getattr(wanted.guest, key))]
        changed = client.guests.change(wanted.guest, fields, mode=mode, allow_replace=allow_replace)
    else:
        word = "created and started" if start else "created"
        parent, _, guest_id = wanted.name.partition("/guests/")
        changed = client.guests.create(parent, guest_id, wanted.guest, start=start)
    if not wait:
        return changed.metadata
    result = wait_for(session, changed)
    session.say(f"{wanted.name} {word} ({text.duration(time.monotonic() - began)})")
    pending = list(result.status.pending_restart_fields)
    if pending:
        session.warn(f"{kinds.last(wanted.name)}: waits for the next start: {', '.join(pending)}")
    return result


@command("diff")
@_files
@host_option("The host of documents that name none.")
@_mode
@pass_session
def diff(session: Session, *, files: tuple[str, ...], host: str | None, mode: Any) -> None:
    """Say what `apply` would change: field, old and new value, when it takes effect.

    Exit code 0: nothing; 10: something; 6: something that cannot be done.
    """
    _show_differences(session, documents.read(session, files, host), mode)


def _show_differences(session: Session, wanted: list[Wanted], mode: Any) -> None:
    found: list[Planned] = []
    for entry in wanted:
        try:
            found.append(documents.plan(session, entry, mode))
        except Exception as error:
            failure = explain(error)
            if len(wanted) == 1:
                raise
            session.failed(failure, subject=entry.where)
    rows = [row for planned in found for row in documents.rows_of(planned)]
    session.printer.items(kinds.CHANGES, [change for _, change in rows], rows=rows)
    for planned in found:
        refused = documents.refuse(planned)
        if refused is not None:
            session.failed(refused, subject=planned.wanted.where)
        elif planned.different:
            session.codes.append(Exit.DIFFERENT)
        else:
            session.say(f"{planned.wanted.name} unchanged")
            session.done()


@command("plan")
@_files
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="On this host; all of them without it.")
@click.option("--native", is_flag=True, help="Show the native configuration as well.")
@pass_session
def plan(session: Session, *, files: tuple[str, ...], hosts: tuple[str, ...], native: bool) -> None:
    """Say what new guests would become, field by field, on several hosts. Nothing is done.

    Exit code 10: a field would be carried out less than asked; 6: one cannot be.
    """
    from virtd.cli.ctl.manifest import load
    from virtd.cli.ctl.remote import host_name

    parents = [host_name(session, host) for host in hosts] or ["hosts/-"]
    plans: list[Any] = []
    for file in files:
        for entry in load(documents.text_of(file), "stdin" if file == "-" else file):
            plans += session.client().guests.plan(parents, entry.guest, guest_id=entry.name)
    for found in plans:
        for warning in found.warnings:
            session.warn(f"{kinds.last(found.host)}: {warning}")
        if found.HasField("error"):
            from virtd.cli.ctl.errors import from_record

            session.failed(from_record(found.error), subject=found.host)
            continue
        words = {kinds.enum(verdict, "fidelity") for verdict in found.verdicts}
        if "REJECTED" in words:
            session.codes.append(Exit.UNSUPPORTED)
        else:
            session.codes.append(Exit.DIFFERENT if words & {"DEGRADED", "IGNORED"} else Exit.DONE)
            session.say(f"{kinds.last(found.host)} can do this")
    rows = [(found, verdict) for found in plans for verdict in found.verdicts]
    session.printer.items(kinds.PLANS, plans, rows=rows)
    if native and not session.printer.structured:
        for found in plans:
            for line in found.native.splitlines():
                session.printer.line(line)


@command("export")
@guests_argument()
@host_option("The host of these guests.")
@pass_session
def export(session: Session, *, guests: tuple[str, ...], host: str | None) -> None:
    """Print guests as documents that `apply` takes; secrets of cloud_init are left out.

    YAML; with -o json a list of the same documents.
    """
    from virtd.cli.ctl.export import document, dump
    from virtd.cli.ctl.remote import guest_name

    found = [session.client().guests.get(guest_name(session, entry, host)) for entry in guests]
    made = [document(guest) for guest in found]
    if session.printer.format in {"json", "jsonl"}:
        for entry in made:
            session.printer.document(entry)
        return
    for line in dump(made).splitlines():
        session.printer.line(line)


@command("edit")
@guest_argument()
@host_option("The host of the guest.")
@_mode
@click.option("--allow-replace", is_flag=True, help="Also what needs the guest to be defined anew; it must be stopped.")
@wait_option()
@pass_session
def edit(session: Session, *, guest: str, host: str | None, mode: Any, allow_replace: bool, wait: bool) -> None:
    """Edit a guest in $VISUAL or $EDITOR as a document, and apply what was changed.

    What was written is kept in a file when it cannot be applied.
    """
    from virtd.cli.ctl.export import document, dump
    from virtd.cli.ctl.remote import guest_name

    name = guest_name(session, guest, host)
    before = dump([document(session.client().guests.get(name))])
    path = _scratch(name)
    path.write_text(before, encoding="utf-8")
    keep = True
    try:
        _run_editor(path)
        if path.read_text(encoding="utf-8") == before:
            session.say(f"{name} unchanged: nothing was edited")
            keep = False
            return
        (wanted,) = _edited(session, path, name)
        result = _apply(session, wanted, mode, allow_replace=allow_replace, start=False, wait=wait)
        keep = False
        if session.output is not None and result is not None:
            session.printer.items(kinds.GUESTS if wait else kinds.OPERATIONS, [result])
    finally:
        if keep:
            session.warn(f"what was written is kept in {path}; repeat with: guestctl apply -f {path}")
        else:
            path.unlink(missing_ok=True)


def _edited(session: Session, path: Path, name: str) -> list[Wanted]:
    wanted = documents.read(session, [str(path)], None)
    if [entry.name for entry in wanted] != [name]:
        raise UsageError(f"the document is to stay for {name}; `guestctl clone` and `create -f` make other guests")
    return wanted


def _scratch(name: str) -> Path:
    handle, path = tempfile.mkstemp(prefix=f"guestctl-{kinds.last(name)}-", suffix=".yaml")
    os.close(handle)
    return Path(path)


def _run_editor(path: Path) -> None:
    """Run the editor and wait for it.

    :raises CtlError: there is none, or it failed: then nothing is applied.
    """
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.run([*shlex.split(chosen), str(path)], check=False).returncode
    except (OSError, ValueError) as error:
        raise CtlError(f"the editor {chosen!r} cannot be run: {error}", next="Set EDITOR.") from error
    if code:
        raise CtlError(f"the editor {chosen!r} ended with {code}; nothing was applied")
