"""Everything that there is, is documented; and everything that the documentation names, is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Protocol

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import Default
from google.rpc import code_pb2

from docs import generate
from tests.tools.console import blocks
from virtd import errors
from virtd.backend import api, capabilities, hookspecs
from virtd.cli.ctl.exits import Exit
from virtd.config import reference
from virtd.model.guest import StopPolicy
from virtd.model.migration import MigrationReason
from virtd.obs.metrics import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)])
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation; a warning of Sphinx is a failure here."""
    output = tmp_path_factory.mktemp("docs")
    # A process of its own: Sphinx changes much that is global.
    done = subprocess.run(
        [sys.executable, str(DOCS / "build.py"), str(output)], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return output


def page(site: Path, name: str) -> str:
    return unescape((site / "html" / f"{name}.html").read_text())


def descriptors() -> list[FileDescriptor]:
    names = [f"virtd/v1/{path.stem}.proto" for path in (ROOT / "proto/virtd/v1").glob("*.proto")]
    for name in names:
        importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    return [Default().FindFileByName(name) for name in names]


# ------------------------------------------------------------------------- what is there is documented


def test_every_method(site: Path) -> None:
    index = page(site, "reference/api/index")
    services = [service for file in descriptors() for service in file.services_by_name.values()]
    assert len(services) >= 12
    for service in services:
        for method in service.methods:
            assert f'href="{generate.stem_of(method.containing_service.file.name)}.html#' in index
            assert f">{method.name}<" in index, method.full_name


def test_every_message_field_and_enum_value(site: Path) -> None:
    for file in descriptors():
        text = page(site, f"reference/api/{generate.stem_of(file.name)}")
        for message in file.message_types_by_name.values():
            assert f"<h2>{message.name}<" in text, message.full_name
            for field in message.fields:
                assert f">{field.name}<" in text, field.full_name
        for enum in file.enum_types_by_name.values():
            for value in enum.values:
                assert f">{value.name}<" in text, value.name


def test_nothing_of_the_api_is_without_a_word() -> None:
    for file in generate.descriptors():
        comments = generate.Comments(file)
        for number, message in enumerate(file.message_type):
            assert comments.at(4, number), message.name
            for index, field in enumerate(message.field):
                assert comments.at(4, number, 2, index), f"{message.name}.{field.name}"
        for number, service in enumerate(file.service):
            for index, method in enumerate(service.method):
                assert comments.at(6, number, 2, index), f"{service.name}.{method.name}"
        for number, enum in enumerate(file.enum_type):
            for index, value in enumerate(enum.value):
                assert comments.at(5, number, 2, index), value.name


def test_every_reason(site: Path) -> None:
    text = page(site, "reference/errors")
    for reason in errors.catalogue().values():
        assert f"<h2>{reason.name}<" in text
        assert reason.remedy[:20].replace("`", "") in re.sub(r"<[^>]+>", "", text), reason.name


def test_every_option(site: Path) -> None:
    text = page(site, "reference/configuration")
    for table in reference.tables():
        for option in table.options:
            assert f">{option.path}<" in text, option.path


def test_every_metric(site: Path) -> None:
    text = page(site, "reference/metrics")
    for entry in CATALOGUE:
        assert f">{entry.name}<" in text, entry.name


def test_every_capability(site: Path) -> None:
    text = page(site, "reference/capability-ids")
    for id_ in capabilities.SUMMARIES:
        assert f">{id_}<" in text, id_


def test_every_hook(site: Path) -> None:
    text = page(site, "reference/hooks")
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")]
    assert len(hooks) >= 3
    for name in hooks:
        assert f'id="virtd.backend.hookspecs.{name}"' in text, name
        assert len(inspect.getdoc(getattr(hookspecs, name)) or "") > 40, name


def test_every_call_of_a_backend(site: Path) -> None:
    text = page(site, "reference/spi")
    protocols = [
        value for value in vars(api).values()
        if inspect.isclass(value) and Protocol in value.__bases__ and value.__module__ in generate.spi_modules()
    ]  # fmt: skip
    assert len(protocols) >= 10
    for protocol in protocols:
        for name, member in vars(protocol).items():
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                full = f"{protocol.__module__}.{protocol.__name__}.{name}"
                assert f'id="{full}"' in text, full
                assert inspect.getdoc(member), f"{protocol.__name__}.{name}"


def test_every_command(site: Path) -> None:
    text = page(site, "reference/guestctl")
    found = list(generate.commands())
    assert len(found) >= 80
    for name, command in found:
        assert f"<h2>{name}<" in text, name
        assert command.help or name == "guestctl", f"{name} has no help"


def test_every_exit_code() -> None:
    text = (DOCS / "reference/exit-codes.md").read_text()
    for code in Exit:
        assert re.search(rf"(?<!\d){code.value}(?!\d)", text), code


# ---------------------------------------------------------------------- what is documented is there


def test_reasons_that_the_api_names_exist() -> None:
    known = {*errors.catalogue(), *code_pb2.Code.keys(), *StopPolicy}
    known |= set(MigrationReason)
    for file in descriptors():
        for enum in file.enum_types_by_name.values():
            known |= {value.name for value in enum.values}
            # Comments use the short names as well: STOPPED for GUEST_STATE_STOPPED.
            prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper() + "_"
            known |= {value.name.removeprefix(prefix) for value in enum.values}
    for file in sorted((ROOT / "proto/virtd/v1").glob("*.proto")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            comment = line.partition("//")[2]
            for word in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", comment):
                assert word in known, f"{file.name}, line {number}: {word}"


SECTIONS = "|".join(table.name.removesuffix(".NAME") for table in reference.tables())
OPTIONS = {option.path for table in reference.tables() for option in table.options}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_that_a_page_names_exist(path: Path) -> None:
    for option in re.findall(rf"`((?:{SECTIONS})\.[a-z_]+)`", path.read_text()):
        assert option in OPTIONS, option


def test_options_that_an_error_names_exist() -> None:
    for reason in errors.catalogue().values():
        for option in re.findall(rf"`((?:{SECTIONS})\.[a-z_]+)`", reason.remedy):
            assert option in OPTIONS, f"{reason.name}: {option}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_metrics_that_a_page_names_exist(path: Path) -> None:
    known = {entry.name for entry in CATALOGUE}
    packages = {found.name for found in ROOT.glob("backends/*/virtd_*")}
    for name in re.findall(r"\bvirtd_[a-z_]+(?=\b)", path.read_text()):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        looks_like_one = any(name.startswith(entry.rsplit("_", 2)[0]) for entry in known)
        if looks_like_one and name not in {"virtd_register_backends", "virtd_client", "virtd_mine", *packages}:
            assert name in known or base in known, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
        # Pages of the reference are made by the build, which checks links to them.
        if not target.startswith(("http://", "https://")) and "reference/" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_of_a_page_compiles_and_imports_what_exists(path: Path) -> None:
    lines = path.read_text().splitlines()
    for kind, first, last in blocks(path.read_text()):
        if kind != "python":
            continue
        indent = len(lines[first]) - len(lines[first].lstrip())
        for node in ast.walk(ast.parse("\n".join(line[indent:] for line in lines[first:last]))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("virtd") and (
                not node.module.startswith("virtd_mine")
            ):  # fmt: skip
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert alias.name == "*" or hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_toml_of_the_pages_is_a_good_configuration(tmp_path: Path) -> None:
    from virtd.config import Surroundings, load

    tried = 0
    for path in PAGES:
        lines = path.read_text().splitlines()
        for kind, first, last in blocks(path.read_text()):
            text = "\n".join(line.strip() for line in lines[first:last])
            if kind == "toml" and not re.search(r"project\.entry-points|current_context", text):
                file = tmp_path / "virtd.toml"
                file.write_text(text)
                load(file, surroundings=Surroundings(environ={"HOME": "/root"}, uid=0))
                tried += 1
    assert tried >= 3


def test_every_finding_of_a_migration_is_documented() -> None:
    page_ = (DOCS / "howto/migrate.md").read_text()
    for reason in MigrationReason:
        assert f"`{reason.value}`" in page_, reason
