"""Write ``docs/schema``, JSON Schemas of what guestctl prints with ``-o json``, the table of exit codes, and what
`guestctl explain` says.

``python -m tests.tools.gen_schema`` writes them anew.  Structure comes from the protobuf descriptors,
descriptions from the comments of the .proto files; nothing is written by hand but the envelopes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from tests.tools.proto import ROOT, workspace
from virtd.cli.ctl import kinds
from virtd.cli.ctl.exits import Exit, for_error
from virtd.cli.ctl.kinds import Kind
from virtd.cli.ctl.output import API_VERSION
from virtd.errors import catalogue
from virtd.v1 import agent_pb2, guest_pb2, guest_service_pb2, server_pb2

OUTPUT = ROOT / "docs" / "schema"
FIELDS = ROOT / "virtd" / "data" / "fields.json"
EXIT_CODES = ROOT / "docs" / "reference" / "exit-codes.md"
Schema = dict[str, Any]

_SCALARS: dict[int, Schema] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_INT32: {"type": "integer"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0},
    # The protobuf JSON mapping: 64-bit integers are strings, as JSON's readers have 53 bits.
    FieldDescriptor.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]+$"},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]+$"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number"},
}
_CHANGE: Schema = {
    "enum": ["present", "added", "changed", "removed"],
    "description": "Only with --watch: why this line is there. Of a removed resource the item holds the name.",
}
_TOKEN: Schema = {"type": "string", "description": "`guestctl events --since TOKEN` goes on from here."}


_TEXT: Schema = {"type": "string"}


def _texts(*names: str) -> Schema:
    return {"type": "object", "properties": dict.fromkeys(names, _TEXT), "required": list(names)}


_EXPLANATION: Schema = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("path", "type", "description"), _TEXT),
        "values": {"type": "array", "items": _texts("name", "description")},
        "fields": {"type": "array", "items": _texts("name", "type", "description")},
    },
    "required": ["path", "type", "description", "values", "fields"],
}


class Messages:
    """The ``$defs`` of one schema: every message that was referred to."""

    def __init__(self, comments: dict[str, str]) -> None:
        self._comments = comments
        self.defs: dict[str, Schema] = {}

    def ref(self, message: Descriptor) -> Schema:
        """A reference to a message; defines it, and what it refers to."""
        if message.full_name == "google.protobuf.Timestamp":
            return {"type": "string", "format": "date-time"}
        if message.name not in self.defs:
            self.defs[message.name] = {}  # so that a message may refer to itself
            self.defs[message.name] = {
                "type": "object",
                **self._described(message.full_name),
                "properties": {field.name: self._field(field) for field in message.fields},
                # Without presence: printed always, so that a script need not ask.
                "required": [field.name for field in message.fields if not field.has_presence],
            }
        return {"$ref": f"#/$defs/{message.name}"}

    def _field(self, field: FieldDescriptor) -> Schema:
        schema = self._value(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            schema = {"type": "object", "additionalProperties": self._value(value)}
        elif field.is_repeated:
            schema = {"type": "array", "items": schema}
        return {**self._described(field.full_name), **schema}

    def _value(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            return {} if field.message_type.GetOptions().map_entry else self.ref(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return dict(_SCALARS[field.type])

    def _enum(self, enum: EnumDescriptor) -> Schema:
        # A daemon that is newer than guestctl may send a value that guestctl knows by number only.
        return {"anyOf": [{"enum": [value.name for value in enum.values]}, {"type": "integer"}]}

    def _described(self, name: str) -> Schema:
        return {"description": self._comments[name]} if self._comments.get(name) else {}


def comments() -> dict[str, str]:
    """The comments of every message and field, by full name."""
    from grpc_tools import protoc

    spec = find_spec("grpc_tools")
    assert spec is not None and spec.origin is not None
    well_known = Path(spec.origin).parent / "_proto"
    with workspace() as root, tempfile.TemporaryDirectory(prefix="virtd-schema-") as scratch:
        target = Path(scratch) / "set.binpb"
        files = sorted(str(p.relative_to(root)) for p in (root / "virtd").rglob("*.proto"))
        options = [f"-I{root}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={target}"]
        if protoc.main(["protoc", *options, *files]):
            raise SystemExit("protoc failed")
        found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    result: dict[str, str] = {}
    for file in found.file:
        for location in file.source_code_info.location:
            name = _name(file, list(location.path))
            if name and location.leading_comments:
                result[name] = " ".join(location.leading_comments.split())
    return result


def _name(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str:
    """The full name that a path of source_code_info stands for.

    Messages (4, i), fields (4, i, 2, j), and values of enums (5, i, 2, j).
    """
    if len(path) == 4 and path[0] == 5 and path[2] == 2:
        enum = file.enum_type[path[1]]
        return f"{file.package}.{enum.name}.{enum.value[path[3]].name}"
    if len(path) not in {2, 4} or path[0] != 4 or path[2:3] not in ([], [2]):
        return ""
    message = file.message_type[path[1]]
    name = f"{file.package}.{message.name}"
    return name if len(path) == 2 else f"{name}.{message.field[path[3]].name}"


def document(kind: str, properties: dict[str, Schema], required: list[str], description: str) -> Schema:
    """The envelope that every document has."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:virtd:v1:{kind}",
        "title": kind,
        "description": description,
        "type": "object",
        "properties": {"apiVersion": {"const": API_VERSION}, "kind": {"const": kind}, **properties},
        "required": ["apiVersion", "kind", *required],
    }


def _list(kind: Kind, messages: Messages) -> Schema:
    properties: dict[str, Schema] = {"items": {"type": "array", "items": messages.ref(kind.load().DESCRIPTOR)}}
    required = ["items", "hostErrors"]
    properties["hostErrors"] = {
        "type": "array",
        "items": messages.ref(guest_service_pb2.HostError.DESCRIPTOR),
        "description": "Hosts that did not answer; the exit code is then 8.",
    }
    if kind is kinds.GUESTS:
        properties["resumeToken"] = _TOKEN
    if kind in (kinds.CAPABILITIES, kinds.CHECKS):
        properties["host"] = {"type": "string", "description": "`hosts/{host}`."}
        required.append("host")
    return document(f"{kind.kind}List", properties, required, f"A list of {kind.plural}; with -o jsonl, its items.")


def _single(kind: Kind, messages: Messages) -> Schema:
    properties = {"item": messages.ref(kind.load().DESCRIPTOR)}
    if kind is kinds.EVENTS:
        properties["resumeToken"] = _TOKEN
        return document(kind.kind, properties, ["item", "resumeToken"], "One line of `guestctl events`.")
    if kind in (kinds.GUESTS, kinds.HOSTS, kinds.OPERATIONS):
        properties["change"] = _CHANGE
    return document(kind.kind, properties, ["item"], "What `describe` prints, and one line of `get --watch`.")


def _others(known: dict[str, str]) -> dict[str, Schema]:
    texts = {key: {"type": "string"} for key in ("name", "target", "host", "timeout")}
    context: Schema = {
        "type": "object",
        "properties": {**texts, "current": {"type": "boolean"}},
        "required": ["name", "current", "target", "host", "timeout"],
    }
    service: Schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "methods": {"type": "array", "items": {"type": "string"}}},
        "required": ["name", "methods"],
    }
    version, result = Messages(known), Messages(known)
    server = version.ref(server_pb2.ServerInfo.DESCRIPTOR)
    client: Schema = {"type": "object", "properties": {"version": {"type": "string"}}, "required": ["version"]}
    system = Messages(known)
    system_item = system.ref(agent_pb2.AgentOsInfo.DESCRIPTOR)
    item = result.ref(agent_pb2.ExecCommandResponse.DESCRIPTOR)
    return {
        "Version": {
            **document(
                "Version",
                {"client": client, "server": {"anyOf": [server, {"type": "null"}]}},
                ["client", "server"],
                "What `guestctl version` prints; server is null when no daemon was asked or answered.",
            ),
            "$defs": version.defs,
        },
        "FieldExplanation": document(
            "FieldExplanation", {"item": _EXPLANATION}, ["item"], "What `guestctl explain` prints."
        ),
        "ExecResult": {
            **document("ExecResult", {"item": item}, ["item"], "What `guestctl exec` prints."),
            "$defs": result.defs,
        },
        "AgentOsInfo": {
            **document("AgentOsInfo", {"item": system_item}, ["item"], "What `guestctl agent os-info` prints."),
            "$defs": system.defs,
        },
        "ServiceList": document(
            "ServiceList",
            {"items": {"type": "array", "items": service}},
            ["items"],
            "What `guestctl services` prints: the daemon's services and their methods.",
        ),
        "EventReset": document(
            "EventReset",
            {"cause": {"enum": ["EXPIRED", "LOG_REPLACED", "INITIAL_INTERRUPTED"]}, "resumeToken": _TOKEN},
            ["cause", "resumeToken"],
            "A line of `guestctl events`: events may be missing before the next line.",
        ),
        "ContextList": document(
            "ContextList", {"items": {"type": "array", "items": context}}, ["items"], "`guestctl config get-contexts`."
        ),
    }


class Documents:
    """The ``$defs`` of the documents that ``create -f`` and ``apply -f`` read: as people write them."""

    def __init__(self, comments: dict[str, str]) -> None:
        self._comments = comments
        self.defs: dict[str, Schema] = {}

    def ref(self, message: Descriptor) -> Schema:
        """A reference to a message; defines it, and what it refers to."""
        if message.name not in self.defs:
            self.defs[message.name] = {}
            schema: Schema = {
                "type": "object",
                "properties": {field.name: self._field(field) for field in message.fields},
                "additionalProperties": False,
            }
            chosen = [oneof for oneof in message.oneofs if not oneof.name.startswith("_")]
            if chosen:
                schema["allOf"] = [
                    {"not": {"required": [one.name, other.name]}}
                    for oneof in chosen
                    for index, one in enumerate(oneof.fields)
                    for other in oneof.fields[index + 1 :]
                ]
            if self._comments.get(message.full_name):
                schema["description"] = self._comments[message.full_name]
            self.defs[message.name] = schema
        return {"$ref": f"#/$defs/{message.name}"}

    def _field(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            schema: Schema = {"type": "object", "additionalProperties": _TEXT}
        else:
            schema = self._value(field)
            if field.is_repeated:
                schema = {"type": "array", "items": schema}
        described = self._comments.get(field.full_name)
        return {"description": described, **schema} if described else schema

    def _value(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            return self.ref(field.message_type)
        if field.enum_type is not None:
            names = [kinds.short(field.enum_type, value.name).lower() for value in field.enum_type.values[1:]]
            # In any case, and with - for _: completion offers these, the pattern takes the rest.
            loose = "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else "[-_]" for c in name) for name in names)
            return {"anyOf": [{"enum": names}, {"type": "string", "pattern": f"^({loose})$"}]}
        if field.name.endswith("_bytes") and field.type != FieldDescriptor.TYPE_BYTES:
            return {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9.]+ *[A-Za-z]*$"}]}
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string"}
        if field.type in (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64):
            return {"type": "integer"}
        return dict(_SCALARS[field.type])


def manifest(known: dict[str, str]) -> Schema:
    """The schema of a guest's document (YAML or JSON)."""
    documents = Documents(known)
    texts: Schema = {"type": "object", "additionalProperties": _TEXT}
    metadata: Schema = {
        "type": "object",
        "properties": {**dict.fromkeys(("name", "host", "display_name"), _TEXT), "labels": texts, "annotations": texts},
        "additionalProperties": False,
    }
    spec = documents.ref(guest_pb2.GuestSpec.DESCRIPTOR)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:virtd:v1:GuestDocument",
        "title": "GuestDocument",
        "description": "What `guestctl create -f`, `apply -f` and `diff -f` read and `guestctl export` prints.",
        "type": "object",
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": "Guest"},
            "metadata": metadata,
            "spec": spec,
        },
        "required": ["apiVersion", "kind", "spec"],
        "additionalProperties": False,
        "$defs": documents.defs,
    }


def schemas() -> dict[str, Schema]:
    """Every schema by the name of its document."""
    known = comments()
    result: dict[str, Schema] = {}
    for kind in kinds.ALL:
        makers = [_list, _single] if kind in kinds.GETTABLE else [_single] if kind is kinds.EVENTS else [_list]
        for make in makers:
            messages = Messages(known)
            schema = make(kind, messages)
            result[schema["title"]] = {**schema, "$defs": messages.defs}
    return dict(sorted({**result, **_others(known), "GuestDocument": manifest(known)}.items()))


def text_of(schema: Schema) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def fields() -> str:
    """What `guestctl explain` says of every field and value, as its file holds it."""
    known = {
        name: text for name, text in comments().items() if not name.split(".")[2].endswith(("Request", "Response"))
    }
    return json.dumps(dict(sorted(known.items())), indent=0, ensure_ascii=False) + "\n"


_MEANINGS = {
    Exit.DONE: "Done.",
    Exit.FAILED: "Failed for another cause than those below.",
    Exit.USAGE: "The command line, a document or a value in it is wrong. Nothing was done.",
    Exit.NOT_FOUND: "What was named is not there.",
    Exit.NOT_ALLOWED: "The caller may not do this, or the daemon's socket is closed to this user.",
    Exit.CONFLICT: "A conflict, or not possible in the present state.",
    Exit.UNSUPPORTED: "The host cannot do this at all.",
    Exit.UNREACHABLE: "The daemon (`DAEMON_UNREACHABLE`), a host or a guest's agent does not answer.",
    Exit.PARTIAL: "Part of it: a host did not answer, or some of several things failed.",
    Exit.DIFFERENT: "Differences: `diff` and `apply --dry-run` found some; or `plan` and `create --dry-run` found a "
    "field that would be carried out less than asked (DEGRADED or IGNORED).",
    Exit.TIMEOUT: "Time ran out, the daemon's or this client's (`CLIENT_TIMEOUT`).",
    Exit.INTERRUPTED: "Interrupted (^C).",
    Exit.BROKEN_PIPE: "The reader of stdout went away, as in `guestctl get guests` into `head -1`; quiet.",
}


def exit_codes(page: str) -> str:
    """The page of exit codes with its table written anew."""
    by_code: dict[int, list[str]] = {}
    for reason in catalogue().values():
        by_code.setdefault(for_error(reason.kind, reason.name), []).append(f"`{reason.name}`")
    rows = [f"| {code} | {_MEANINGS[code]} | {' '.join(by_code.get(code, []))} |" for code in Exit]
    table = "\n".join(["| code | meaning | reasons |", "|---|---|---|", *rows])
    head, rest = page.split("<!-- exit codes: generated -->\n")
    tail = rest.split("<!-- exit codes: end -->\n")[1]
    return f"{head}<!-- exit codes: generated -->\n{table}\n<!-- exit codes: end -->\n{tail}"


def main() -> int:
    """Entry point."""
    EXIT_CODES.write_text(exit_codes(EXIT_CODES.read_text(encoding="utf-8")), encoding="utf-8")
    FIELDS.write_text(fields(), encoding="utf-8")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    wanted = {f"{name}.json": text_of(schema) for name, schema in schemas().items()}
    for stale in OUTPUT.glob("*.json"):
        if stale.name not in wanted:
            stale.unlink()
    for name, text in wanted.items():
        (OUTPUT / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
