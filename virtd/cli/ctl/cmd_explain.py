"""``explain``: what a field means, from the API's own documentation.  Asks no daemon."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import Completed, command
from virtd.cli.ctl.session import Session, pass_session
from virtd.cli.ctl.text import did_you_mean

_SCALARS: Final = {
    1: "number", 3: "integer", 4: "integer", 5: "integer", 8: "true or false", 9: "text", 12: "bytes (base64)",
    13: "integer",
}  # fmt: skip


class FieldPath(Completed):
    """``guest.spec.disks``: a type, and the names of fields below it."""

    name = "field"

    def words(self, ctx: click.Context, incomplete: str) -> Iterable[str]:
        """The fields one level below what is there already."""
        head, dot, _ = incomplete.rpartition(".")
        if not dot:
            return [kind.plural.removesuffix("s") for kind in kinds.GETTABLE]
        try:
            message, _ = _walk(head)
        except UsageError:
            return []
        return [f"{head}.{field.name}" for field in message.fields] if message is not None else []


@command("explain")
@click.argument("path", metavar="FIELD", type=FieldPath())
@click.option("--recursive", is_flag=True, help="All fields below it as well.")
@pass_session
def explain(session: Session, *, path: str, recursive: bool) -> None:
    """Say what a field is: its type, its values, what is below it.

    FIELD begins with a type: guest, guest.spec, guest.spec.disks.cache, volume.capacity_bytes.
    Without one it is looked for in a guest's spec: disks.cache.
    """
    message, field = _walk(path)
    known = _comments()
    if session.printer.format in {"json", "jsonl", "yaml"}:
        from virtd.cli.ctl.output import envelope

        session.printer.document(envelope("FieldExplanation", item=_data(path, message, field, known)))
        return
    for line in _lines(path, message, field, known, recursive=recursive):
        session.printer.line(line)


def _walk(path: str) -> tuple[Any | None, Any | None]:
    """The message below a path (None for plain values), and the field that it names (None for a type).

    :raises UsageError: there is no such type or field, with the nearest name.
    """
    first, *rest = path.split(".")
    kind = kinds.find(first)
    if kind is None:
        spec = kinds.GUESTS.load().DESCRIPTOR.fields_by_name["spec"].message_type
        if first != "spec" and first not in spec.fields_by_name:
            known = [*(kind.plural.removesuffix("s") for kind in kinds.GETTABLE), *spec.fields_by_name]
            raise UsageError(f"there is no type or field of a guest's spec {first!r}{did_you_mean(first, known)}")
        rest = ["spec", *([] if first == "spec" else [first]), *rest]
        kind = kinds.GUESTS
    message: Any | None = kind.load().DESCRIPTOR
    field: Any | None = None
    walked = kind.kind
    for name in rest:
        plain = name.partition("[")[0]
        if message is None:
            raise UsageError(f"{walked} has no fields, it is a plain value")
        if plain not in message.fields_by_name:
            raise UsageError(f"{walked} has no field {plain!r}{did_you_mean(plain, message.fields_by_name)}")
        field = message.fields_by_name[plain]
        message = field.message_type
        if message is not None and (message.full_name == "google.protobuf.Timestamp" or message.GetOptions().map_entry):
            message = None
        walked += f".{plain}"
    return message, field


def _lines(path: str, message: Any, field: Any, known: dict[str, str], *, recursive: bool) -> Iterator[str]:
    yield f"FIELD        {path}"
    if field is not None:
        yield f"TYPE         {_type(field)}"
    yield ""
    full = field.full_name if field is not None else message.full_name
    yield from _wrapped(known.get(full, ""), "")
    if field is not None and field.enum_type is not None:
        yield ""
        yield "VALUES"
        for value in field.enum_type.values[1:]:
            yield f"  {kinds.short(field.enum_type, value.name)}"
            yield from _wrapped(known.get(f"{field.enum_type.full_name}.{value.name}", ""), "      ")
    if message is not None:
        yield ""
        yield "FIELDS"
        yield from _fields(message, known, "  ", recursive=recursive, above=(message.full_name,))


def _fields(message: Any, known: dict[str, str], pad: str, *, recursive: bool, above: tuple[str, ...]) -> Iterator[str]:
    for field in message.fields:
        yield f"{pad}{field.name}  <{_type(field)}>"
        yield from _wrapped(known.get(field.full_name, ""), f"{pad}    ")
        inner = field.message_type
        if not recursive or inner is None or inner.GetOptions().map_entry:
            continue
        if inner.full_name.startswith("virtd.") and inner.full_name not in above:
            yield from _fields(inner, known, f"{pad}  ", recursive=True, above=(*above, inner.full_name))


def _type(field: Any) -> str:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return "map of texts"
    if inner is not None:
        word = "time (RFC 3339)" if inner.full_name == "google.protobuf.Timestamp" else inner.name
    elif field.enum_type is not None:
        word = "one of " + ", ".join(kinds.short(field.enum_type, v.name) for v in field.enum_type.values[1:])
    elif field.name.endswith("_bytes"):
        word = "size, such as 256MiB"
    else:
        word = _SCALARS[field.type]
    return f"list of {word}" if field.is_repeated else word


def _wrapped(comment: str, pad: str) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(comment, 100, initial_indent=pad, subsequent_indent=pad)


def _data(path: str, message: Any, field: Any, known: dict[str, str]) -> dict[str, Any]:
    full = field.full_name if field is not None else message.full_name
    values = field.enum_type.values[1:] if field is not None and field.enum_type is not None else ()
    return {
        "path": path,
        "type": _type(field) if field is not None else message.name,
        "description": known.get(full, ""),
        "values": [
            {
                "name": kinds.short(field.enum_type, value.name),
                "description": known.get(f"{field.enum_type.full_name}.{value.name}", ""),
            }
            for value in values
        ],
        "fields": [
            {"name": inner.name, "type": _type(inner), "description": known.get(inner.full_name, "")}
            for inner in (message.fields if message is not None else ())
        ],
    }


def _comments() -> dict[str, str]:
    """The comments of the .proto files, by full name; generated code does not carry them."""
    import json
    from importlib.resources import files

    found: dict[str, str] = json.loads(files("virtd").joinpath("data", "fields.json").read_text("utf-8"))
    return found
