"""The reference that is made from the schema, and configurations written back."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtd.config import Config, HostEntry, Surroundings, load, model, reference
from virtd.config.schema import File

ROOT = Surroundings(environ={"HOME": "/root"}, uid=0)
PLAIN = {
    "server": model.ServerConfig,
    "state": model.StateConfig,
    "hosts": model.HostEntry,
    "discovery": model.DiscoveryConfig,
    "plugins": model.PluginsConfig,
    "storage": model.StorageConfig,
    "images": model.ImagesConfig,
    "operations": model.OperationsConfig,
    "events": model.EventsConfig,
    "metrics": model.MetricsConfig,
    "consoles": model.ConsolesConfig,
    "agent": model.AgentConfig,
    "trash": model.TrashConfig,
    "strategy": model.StrategyConfig,
    "inventory": model.InventoryConfig,
    "log": model.LogConfig,
    "tracing": model.TracingConfig,
}


@pytest.mark.parametrize("name", list(File.model_fields))
def test_schema_and_plain_classes_have_the_same_options(name: str) -> None:
    section = File.model_fields[name].annotation
    if get_origin(section) is dict:
        section = get_args(section)[1]
    plain = {field.name for field in dataclasses.fields(PLAIN[name])} - {"id"}
    assert set(section.model_fields) == plain


def test_every_option_says_what_it_is() -> None:
    options = [option for table in reference.tables() for option in table.options]
    assert len(options) > 30
    for table in reference.tables():
        assert table.description, table.name
    for option in options:
        assert len(option.description) > 20, option.path
        assert option.description.rstrip().endswith((".", "`)")), option.path
        assert option.default, option.path


def test_the_page_has_every_option() -> None:
    page = reference.markdown()
    for table in reference.tables():
        for option in table.options:
            assert f"### `{option.path}`" in page


def test_the_example_is_a_file_that_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "virtd.toml"
    path.write_text(reference.example())
    assert dataclasses.replace(load(path, surroundings=ROOT), source=None) == load(surroundings=ROOT)


def test_the_defaults_that_the_example_shows_are_the_defaults(tmp_path: Path) -> None:
    lines = []
    for line in reference.example().splitlines():
        bare = line.removeprefix("# ")
        name = bare.split(" = ")[0]
        shown = line.startswith("# ") and " = " in bare and name.replace("_", "").isalpha() and not bare.endswith("...")
        lines.append(bare if shown and name not in {"labels", "options", "workers", "call_timeout_s"} else line)
    text = "\n".join(lines)
    assert len(tomllib.loads(text)["operations"]) == 5
    path = tmp_path / "virtd.toml"
    path.write_text(text)
    assert dataclasses.replace(load(path, surroundings=ROOT), source=None) == load(surroundings=ROOT)


def same(left: Config, right: Config) -> bool:
    return dataclasses.replace(left, source=None) == dataclasses.replace(right, source=None)


def test_what_show_prints_loads_to_the_same(tmp_path: Path) -> None:
    path = tmp_path / "virtd.toml"
    config = load(
        overrides={
            "server.tcp_listen": "[::1]:0",
            "server.insecure": True,
            "server.socket_owner": "root",
            "metrics.listen": "127.0.0.1:9",
            "plugins.block": ["a", 'b"\\'],
            "operations.timeouts_s": {"snapshot-create": 3, "start": 0.5},
            "log.level": "debug",
        },
        surroundings=ROOT,
    )
    path.write_text(reference.to_toml(config))
    assert same(load(path, surroundings=ROOT), config)


# DEL is what JSON's escapes leave alone and TOML does not take.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\x7f"), max_size=20)


@settings(max_examples=50)
@given(st.dictionaries(TEXT, TEXT, max_size=4), st.lists(TEXT.filter(bool), max_size=3))
def test_any_text_survives_being_shown(options: dict[str, str], block: list[str]) -> None:
    config = dataclasses.replace(
        load(surroundings=ROOT),
        hosts=(HostEntry(id="a.b", uri="test:///default", options=options),),
        plugins=model.PluginsConfig(block=tuple(block)),
    )
    document = tomllib.loads(reference.to_toml(config))
    assert document["hosts"]["a.b"]["options"] == options
    assert document["plugins"]["block"] == block
