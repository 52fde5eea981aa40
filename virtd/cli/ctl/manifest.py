"""Guests as YAML documents (JSON is YAML too).

::

    apiVersion: virtd.v1
    kind: Guest
    metadata: {name: web1, host: kvm1, labels: {env: prod}}
    spec:
      vcpus: 2
      memory_bytes: 256MiB
      disks: [{name: root, blank: {capacity_bytes: 1GiB}}]

Below ``spec`` the names are those of the API.  Sizes (``*_bytes``) take units, enums their short names
in any case.  Everything is checked before anything is sent: each mistake names its line, its field,
and the nearest field that exists.  The walk is over YAML nodes, not over Python values, because only
nodes know lines, doubled keys, and that ``name: 1e3`` was no text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import yaml

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.output import API_VERSION
from virtd.cli.ctl.text import did_you_mean, parse_size

_TAG: Final = "tag:yaml.org,2002:"
_METADATA: Final = ("name", "host", "labels", "annotations", "display_name")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One document: the guest's id and host (``""`` where not given) and the message to send."""

    name: str
    host: str
    guest: Any
    where: str


def load(text: str, source: str) -> list[Manifest]:
    """Every guest of a file.

    :param source: the file's name, for messages.
    :raises UsageError: for the first mistake.
    """
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{source}{line}: this is not YAML: {getattr(error, 'problem', None) or error}") from error
    documents = [node for node in nodes if not (isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null")]
    if not documents:
        raise UsageError(f"{source}: there is no document in it")
    return [_Reader(source).document(node) for node in documents]


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source

    def fail(self, node: yaml.Node, path: str, problem: str) -> UsageError:
        return UsageError(f"{self._source}:{node.start_mark.line + 1}: {path}: {problem}" if path
                          else f"{self._source}:{node.start_mark.line + 1}: {problem}")  # fmt: skip

    def document(self, node: yaml.Node) -> Manifest:
        from virtd.v1 import guest_pb2

        parts = self.mapping(node, "", ("apiVersion", "kind", "metadata", "spec"))
        for key, wanted in (("apiVersion", API_VERSION), ("kind", "Guest")):
            if key not in parts:
                raise self.fail(node, key, f"is required: {wanted}")
            found = self.text(parts[key], key)
            if found != wanted:
                raise self.fail(parts[key], key, f"is {found!r}; this guestctl takes {wanted!r}")
        guest = guest_pb2.Guest()
        metadata = self.mapping(parts["metadata"], "metadata", _METADATA) if "metadata" in parts else {}
        for key in ("labels", "annotations"):
            if key in metadata:
                for name, value in self.mapping(metadata[key], f"metadata.{key}", None).items():
                    getattr(guest, key)[name] = self.text(value, f"metadata.{key}.{name}")
        texts = {k: self.text(v, f"metadata.{k}") for k, v in metadata.items() if k in {"name", "host", "display_name"}}
        guest.display_name = texts.get("display_name", "")
        if "spec" not in parts:
            raise self.fail(node, "spec", "is required")
        self.message(parts["spec"], "spec", guest.spec)
        return Manifest(
            texts.get("name", ""), texts.get("host", ""), guest, f"{self._source}:{node.start_mark.line + 1}"
        )

    def mapping(self, node: yaml.Node, path: str, known: tuple[str, ...] | None) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, path, "must be a mapping (key: value)")
        result: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, path, "keys must be plain words")
            key = key_node.value
            below = f"{path}.{key}" if path else key
            if key in result:
                raise self.fail(key_node, below, "is there twice")
            if known is not None and key not in known:
                raise self.fail(key_node, below, f"unknown field{did_you_mean(key, known)}")
            result[key] = value
        return result

    def text(self, node: yaml.Node, path: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != f"{_TAG}str":
            raise self.fail(node, path, f"must be a text{self._quoting(node)}")
        return str(node.value)

    @staticmethod
    def _quoting(node: yaml.Node) -> str:
        # YAML reads no, 1.10 and 12:30 as something else: say how to keep them.
        return f'; quote it: "{node.value}"' if isinstance(node, yaml.ScalarNode) and node.value else ""

    def message(self, node: yaml.Node, path: str, message: Any) -> None:
        """Fill a message from a mapping."""
        fields = message.DESCRIPTOR.fields_by_name
        chosen: dict[str, str] = {}
        for key, value in self.mapping(node, path, tuple(fields)).items():
            field, below = fields[key], f"{path}.{key}"
            oneof = field.containing_oneof
            if oneof is not None and not oneof.name.startswith("_"):
                if oneof.name in chosen:
                    raise self.fail(value, below, f"excludes {chosen[oneof.name]}: give one of them")
                chosen[oneof.name] = key
            if field.type == field.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
                target = getattr(message, key)
                for name, entry in self.mapping(value, below, None).items():
                    target[name] = self.text(entry, f"{below}.{name}")
            elif field.is_repeated:
                self.sequence(value, below, field, getattr(message, key))
            elif field.type == field.TYPE_MESSAGE:
                getattr(message, key).SetInParent()
                self.message(value, below, getattr(message, key))
            else:
                self.assign(message, key, self.scalar(value, below, field), value, below)

    def sequence(self, node: yaml.Node, path: str, field: Any, target: Any) -> None:
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(node, path, "must be a list (- item)")
        for index, entry in enumerate(node.value):
            below = f"{path}[{index}]"
            if field.type == field.TYPE_MESSAGE:
                self.message(entry, below, target.add())
            else:
                target.append(self.scalar(entry, below, field))

    def scalar(self, node: yaml.Node, path: str, field: Any) -> object:
        if field.enum_type is not None:
            return self.enum(node, path, field.enum_type)
        if field.type == field.TYPE_STRING:
            return self.text(node, path)
        if field.type == field.TYPE_BYTES:
            return self.data(node, path)
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, path, "must be a single value")
        if field.type == field.TYPE_BOOL:
            if node.tag != f"{_TAG}bool":
                raise self.fail(node, path, "must be true or false")
            return str(node.value).lower() in {"true", "yes", "on"}
        convert: Callable[[str], object] = parse_size if field.name.endswith("_bytes") else int
        try:
            return convert(node.value)
        except ValueError as error:
            message = str(error) if convert is parse_size else f"{node.value!r} is not a whole number"
            raise self.fail(node, path, message) from error

    def data(self, node: yaml.Node, path: str) -> bytes:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}binary":
            import base64

            try:
                return base64.b64decode(node.value, validate=False)
            except ValueError as error:
                raise self.fail(node, path, f"is not base64: {error}") from error
        return self.text(node, path).encode()

    def enum(self, node: yaml.Node, path: str, descriptor: Any) -> int:
        names = {kinds.short(descriptor, value.name): value.number for value in descriptor.values if value.number}
        given = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
        word = kinds.short(descriptor, given.upper().replace("-", "_"))
        if word not in names:
            raise self.fail(
                node,
                path,
                f"{given!r} is none of {', '.join(names).lower()}{did_you_mean(given, map(str.lower, names))}",
            )
        number: int = names[word]
        return number

    def assign(self, message: Any, key: str, value: object, node: yaml.Node, path: str) -> None:
        try:
            setattr(message, key, value)
        except (ValueError, TypeError) as error:
            raise self.fail(node, path, f"{value} does not fit: {error}") from error
