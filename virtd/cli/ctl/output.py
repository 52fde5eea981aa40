"""Data on standard output, in the format that was asked for.

JSON is the protobuf JSON mapping with the field names of the API (snake_case), every field without
presence always there, 64-bit integers as strings (as the mapping says), inside one stable envelope::

    {"apiVersion": "virtd.v1", "kind": "GuestList", "items": [...], "hostErrors": [...]}

The schemas are in docs/schema; `tests/tools/gen_schema.py` makes them from the same descriptors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, Any, Final

from virtd.cli.ctl import kinds, text
from virtd.cli.ctl.kinds import Kind

API_VERSION: Final = "virtd.v1"


def to_dict(message: Any) -> dict[str, Any]:
    """The message as the published schemas describe it."""
    from google.protobuf.json_format import MessageToDict

    data: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return data


def envelope(kind: str, **content: Any) -> dict[str, Any]:
    """The outer object of every document."""
    return {"apiVersion": API_VERSION, "kind": kind, **content}


class Printer:
    """Writes data in one format.

    :param fmt: one of the formats of :mod:`virtd.cli.ctl.lazy`.
    :param stream: standard output.
    :param color: whether states are coloured in tables.
    """

    def __init__(self, fmt: str, stream: IO[str], *, color: bool = False) -> None:
        self.format = fmt
        self._stream = stream
        self._color = color
        self._documents = 0
        self._widths: list[int] = []

    @property
    def structured(self) -> bool:
        """Whether the output is for a program."""
        return self.format not in {"table", "wide"}

    def items(self, kind: Kind, items: Sequence[Any], *, rows: Sequence[Any] | None = None, **extra: Any) -> None:
        """A list, complete.

        :param rows: what the columns are taken of, where that is not the items themselves.
        :param extra: further members of the envelope (``hostErrors``).
        """
        if self.format in {"json", "yaml"}:
            content = {"items": [to_dict(item) for item in items], "hostErrors": [], **extra}
            self.document(envelope(f"{kind.kind}List", **content))
        elif self.format == "jsonl":
            for item in items:
                self.json_line(to_dict(item))
        elif self.format == "name":
            for item in items:
                self.line(getattr(item, "name", "") or getattr(item, "id", "") or getattr(item, "resource", ""))
        elif self.format == "csv":
            self._csv(kind, items if rows is None else rows)
        else:
            self._table(kind, items if rows is None else rows)

    def stream(self, kind: Kind, item: Any, **extra: Any) -> None:
        """One item of a stream, written and flushed at once.

        Tables are headed once; JSON is one object a line, in an envelope of its own because it
        carries ``extra``; YAML is one document each.
        """
        if self.format in {"json", "jsonl"}:
            self.json_line(envelope(kind.kind, **extra, item=to_dict(item)))
        elif self.format == "yaml":
            self.document(envelope(kind.kind, **extra, item=to_dict(item)))
        elif self.format == "name":
            self.line(getattr(item, "name", "") or getattr(item, "resource", ""))
        elif self.format == "csv":
            self._csv(kind, [item], header=not self._documents, lead={k: v for k, v in extra.items() if k == "change"})
            self._documents += 1
        else:
            self._row_of_stream(kind, item, str(extra.get("change", "")))
        self._stream.flush()

    def document(self, data: dict[str, Any]) -> None:
        """One whole document (JSON or YAML; JSON for every other format)."""
        if self.format == "yaml":
            import yaml

            if self._documents:
                self._stream.write("---\n")
            dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
            yaml.dump(data, self._stream, Dumper=dumper, sort_keys=False, allow_unicode=True)
        elif self.format == "jsonl":
            self.json_line(data)
        else:
            import json

            self._stream.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        self._documents += 1

    def line(self, line: str) -> None:
        """One line of text, made harmless for a terminal."""
        self._stream.write(text.clean(line) + "\n")

    def json_line(self, data: dict[str, Any]) -> None:
        """One object on one line."""
        import json

        self._stream.write(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")

    def _csv(
        self, kind: Kind, items: Iterable[Any], *, header: bool = True, lead: dict[str, Any] | None = None
    ) -> None:
        import csv

        writer = csv.writer(self._stream, lineterminator="\n")
        lead = lead or {}
        if header:
            writer.writerow([*lead, *(column.key for column in kind.columns)])
        for item in items:
            values = [_plain(column.value(item)) for column in kind.columns]
            writer.writerow([*lead.values(), *values])

    def _columns(self, kind: Kind) -> list[kinds.Column]:
        return [column for column in kind.columns if self.format == "wide" or not column.wide]

    def _table(self, kind: Kind, items: Sequence[Any]) -> None:
        columns = self._columns(kind)
        if not items:
            return  # the caller says so on stderr: an empty table is no data
        cells = [[text.clean(column.show(column.value(item))) or "-" for column in columns] for item in items]
        heads = [column.title for column in columns]
        widths = [max(map(text.width, (head, *cell))) for head, *cell in zip(heads, *cells, strict=True)]
        self._stream.write(self._row(heads, widths, []))
        for row in cells:
            self._stream.write(self._row(row, widths, columns))

    def _row_of_stream(self, kind: Kind, item: Any, change: str) -> None:
        columns = self._columns(kind)
        cells = [text.clean(column.show(column.value(item))) or "-" for column in columns]
        heads = [column.title for column in columns]
        if change:
            heads, cells = ["CHANGE", *heads], [change, *cells]
        if not self._widths:
            # Later rows are not known yet: room for common values, wider ones push the rest.
            self._widths = [max(text.width(h), text.width(c), 7) for h, c in zip(heads, cells, strict=True)]
            self._stream.write(self._row(heads, self._widths, []))
        marks: list[kinds.Column | None] = [None, *columns] if change else [*columns]
        self._stream.write(self._row(cells, self._widths, marks))

    def _row(self, cells: Sequence[str], widths: Sequence[int], columns: Sequence[kinds.Column | None]) -> str:
        parts = []
        for index, (cell, room) in enumerate(zip(cells, widths, strict=True)):
            shown = cell
            column = columns[index] if columns else None
            if self._color and column is not None and column.state:
                code = kinds.COLOURS.get(cell.partition(" ")[0])
                shown = f"\x1b[{code}m{cell}\x1b[0m" if code else cell
            last = index == len(cells) - 1
            parts.append(shown if last else shown + " " * max(0, room - text.width(cell)))
        return "  ".join(parts).rstrip() + "\n"


def _plain(value: object) -> object:
    """A value as CSV holds it: unknown is empty, times in RFC 3339, booleans as JSON writes them."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if hasattr(value, "nanos"):
        return text.moment(value)
    return value


def describe(message: Any, *, indent: int = 0) -> Iterable[str]:
    """The lines of ``describe``: the whole message, with the field names of the API.

    Fields that are not set are left out; sizes, times and enums are written for people.
    """
    pad = "  " * indent
    for field, value in message.ListFields():
        name = f"{pad}{field.name}:"
        if field.type == field.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
            yield name
            yield from (f"{pad}  {text.clean(str(k))}: {text.clean(str(v))}" for k, v in sorted(value.items()))
        elif field.type == field.TYPE_MESSAGE and not _repeated(field):
            if field.message_type.full_name == "google.protobuf.Timestamp":
                yield f"{name} {text.moment(value)} ({text.age(value)} ago)"
            else:
                yield name
                yield from describe(value, indent=indent + 1)
        elif field.type == field.TYPE_MESSAGE:
            yield name
            for entry in value:
                lines = list(describe(entry, indent=indent + 2))
                if lines:
                    yield f"{pad}  - {lines[0].strip()}"
                    yield from lines[1:]
        elif _repeated(field):
            yield f"{name} " + ", ".join(_scalar(field, entry) for entry in value)
        else:
            shown = _scalar(field, value)
            if "\n" in shown:
                yield name
                yield from (f"{pad}  {line}" for line in shown.splitlines())
            else:
                yield f"{name} {shown}"


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def _scalar(field: Any, value: Any) -> str:
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        return kinds.short(field.enum_type, found.name) if found else str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if field.name.endswith("_bytes") and isinstance(value, int):
        return f"{value} ({text.size(value)})"
    return text.clean(str(value), keep="\n")
