"""The published schemas: current, valid, and true of what is printed."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import jsonschema
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tests.tools import gen_schema
from virtd.cli.ctl import kinds
from virtd.cli.ctl.output import Printer


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    return gen_schema.schemas()


def test_the_checked_in_schemas_are_what_the_tool_writes(schemas: dict[str, Any]) -> None:
    files = {path.stem: path.read_text() for path in gen_schema.OUTPUT.glob("*.json")}
    assert files == {name: gen_schema.text_of(schema) for name, schema in schemas.items()}, (
        "run: python -m tests.tools.gen_schema"
    )


def test_the_page_of_exit_codes_is_what_the_tool_writes() -> None:
    page = gen_schema.EXIT_CODES.read_text()
    assert page == gen_schema.exit_codes(page), "run: python -m tests.tools.gen_schema"


def test_every_schema_is_one_and_describes_its_fields(schemas: dict[str, Any]) -> None:
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["title"] == name
        for message in schema.get("$defs", {}).values():
            for field, value in message["properties"].items():
                assert value.get("description"), f"{name}: {field} has no description"


def closed(schema: Any) -> Any:
    """The schema without room for unknown members, so that a missing one cannot hide."""
    if isinstance(schema, dict):
        result = {key: closed(value) for key, value in schema.items()}
        if "properties" in schema and "required" in schema:
            result["additionalProperties"] = False
        return result
    return [closed(entry) for entry in schema] if isinstance(schema, list) else schema


def check(schema: Any, data: Any) -> None:
    jsonschema.validate(data, closed(copy.deepcopy(schema)), format_checker=jsonschema.FormatChecker())


_VALUES: dict[int, Any] = {
    1: 1.5,
    3: -(2**53) - 1,
    4: 2**63,
    5: -3,
    8: True,
    9: "text",
    12: b"\xff",
    13: 4,
    14: 1,
}
"""A value for each scalar type of protobuf, at the edge where there is one."""


def filled(message: Message, depth: int = 0) -> Message:
    """A message with every field set; of a oneof, the last one."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        message.MergeFrom(Timestamp(seconds=1_700_000_000, nanos=5_000_000))
        return message
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)["key"] = "value"
        elif field.message_type is not None:
            target = getattr(message, field.name)
            if depth < 6:
                filled(target.add() if field.is_repeated else target, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).append(_VALUES[field.type])
        else:
            setattr(message, field.name, _VALUES[field.type])
    return message


@pytest.mark.parametrize("kind", kinds.ALL, ids=lambda kind: kind.plural)
def test_what_is_printed_is_what_the_schema_says(kind: kinds.Kind, schemas: dict[str, Any]) -> None:
    for item in (kind.load()(), filled(kind.load()())):
        if f"{kind.kind}List" in schemas:
            stream = io.StringIO()
            extra = {"host": "hosts/a"} if kind in (kinds.CAPABILITIES, kinds.CHECKS) else {}
            Printer("json", stream).items(kind, [item], **extra)
            check(schemas[f"{kind.kind}List"], json.loads(stream.getvalue()))
        if kind.kind in schemas:
            stream = io.StringIO()
            extra = {"resumeToken": "t"} if kind is kinds.EVENTS else {}
            Printer("json", stream).stream(kind, item, **extra)
            check(schemas[kind.kind], json.loads(stream.getvalue()))


def test_the_check_itself_finds_what_is_wrong(schemas: dict[str, Any]) -> None:
    stream = io.StringIO()
    Printer("json", stream).items(kinds.GUESTS, [kinds.GUESTS.load()(name="hosts/a/guests/b")])
    good = json.loads(stream.getvalue())
    for path, value in (("name", 5), ("unheard_of", "x"), ("generation", 3)):
        bad = copy.deepcopy(good)
        bad["items"][0][path] = value
        with pytest.raises(jsonschema.ValidationError):
            check(schemas["GuestList"], bad)
    missing = copy.deepcopy(good)
    del missing["items"][0]["labels"]
    with pytest.raises(jsonschema.ValidationError):
        check(schemas["GuestList"], missing)


def test_a_value_of_a_newer_daemon_is_still_valid(schemas: dict[str, Any]) -> None:
    guest: Any = kinds.GUESTS.load()()
    guest.status.state = 77
    stream = io.StringIO()
    Printer("json", stream).items(kinds.GUESTS, [guest])
    data = json.loads(stream.getvalue())
    assert data["items"][0]["status"]["state"] == 77
    check(schemas["GuestList"], data)


def test_what_explain_says_is_what_the_api_says() -> None:
    assert gen_schema.FIELDS.read_text() == gen_schema.fields(), "run: python -m tests.tools.gen_schema"
