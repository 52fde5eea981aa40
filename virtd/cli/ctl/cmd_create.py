"""``create``: guests, from options or from documents."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError, explain, from_record
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.lazy import Command, Group, Size
from virtd.cli.ctl.params import FunctionT, host_option, wait_option
from virtd.cli.ctl.session import Session, pass_session


@dataclass(frozen=True, slots=True)
class Wanted:
    """One guest to create."""

    parent: str
    guest_id: str
    guest: Any
    where: str


class _Create(Group, Command):
    """``create -f FILE`` stands for ``create guest -f FILE``: the document says what it is."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Options instead of a type mean the type of the document."""
        if args[0].startswith("-") and args[0] not in {"--help", "-h"}:
            return "guest", guest, args
        return super().resolve_command(ctx, args)


@click.group("create", cls=_Create, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def create() -> None:
    """Create a guest: `create guest NAME ...`, or `create -f FILE`."""


_SPEC_OPTIONS = (
    click.option("--vcpus", type=click.IntRange(1, 512), help="Number of virtual CPUs; default 1."),
    click.option("--memory", type=Size(), metavar="SIZE", help="Memory, such as 256MiB. Required without -f."),
    click.option("--kernel", metavar="PATH", help="Boot this kernel of the host directly."),
    click.option("--initrd", metavar="PATH", help="Its initial RAM disk."),
    click.option("--cmdline", metavar="TEXT", help="Its command line."),
    click.option("--disk", "disks", multiple=True, metavar="K=V,...",
                 help="name=root, then size=1GiB (new), image=, file= (with format=) or volume=; also format=, bus=, "
                 "pool=, device=, boot=, readonly, copy. Can be repeated."),
    click.option("--network", "networks", multiple=True, metavar="NET",
                 help="user, network:NAME or bridge:BR, then ,mac= and ,model=. Can be repeated."),
    click.option("--accelerator", metavar="A", help="auto (default), kvm, tcg or native."),
    click.option("--firmware", metavar="F", help="bios (default) or uefi."),
    click.option("--machine", metavar="M", help="Machine type in the hypervisor's words."),
    click.option("--run-strategy", metavar="S", help="manual (default), always, halted, rerun_on_failure or once."),
    click.option("--backend-option", "backend_options", multiple=True, metavar="K=V",
                 help="An option of the backend. Can be repeated."),
)  # fmt: skip


def _spec_options(function: FunctionT) -> FunctionT:
    for option in reversed(_SPEC_OPTIONS):
        function = option(function)
    return function


@create.command("guest")
@click.argument("name", required=False)
@host_option("The host; needed when there are several.")
@click.option("-f", "--file", "file", metavar="FILE", help="Guests as YAML or JSON documents; - is stdin.")
@_spec_options
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label. Can be repeated.")
@click.option("--display-name", metavar="TEXT", help="Title for a person.")
@click.option("--start", is_flag=True, help="Start it as well.")
@click.option("--dry-run", is_flag=True, help="Create nothing; say what it would become.")
@wait_option()
@pass_session
def guest(
    session: Session,
    name: str | None,
    host: str | None,
    file: str | None,
    labels: tuple[str, ...],
    display_name: str | None,
    start: bool,
    dry_run: bool,
    wait: bool,
    **spec: Any,
) -> None:
    """Create a guest from options, or guests from a file.

    With --dry-run: what the guest would become on the host. Exit code 10 when a field would be
    carried out less than asked, 6 when one cannot be.
    """
    from virtd.cli.ctl.spec import labels as parse_labels

    extra = {"labels": parse_labels("--label", labels), "display_name": display_name or ""}
    if file is not None:
        given = [key for key, value in spec.items() if value]
        if given:
            option = "--" + given[0].removesuffix("s" if given[0] in {"disks", "networks", "backend_options"} else "")
            raise UsageError(f"{option.replace('_', '-')} does not go with -f: write it in the file")
        wanted = _from_file(session, file, name, host, extra)
    else:
        if not name:
            raise UsageError("the guest's NAME is missing", next="guestctl create guest --help")
        wanted = [Wanted(_parent(session, host), name, _from_options(session, spec, extra), name)]
    if dry_run:
        _plan(session, wanted)
    else:
        _create_all(session, wanted, start=start, wait=wait)


def _parent(session: Session, host: str | None) -> str:
    from virtd.cli.ctl.remote import host_name

    return host_name(session, host)


def _from_options(session: Session, options: dict[str, Any], extra: dict[str, Any]) -> Any:
    from virtd.cli.ctl import spec as build
    from virtd.v1 import guest_pb2 as pb

    if options["memory"] is None:
        raise UsageError("--memory is missing", next="for example --memory 256MiB")
    if not options["kernel"] and (options["initrd"] or options["cmdline"]):
        raise UsageError("--initrd and --cmdline need --kernel")
    local = session.address.startswith("unix:")
    guest = pb.Guest(**extra)
    spec = guest.spec
    spec.memory_bytes = options["memory"]
    if options["vcpus"] is not None:
        spec.vcpus = options["vcpus"]
    if options["kernel"]:
        spec.direct_kernel_boot.kernel_path = build.local_path(options["kernel"], local=local)
        spec.direct_kernel_boot.initrd_path = build.local_path(options["initrd"] or "", local=local)
        spec.direct_kernel_boot.command_line = options["cmdline"] or ""
    for disk in options["disks"]:
        build.add_disk(spec, disk, local=local)
    for network in options["networks"]:
        build.add_network(spec, network)
    enums = {"accelerator": pb.Accelerator, "firmware": pb.Firmware, "run_strategy": pb.RunStrategy}
    for key, enum in enums.items():
        if options[key]:
            option = "--" + key.replace("_", "-")
            setattr(spec, key, build.choice(option, options[key].replace("-", "_"), enum.DESCRIPTOR))
    spec.machine = options["machine"] or ""
    spec.backend_options.update(build.labels("--backend-option", options["backend_options"]))
    return guest


def _from_file(session: Session, file: str, name: str | None, host: str | None, extra: dict[str, Any]) -> list[Wanted]:
    from virtd.cli.ctl.manifest import load

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: this is not text in UTF-8") from error
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    manifests = load(text, "stdin" if file == "-" else file)
    if name and len(manifests) > 1:
        raise UsageError(f"{file} holds {len(manifests)} guests: a NAME on the command line cannot be for all of them")
    wanted = []
    for entry in manifests:
        guest_id = name or entry.name
        if not guest_id:
            raise UsageError(f"{entry.where}: metadata.name: is required, here or as NAME on the command line")
        entry.guest.labels.update(extra["labels"])
        entry.guest.display_name = extra["display_name"] or entry.guest.display_name
        wanted.append(Wanted(_parent(session, host or entry.host or None), guest_id, entry.guest, entry.where))
    return wanted


def _create_all(session: Session, wanted: list[Wanted], *, start: bool, wait: bool) -> None:
    from virtd.cli.ctl.progress import run_operations

    by_name = {f"{entry.parent}/guests/{entry.guest_id}": entry for entry in wanted}
    if len(by_name) < len(wanted):
        raise UsageError("two documents are for the same guest")

    def call(subject: str) -> Any:
        entry = by_name[subject]
        return session.client().guests.create(entry.parent, entry.guest_id, entry.guest, start=start)

    done = "created and started" if start else "created"
    run_operations(session, list(by_name), call, done, wait=wait, kind=kinds.GUESTS)


def _plan(session: Session, wanted: list[Wanted]) -> None:
    """What each guest would become; several are several plans."""
    plans: list[Any] = []
    for entry in wanted:
        try:
            operation = session.client().guests.create(entry.parent, entry.guest_id, entry.guest, validate_only=True)
        except Exception as error:
            if len(wanted) == 1:
                raise
            session.failed(explain(error), subject=entry.where)
            continue
        assert operation.plan is not None  # that is what validate_only gives
        plans.append(operation.plan)
        _judge(session, entry, operation.plan)
    rows = [(plan, verdict) for plan in plans for verdict in plan.verdicts]
    session.printer.items(kinds.PLANS, plans, rows=rows)
    if session.verbose and not session.printer.structured:
        for plan in plans:
            for line in plan.native.splitlines():
                session.printer.line(line)


def _judge(session: Session, entry: Wanted, plan: Any) -> None:
    for warning in plan.warnings:
        session.warn(warning)
    if plan.HasField("error"):
        session.failed(from_record(plan.error), subject=entry.where)
        return
    words = {kinds.enum(verdict, "fidelity") for verdict in plan.verdicts}
    if "REJECTED" in words:
        session.say(f"{entry.guest_id}: {kinds.last(plan.host)} cannot do this")
        session.codes.append(Exit.UNSUPPORTED)
    elif words & {"DEGRADED", "IGNORED"}:
        session.say(f"{entry.guest_id}: {kinds.last(plan.host)} would not carry out every field as asked")
        session.codes.append(Exit.DIFFERENT)
    else:
        session.say(f"{entry.guest_id}: {kinds.last(plan.host)} can do this; nothing was created")
        session.done()
