"""Guests as the documents that :mod:`virtd.cli.ctl.manifest` reads: what a person would have written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from virtd.cli.ctl import kinds
from virtd.cli.ctl.output import API_VERSION
from virtd.cli.ctl.text import size

_EXACT: Final = ("KiB", "MiB", "GiB", "TiB")


def document(guest: Any) -> dict[str, Any]:
    """One guest, without what only the daemon writes."""
    metadata: dict[str, Any] = {"name": kinds.last(guest.name), "host": kinds.part(guest.name, "hosts")}
    if guest.display_name:
        metadata["display_name"] = guest.display_name
    for key in ("labels", "annotations"):
        found = dict(sorted(getattr(guest, key).items()))
        if found:
            metadata[key] = found
    return {"apiVersion": API_VERSION, "kind": "Guest", "metadata": metadata, "spec": fields_of(guest.spec)}


def fields_of(message: Any) -> dict[str, Any]:
    """The set fields of a message, in the words of a document."""
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def dump(documents: Iterable[dict[str, Any]]) -> str:
    """As YAML, one document after the other."""
    import yaml

    return yaml.dump_all(list(documents), Dumper=_Dumper.made(), sort_keys=False, allow_unicode=True, width=100)


def _value(field: Any, value: Any) -> Any:
    if field.type == field.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [_single(field, entry) for entry in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.type == field.TYPE_MESSAGE:
        return fields_of(value)
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        return kinds.short(field.enum_type, found.name).lower() if found is not None else value
    if field.type == field.TYPE_BYTES:
        try:
            return value.decode()  # text stays readable; what is none becomes !!binary
        except UnicodeDecodeError:
            return value
    if field.name.endswith("_bytes") and isinstance(value, int):
        shown = size(value)
        # Only what says the same number: a rounded size would change the guest.
        return shown.replace(" ", "") if shown.endswith(_EXACT) and "." not in shown else value
    return value


class _Dumper:
    """PyYAML's dumper with block style for texts of several lines; made when it is needed."""

    @staticmethod
    def made() -> Any:
        import yaml

        class Dumper(yaml.SafeDumper):
            pass

        def text(dumper: Any, data: str) -> Any:
            return dumper.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)

        Dumper.add_representer(str, text)
        return Dumper
