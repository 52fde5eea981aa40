"""Documents: what `export` prints, `manifest` reads back as the same guest, and the published schema takes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.gen_schema import OUTPUT
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.export import document, dump
from virtd.cli.ctl.manifest import load
from virtd.v1 import guest_pb2

SCHEMA: Any = json.loads((OUTPUT / "GuestDocument.json").read_text())
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


def valid(text: str) -> None:
    for found in yaml.safe_load_all(text):
        jsonschema.validate(found, SCHEMA)


def again(guest: guest_pb2.Guest) -> guest_pb2.Guest:
    text = dump([document(guest)])
    valid(text)
    (entry,) = load(text, "here")
    assert (entry.name, entry.host) == ("web", "kvm1")
    result: guest_pb2.Guest = entry.guest
    return result


@st.composite
def messages(draw: st.DrawFn, message: Any) -> Any:
    """Any message of a type, with any of its fields set."""
    made = message()
    taken: set[str] = set()
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        group = oneof.name if oneof is not None and not oneof.name.startswith("_") else field.name
        if group in taken or not draw(st.booleans()):
            continue
        taken.add(group)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(made, field.name).update(draw(st.dictionaries(TEXT, TEXT, max_size=2)))
        elif field.message_type is not None:
            inner = messages(field.message_type._concrete_class)
            if field.is_repeated:
                getattr(made, field.name).extend(draw(st.lists(inner, max_size=2)))
            else:
                getattr(made, field.name).CopyFrom(draw(inner))
        elif field.is_repeated:
            getattr(made, field.name).extend(draw(st.lists(scalar(field), max_size=2)))
        else:
            setattr(made, field.name, draw(scalar(field)))
    return made


def scalar(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values[1:]])
    return {
        field.TYPE_STRING: TEXT,
        field.TYPE_BYTES: TEXT.map(str.encode),
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_UINT64: st.integers(0, 2**63 - 1) | st.integers(0, 2**20).map(lambda n: n << 20),
        field.TYPE_UINT32: st.integers(0, 2**32 - 1),
    }[field.type]


@settings(deadline=None, max_examples=60)
@given(messages(guest_pb2.GuestSpec))
def test_every_spec_survives_being_exported_and_read(spec: guest_pb2.GuestSpec) -> None:
    guest = guest_pb2.Guest(name="hosts/kvm1/guests/web", spec=spec)
    assert again(guest).spec == spec


def test_labels_and_titles_survive_and_status_does_not_appear() -> None:
    guest = guest_pb2.Guest(name="hosts/kvm1/guests/web", display_name="Web: one", labels={"env": "prod", "no": "1.10"})
    guest.spec.memory_bytes = 256 << 20
    guest.status.state = guest_pb2.GUEST_STATE_RUNNING
    text = dump([document(guest)])
    assert "memory_bytes: 256MiB" in text
    assert "status" not in text
    found = again(guest)
    assert found.labels == guest.labels
    assert found.display_name == "Web: one"


def test_a_size_is_never_rounded() -> None:
    guest = guest_pb2.Guest(name="hosts/kvm1/guests/web")
    guest.spec.memory_bytes = (256 << 20) + 1
    assert "268435457" in dump([document(guest)])


@pytest.mark.parametrize(
    "wrong",
    ["spec: {vcpus: two}", "spec: {vcpu: 2}", "spec: {disks: {}}", "spec: {firmware: bos}",
     "spec: {disks: [{name: a, volume: v, blank: {capacity_bytes: 1MiB}}]}"],
)  # fmt: skip
def test_what_guestctl_refuses_the_schema_refuses(wrong: str) -> None:
    text = f"apiVersion: virtd.v1\nkind: Guest\nmetadata: {{name: a}}\n{wrong}\n"
    with pytest.raises(UsageError):
        load(text, "here")
    with pytest.raises(jsonschema.ValidationError):
        valid(text)


def test_bytes_are_text_or_base64() -> None:
    text = (
        "apiVersion: virtd.v1\nkind: Guest\nspec:\n  cloud_init:\n    write_files:\n"
        "    - {path: /a, content: plain}\n    - {path: /b, content: !!binary AAEC}\n"
    )
    (entry,) = load(text, "here")
    assert [file.content for file in entry.guest.spec.cloud_init.write_files] == [b"plain", b"\x00\x01\x02"]
