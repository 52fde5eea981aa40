"""The pages of the reference that are made from code: the API, errors, options, metrics, capabilities, hooks."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from google.rpc import code_pb2

from virtd import backend, errors
from virtd.backend.capabilities import FACET_OF, SUMMARIES
from virtd.config import reference as config_reference
from virtd.obs.metrics import CATALOGUE
from virtd.rpc import (
    convert,  # noqa: F401 -- before status: the two import each other
    status,
)

PACKAGE: Final = ".virtd.v1."
# What these field numbers of descriptor.proto are called: the path of a comment is made of them.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS, _VALUES, _METHODS = 2, 3, 4, 2, 2
_SCALARS: Final = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}  # fmt: skip


def pages() -> dict[str, str]:
    """Every generated page: path below the documentation's source -> Markdown."""
    files = descriptors()
    made = {f"reference/api/{stem_of(file.name)}.md": api_page(file) for file in files}
    made["reference/api/index.md"] = api_index(files)
    made["reference/errors.md"] = errors_page()
    made["reference/configuration.md"] = config_reference.markdown()
    made["reference/metrics.md"] = metrics_page()
    made["reference/capability-ids.md"] = capabilities_page()
    made["reference/hooks.md"] = module_page("Hooks", "virtd.backend.hookspecs")
    made["reference/spi.md"] = module_page("The interface of backends", *spi_modules())
    made["reference/guestctl.md"] = guestctl_page()
    return made


# -------------------------------------------------------------------------------------------- API


def descriptors() -> list[FileDescriptorProto]:
    """The descriptors of virtd's own proto files, with comments, by file name."""
    from grpc_tools import protoc

    from tests.tools.proto import workspace

    well_known = Path(importlib.import_module("grpc_tools").__file__ or "").parent / "_proto"
    with workspace() as root, tempfile.TemporaryDirectory() as name:
        output = Path(name) / "set.binpb"
        ours = sorted(str(path.relative_to(root)) for path in (root / "virtd").rglob("*.proto"))
        arguments = [
            "protoc",
            f"-I{root}",
            f"-I{well_known}",
            "--include_source_info",
            f"--descriptor_set_out={output}",
        ]
        if protoc.main([*arguments, *ours]):
            raise RuntimeError("protoc failed; it has said why")
        found = FileDescriptorSet.FromString(output.read_bytes())
    return sorted(found.file, key=lambda file: file.name)


def stem_of(name: str) -> str:
    """``guest-service`` for ``virtd/v1/guest_service.proto``."""
    return Path(name).stem.replace("_", "-")


@dataclass
class Comments:
    """The leading comment of everything in a file, by its path in the descriptor."""

    file: FileDescriptorProto
    _by_path: dict[tuple[int, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for location in self.file.source_code_info.location:
            text = location.leading_comments or location.trailing_comments
            lines = [line.removeprefix(" ") for line in text.splitlines()]
            self._by_path[tuple(location.path)] = "\n".join(lines).strip()

    def at(self, *path: int) -> str:
        """The comment, or ``""``."""
        return self._by_path.get(path, "")


def api_index(files: Iterable[FileDescriptorProto]) -> str:
    """The list of services and methods."""
    lines = [
        "# API", "",
        "The package is `virtd.v1`. Besides it, the daemon serves `google.longrunning.Operations`,",
        "`grpc.health.v1.Health` and server reflection. Every method answers an error with a `google.rpc.Status`;",
        "[](../errors.md) lists the reasons.", "",
    ]  # fmt: skip
    for file in files:
        comments = Comments(file)
        for number, service in enumerate(file.service):
            lines += [f"## [{service.name}](#{anchor(service.name)})", "", comments.at(_SERVICES, number), ""]
            lines += ["| method | |", "|---|---|"]
            for index, method in enumerate(service.method):
                text = cell(first_sentence(comments.at(_SERVICES, number, _METHODS, index)))
                lines.append(f"| [`{method.name}`](#{anchor(service.name, method.name)}) | {text} |")
            lines.append("")
    listed = "\n".join(stem_of(file.name) for file in files)
    return "\n".join([*lines, "```{toctree}", ":hidden:", "", listed, "```", ""])


def api_page(file: FileDescriptorProto) -> str:
    """Services, messages and enums of one file."""
    comments = Comments(file)
    package = file.source_code_info.location
    title = next((c.leading_comments.strip() for c in package if tuple(c.path) == (2,) and c.leading_comments), "")
    lines = [f"# {file.name}", "", title, ""]
    for number, service in enumerate(file.service):
        lines += service_part(service, comments, number)
    for number, message in enumerate(file.message_type):
        lines += message_part(message, comments, (_MESSAGES, number), message.name)
    for number, enum in enumerate(file.enum_type):
        lines += enum_part(enum, comments, (_ENUMS, number), enum.name)
    return "\n".join(lines)


def service_part(service: ServiceDescriptorProto, comments: Comments, number: int) -> Iterator[str]:
    """A service and its methods."""
    yield from (f"({anchor(service.name)})=", f"## service {service.name}", "", comments.at(_SERVICES, number), "")
    for index, method in enumerate(service.method):
        asks = ("stream " if method.client_streaming else "") + type_link(method.input_type)
        answers = ("stream " if method.server_streaming else "") + type_link(method.output_type)
        yield from (f"({anchor(service.name, method.name)})=", f"### {service.name}.{method.name}", "")
        yield from (comments.at(_SERVICES, number, _METHODS, index), "")
        yield from (f"Takes {asks}, returns {answers}.", "")


def message_part(message: DescriptorProto, comments: Comments, path: tuple[int, ...], name: str) -> Iterator[str]:
    """A message, its fields, and what is nested in it."""
    yield from (f"({anchor(name)})=", f"## {name}", "", comments.at(*path), "")
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    if message.field:
        yield from ("| field | type | |", "|---|---|---|")
    for index, entry in enumerate(message.field):
        text = cell(comments.at(*path, _FIELDS, index))
        if entry.HasField("oneof_index") and not entry.proto3_optional:
            text = f"One of `{message.oneof_decl[entry.oneof_index].name}`. {text}"
        yield f"| `{entry.name}` | {field_type(entry, maps)} | {text} |"
    yield ""
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from message_part(nested, comments, (*path, _NESTED, index), f"{name}.{nested.name}")
    for index, enum in enumerate(message.enum_type):
        yield from enum_part(enum, comments, (*path, _NESTED_ENUMS, index), f"{name}.{enum.name}")


def enum_part(enum: EnumDescriptorProto, comments: Comments, path: tuple[int, ...], name: str) -> Iterator[str]:
    """An enum and its values."""
    yield from (
        f"({anchor(name)})=",
        f"## enum {name}",
        "",
        comments.at(*path),
        "",
        "| value | number | |",
        "|---|---|---|",
    )
    for index, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {cell(comments.at(*path, _VALUES, index))} |"
    yield ""


def field_type(entry: FieldDescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
    """The type of a field as a link where it is one of ours."""
    inner = maps.get(entry.type_name.rpartition(".")[2]) if entry.type_name else None
    if inner is not None:
        return f"map of {field_type(inner.field[0], {})} to {field_type(inner.field[1], {})}"
    named = type_link(entry.type_name) if entry.type_name else _SCALARS[entry.type]
    if entry.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {named}"
    return f"optional {named}" if entry.proto3_optional else named


def type_link(name: str) -> str:
    """A Markdown link to a message or enum of ours; a literal for anybody else's."""
    if name.startswith(PACKAGE):
        short = name.removeprefix(PACKAGE)
        return f"[{short}](#{anchor(short)})"
    return f"`{name.removeprefix('.')}`"


def anchor(*parts: str) -> str:
    """The label of a service, method, message or enum."""
    return "api-" + "-".join(parts).replace(".", "-").lower()


def first_sentence(text: str) -> str:
    """Up to the first full stop."""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def cell(text: str) -> str:
    """``text`` as a table cell: one line, no column breaks."""
    return " ".join(text.split()).replace("|", "\\|")


# ------------------------------------------------------------------------------------------ others


def errors_page() -> str:
    """Every reason, its code, and what to do next."""
    lines = [
        "# Errors", "",
        "Every error is a `google.rpc.Status` with an `ErrorInfo`: its `domain` is `virtd`, its `reason` one of these.",
        "Programs branch on the code and the reason, never on the message. Reasons are never renamed or reused.",
        "What the hypervisor itself said is attached as `native_call`, `native_code` and `native_message`.", "",
    ]  # fmt: skip
    for reason in errors.catalogue().values():
        lines += [f"(reason-{reason.name.lower().replace('_', '-')})=", f"## {reason.name}", ""]
        lines += [
            f"`{code_pb2.Code.Name(status.CODES[reason.kind])}`. {reason.summary}",
            "",
            f"What to do: {reason.remedy}",
            "",
        ]
    return "\n".join(lines)


def metrics_page() -> str:
    """Every metric."""
    lines = [
        "# Metrics", "",
        "With [`metrics.listen`](#config-metrics-listen), Prometheus reads `http://ADDRESS/metrics`. What is not known",
        "is left out, and never zero. Besides these come the usual `process_*` metrics.", "",
        "| metric | type | labels | |", "|---|---|---|---|",
    ]  # fmt: skip
    for entry in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in entry.labels)
        lines.append(f"| `{entry.name}` | {entry.type} | {labels} | {cell(entry.help)} |")
    return "\n".join([*lines, ""])


def capabilities_page() -> str:
    """Every capability that a host can have."""
    lines = [
        "# Capabilities", "",
        "`guestctl capabilities HOST` says of each one whether the host has it (NATIVE, EMULATED, PARTIAL,",
        "UNSUPPORTED, UNKNOWN), how virtd knows (DECLARED by the backend, PROBED on the host, VERIFIED by the",
        "conformance kit), and why not. A call that needs one that is missing fails with",
        "CAPABILITY_UNSUPPORTED before anything is done.", "",
        "| id | | facet of the backend |", "|---|---|---|",
    ]  # fmt: skip
    for id_, summary in SUMMARIES.items():
        facet = f"`{FACET_OF[id_]}`" if id_ in FACET_OF else ""
        lines.append(f"| `{id_}` | {summary} | {facet} |")
    return "\n".join([*lines, ""])


def spi_modules() -> list[str]:
    """The modules that a backend implements: level 0, then one for each area of optional abilities."""
    folder = Path(backend.__file__).parent
    return ["virtd.backend.api", *sorted(f"virtd.backend.{path.stem}" for path in folder.glob("facets_*.py"))]


def module_page(title: str, *modules: str) -> str:
    """A page with the documentation of Python modules, in the order of their source."""
    lines = [f"# {title}", ""]
    for module in modules:
        if len(modules) > 1:
            lines += [f"## {module.rpartition('.')[2].replace('facets_', 'Facets: ')}", ""]
        lines += ["```{eval-rst}", f".. automodule:: {module}", "   :members:", "   :undoc-members:", "```", ""]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- guestctl


def guestctl_page() -> str:
    """Every command of guestctl, with its help as it is printed."""
    lines = ["# guestctl", "", "Every command as `--help` prints it; the global options go with each.", ""]
    for name, command in commands():
        with command.make_context(name, [], resilient_parsing=True) as context:
            context.info_name = name
            text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        # Of the global options once, at the top.
        text = text.partition("\n\nGlobal options:")[0] if name != "guestctl" else text
        lines += [f"## {name}", "", "```text", text, "```", ""]
    return "\n".join(lines)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups before what is in them."""
    from virtd.cli.ctl.app import cli

    def below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name)
            for inner in command.list_commands(context):
                found = command.get_command(context, inner)
                assert found is not None
                yield from below(f"{name} {inner}", found)

    yield from below("guestctl", cli)
