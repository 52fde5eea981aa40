"""The reference of all options, made from the schema; and a configuration written back as TOML."""

from __future__ import annotations

import enum
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from virtd.config.model import Config, TcpAddress
from virtd.config.schema import File

_TYPES: Final[Mapping[type, str]] = {str: "text", int: "integer", float: "number", bool: "true or false"}


_NUMBERS_AS_TEXT: Final = {"socket_mode": "{:04o}", "socket_owner": "{}", "socket_group": "{}"}
"""Options that are a text in the file and a number afterwards."""

_PREAMBLE: Final = """\
# Configuration

virtd works without a configuration file. Where one is wanted, it is TOML, and the first of these is read:

1. the file that `--config` names;
2. the file that `$VIRTD_CONFIG` names;
3. for root `/etc/virtd/virtd.toml`, for other users `$XDG_CONFIG_HOME/virtd/virtd.toml` (`~/.config/virtd/virtd.toml`).

A file that is named must exist. An option that virtd does not know is an error. `virtd config check` tells all
defects at once, each with its line; `virtd config show` prints what holds in the end;
`virtd config reference --toml` prints a file to start from.
"""


@dataclass(frozen=True, slots=True)
class Option:
    """One option.  ``table`` is its TOML table (``hosts.NAME``), ``default`` a Markdown text."""

    table: str
    name: str
    type: str
    limits: str
    default: str
    description: str
    example: str

    @property
    def path(self) -> str:
        """``server.socket``."""
        return f"{self.table}.{self.name}"


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the file, and its options in order."""

    name: str
    description: str
    options: tuple[Option, ...]


def tables() -> tuple[Table, ...]:
    """Every table, in the order of the file."""
    found = []
    for name, field in File.model_fields.items():
        section: Any = field.annotation
        title = name
        if get_origin(section) is dict:
            section, title = get_args(section)[1], f"{name}.NAME"
        options = tuple(_options(title, section))
        found.append(Table(title, inspect.cleandoc(section.__doc__ or ""), options))
    return tuple(found)


def markdown() -> str:
    """The reference as a Markdown page."""
    lines = [_PREAMBLE]
    for table in tables():
        lines += [f"## [{table.name}]", "", table.description, ""]
        for option in table.options:
            kind = f"{option.type}, {option.limits}" if option.limits else option.type
            lines += [
                f"(config-{option.path.replace('.', '-').replace('_', '-').lower()})=",
                f"### `{option.path}`",
                "",
            ]
            lines += [option.description, "", f"Type: {kind}. Default: {option.default}.", ""]
    return "\n".join(lines)


def example() -> str:
    """A file that says nothing: every option with its default, commented out."""
    lines = ["# Configuration of virtd. Every option is shown with its default."]
    for table in tables():
        named = table.name.endswith(".NAME")
        lines += ["", *_comment(table.description), f"{'# ' if named else ''}[{table.name}]"]
        for option in table.options:
            lines += [
                "",
                *_comment(f"{option.description} Default: {option.default}."),
                f"# {option.name} = {option.example}",
            ]
    return "\n".join(lines) + "\n"


def to_toml(config: Config) -> str:
    """The whole of a configuration as a file that loads to the same values."""
    lines: list[str] = []
    for name in File.model_fields:
        if name == "hosts":
            for host in config.hosts:
                lines += ["", f"[hosts.{_toml_key(host.id)}]", *_toml_items(host, skip=("id",))]
        else:
            lines += ["", f"[{name}]", *_toml_items(getattr(config, name))]
    return "\n".join(lines[1:]) + "\n"


# ------------------------------------------------------------------------------------------ parts


def _options(table: str, section: type[BaseModel]) -> Iterator[Option]:
    for name, field in section.model_fields.items():
        yield Option(
            table=table,
            name=name,
            type=_type(field.annotation),
            limits=_limits(field),
            default=_default(field),
            description=inspect.cleandoc(field.description or ""),
            example=_example(field),
        )


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return _type(next(argument for argument in arguments if argument is not type(None)))
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__)
    if origin is list:
        return f"list of {_type(arguments[0])}s"
    if origin is dict:
        return f"table of {_type(arguments[1])}s"
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(f"`{member.value}`" for member in annotation)
    return _TYPES[annotation]


def _limits(field: FieldInfo) -> str:
    words = []
    for entry in field.metadata:
        for attribute, word in (("gt", "more than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most")):
            limit = getattr(entry, attribute, None)
            if limit is not None:
                words.append(f"{word} {limit:g}" if isinstance(limit, float) else f"{word} {limit}")
    return ", ".join(words)


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, Mapping) and "default_text" in extra:
        return str(extra["default_text"])
    if field.is_required():
        return "none, it is required"
    return f"`{_toml_value(field.get_default(call_default_factory=True, validated_data={}))}`"


def _example(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    return "..." if default is None or default is PydanticUndefined else _toml_value(default)


def _comment(text: str) -> list[str]:
    import textwrap

    return [f"# {line}" for line in textwrap.wrap(text, 98, break_long_words=False, break_on_hyphens=False)]


def _toml_items(section: Any, skip: tuple[str, ...] = ()) -> Iterator[str]:
    for name in section.__dataclass_fields__:
        value = getattr(section, name)
        if name in skip or value is None:
            continue
        shown = _NUMBERS_AS_TEXT[name].format(value) if name in _NUMBERS_AS_TEXT else value
        yield f"{name} = {_toml_value(shown)}"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_key(key)} = {_toml_value(entry)}" for key, entry in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, TcpAddress):
        value = str(value)
    # JSON's escapes are TOML's, but for DEL, which JSON leaves alone.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")


def _toml_key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _toml_value(key)
