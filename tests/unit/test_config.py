"""Finding, reading, checking and completing the configuration."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtd.config import Config, Embedded, HostEntry, LogLevel, Surroundings, TcpAddress, load
from virtd.config.loader import MAX_BYTES, line_of
from virtd.errors import CONFIG_INVALID, FieldViolation, InvalidArgumentError

ROOT = Surroundings(environ={"HOME": "/root"}, uid=0)
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writer(text: str) -> Path:
        path = tmp_path / "virtd.toml"
        path.write_text(text)
        return path

    return writer


def violations(path: Path | None, **overrides: object) -> tuple[FieldViolation, ...]:
    with pytest.raises(InvalidArgumentError) as caught:
        load(path, surroundings=ROOT, overrides={key.replace("__", "."): value for key, value in overrides.items()})
    assert caught.value.reason is CONFIG_INVALID
    return caught.value.record.violations


# --------------------------------------------------------------------------------------- defaults


def test_root_works_without_a_file() -> None:
    config = load(None, surroundings=ROOT)
    assert config.source is None
    assert config.server.socket == Path("/run/virtd/virtd.sock")
    assert config.server.socket_mode == 0o660
    assert config.state.directory == Path("/var/lib/virtd")
    assert config.discovery.embedded is Embedded.AUTO
    assert config.server.tcp_listen is None
    assert config.metrics.listen is None


def test_a_user_works_without_a_file() -> None:
    user = Surroundings(environ={"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7"}, uid=7)
    config = load(None, surroundings=user)
    assert config.state.directory == Path("/home/u/.local/state/virtd")
    assert config.server.socket == Path("/run/user/7/virtd/virtd.sock")
    assert config.server.socket_mode == 0o600


def test_a_user_without_a_runtime_directory_gets_one_under_the_state() -> None:
    user = Surroundings(environ={"HOME": "/home/u", "XDG_STATE_HOME": "/s"}, uid=7)
    assert load(None, surroundings=user).state.runtime_directory == Path("/s/virtd/run")


def test_relative_base_directories_are_ignored_as_xdg_demands() -> None:
    user = Surroundings(environ={"HOME": "/home/u", "XDG_STATE_HOME": "s", "XDG_RUNTIME_DIR": "r"}, uid=7)
    state = load(None, surroundings=user).state
    assert state.directory == Path("/home/u/.local/state/virtd")
    assert state.runtime_directory == state.directory / "run"


def test_a_state_directory_of_its_own_brings_sockets_of_its_own(write: Write) -> None:
    config = load(write('state.directory = "/srv/v"'), surroundings=ROOT)
    assert config.server.socket == Path("/srv/v/run/virtd.sock")


def test_no_file_and_an_empty_file_mean_the_same(write: Write) -> None:
    empty = load(write("# nothing\n"), surroundings=ROOT)
    # A file that says one harmless thing goes through the whole check, which must not change other defaults.
    checked = load(write("[inventory]\nresync_s = 60.0\n"), surroundings=ROOT)
    bare = load(None, surroundings=ROOT)
    assert dataclasses.replace(empty, source=None) == bare
    assert dataclasses.replace(checked, source=None) == bare


# ---------------------------------------------------------------------------------------- finding


def test_which_file_is_read(tmp_path: Path) -> None:
    home = tmp_path / "home"
    usual = home / ".config/virtd/virtd.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text("log.level = 'debug'")
    named = tmp_path / "named.toml"
    named.write_text("log.level = 'error'")
    given_path = tmp_path / "given.toml"
    given_path.write_text("log.level = 'warning'")
    bare = Surroundings(environ={"HOME": str(home)}, uid=7)
    with_variable = Surroundings(environ={"HOME": str(home), "VIRTD_CONFIG": str(named)}, uid=7)
    assert load(surroundings=bare).log.level is LogLevel.DEBUG
    assert load(surroundings=with_variable).log.level is LogLevel.ERROR
    assert load(given_path, surroundings=with_variable).log.level is LogLevel.WARNING


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_named_file_must_exist(tmp_path: Path, how: str) -> None:
    missing = tmp_path / "no.toml"
    argument = missing if how == "argument" else None
    environ = {"VIRTD_CONFIG": str(missing)} if how == "variable" else {}
    with pytest.raises(InvalidArgumentError, match=r"no\.toml: cannot be read: No such file"):
        load(argument, surroundings=Surroundings(environ=environ, uid=0))


def test_a_dangling_link_is_not_an_absent_file(tmp_path: Path) -> None:
    place = tmp_path / "virtd/virtd.toml"
    place.parent.mkdir()
    place.symlink_to(tmp_path / "gone")
    user = Surroundings(environ={"HOME": "/x", "XDG_CONFIG_HOME": str(tmp_path)}, uid=7)
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        load(surroundings=user)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[server\n", r"is not valid TOML: .*line 1"),
        (b"a = 1\na = 2\n", r"is not valid TOML: .*line 2"),
        (b"a = 1\n\xff\n", r"line 2: is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "is larger than"),
        (b"a = " + b"[" * 100_000, "is not valid TOML"),
    ],
)
def test_what_is_no_configuration_is_said_so(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "virtd.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=message):
        load(path, surroundings=ROOT)


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        load(tmp_path, surroundings=ROOT)


# --------------------------------------------------------------------------------------- checking


def test_unknown_options_are_named_with_line_and_a_proposal(write: Write) -> None:
    path = write("[log]\nlevel = 'info'\n\n[server]\nsokcet = '/x'\n")
    (violation,) = violations(path)
    assert violation.field == "server.sokcet"
    assert violation.description == f"{path}, line 5: unknown option; did you mean 'socket'?"
    assert violation.alternatives == ("socket",)


def test_unknown_tables_and_options_of_hosts_are_found(write: Write) -> None:
    path = write('[hosts.a]\nuri = "qemu:///system"\nworkrs = 3\n\n[sevrer]\nsocket = "/x"\n')
    by_field = {violation.field: violation for violation in violations(path)}
    assert set(by_field) == {"hosts.a.workrs", "sevrer"}
    assert "line 3" in by_field["hosts.a.workrs"].description
    assert by_field["hosts.a.workrs"].alternatives == ("workers",)
    assert by_field["sevrer"].alternatives == ("server",)


def test_nothing_similar_lists_what_there_is(write: Write) -> None:
    (violation,) = violations(write("[plugins]\nzzz = 1\n"))
    assert "known in [plugins]: block" in violation.description


def test_every_defect_is_told_at_once(write: Write) -> None:
    path = write('[log]\nlevel = "loud"\n[inventory]\nresync_s = 0\n[metrics]\ninterval_s = "5"\n')
    assert [found.field for found in violations(path)] == ["metrics.interval_s", "inventory.resync_s", "log.level"]


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("[log]\nlevel = 'loud'", "log.level", "must be 'debug', 'info', 'warning' or 'error'"),
        ("[inventory]\nresync_s = 0", "inventory.resync_s", "must be greater than 0"),
        ("[inventory]\nresync_s = inf", "inventory.resync_s", "finite"),
        ("[inventory]\nresync_s = nan", "inventory.resync_s", "must be"),
        ("[inventory]\nresync_s = true", "inventory.resync_s", "must be a valid number"),
        ("[operations]\nmax_parallel = 1.5", "operations.max_parallel", "integer"),
        ("[operations]\nmax_parallel = 0", "operations.max_parallel", "greater than or equal to 1"),
        ("[operations]\nmax_parallel = 99999999999999999999999", "operations.max_parallel", "less than or equal"),
        ("[operations.timeouts_s]\n'Create It' = 5", "operations.timeouts_s.Create It", "verb"),
        ("[server]\nsocket = 'virtd.sock'", "server.socket", "absolute"),
        ("[server]\nsocket = '/a\\nb'\n[state]\ndirectory = \"/a\\u0000b\"", "state.directory", "control characters"),
        (f"[server]\nsocket = '/{'a' * 110}'", "server.socket", "longer than 107 bytes"),
        ("[server]\nsocket_mode = 660", "server.socket_mode", 'for example "0660"'),
        ("[server]\nsocket_mode = '0666'", "server.socket_mode", "last digit must be 0"),
        ("[server]\nsocket_mode = '0999'", "server.socket_mode", "octal"),
        ("[server]\nsocket_owner = 'nobody-of-this-name'", "server.socket_owner", "no user"),
        ("[server]\nsocket_group = 'no-group-of-this-name'", "server.socket_group", "no group"),
        ("server = 5", "server", "must be a table"),
        ("[hosts.a]", "hosts.a.uri", "is required"),
        ("[hosts.a]\nuri = 'system'", "hosts.a.uri", "must be a URI"),
        ("[hosts.a]\nuri = 'qemu+ssh://u:secret@h/system'", "hosts.a.uri", "must not hold a password"),
        ("[hosts.a]\nuri = 'qemu:///system'\noptions = { x = 1 }", "hosts.a.options.x", "must be a valid string"),
        ("[hosts.'A/b']\nuri = 'qemu:///system'", "hosts.A/b", "a host's id is"),
        ("[hosts.-]\nuri = 'qemu:///system'", "hosts.-", "a host's id is"),
        ("[storage]\nallowed_directories = ['/']", "storage.allowed_directories.0", "root directory"),
        ("[storage]\nallowed_directories = ['/x', 'y']", "storage.allowed_directories.1", "absolute"),
        ("[tracing]\nendpoint = 'collector'", "tracing.endpoint", "OTLP"),
        ("[tracing]\nsample = 1.1", "tracing.sample", "less than or equal to 1"),
    ],
)
def test_bad_values(write: Write, text: str, field: str, message: str) -> None:
    found = {violation.field: violation.description for violation in violations(write(text))}
    assert message in found[field]
    assert "line " in found[field]


def test_a_password_is_not_repeated_in_the_error(write: Write) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        load(write("[hosts.a]\nuri = 'qemu+ssh://u:hunter2@h/system'"), surroundings=ROOT)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.record)


# -------------------------------------------------------------------------------------------- TCP


def test_tcp_without_tls_wants_insecure(write: Write) -> None:
    (violation,) = violations(write("[server]\ntcp_listen = '127.0.0.1:7443'\n"))
    assert violation.field == "server.tcp_listen"
    assert "needs insecure = true" in violation.description
    assert "line 2" in violation.description


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:7443", TcpAddress("127.0.0.1", 7443)),
        ("127.9.9.9:0", TcpAddress("127.9.9.9", 0)),
        ("localhost:1", TcpAddress("127.0.0.1", 1)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
    ],
)
def test_loopback_is_accepted_with_insecure(listen: str, address: TcpAddress) -> None:
    config = load(overrides={"server.tcp_listen": listen, "server.insecure": True}, surroundings=ROOT)
    assert config.server.tcp_listen == address


@pytest.mark.parametrize(
    "listen",
    ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1", "host.example:1", "127.0.0.1", "127.0.0.1:x", ":1",
     "127.0.0.1:65536", "127.0.0.1:-1", "", "127.0.0.1:\u0661"],
)  # fmt: skip
def test_anything_else_is_refused_even_so(listen: str) -> None:
    (violation,) = violations(None, server__tcp_listen=listen, server__insecure=True)
    assert violation.field == "server.tcp_listen"
    assert violation.description.startswith("on the command line: ")
    (violation,) = violations(None, metrics__listen=listen)
    assert violation.field == "metrics.listen"


# ----------------------------------------------------------------------------- overrides and values


def test_the_command_line_goes_before_the_file(write: Write) -> None:
    path = write("[log]\nlevel = 'error'\nformat = 'json'\n")
    config = load(path, overrides={"log.level": "debug"}, surroundings=ROOT)
    assert config.log.level is LogLevel.DEBUG
    assert config.log.format.value == "json"


def test_an_override_below_a_value_that_is_no_table_is_reported(write: Write) -> None:
    assert [found.field for found in violations(write("log = 1"), log__level="debug")] == ["log"]


def test_hosts_become_plain_values(write: Write) -> None:
    path = write('[hosts.lab]\nuri = "qemu+ssh://me@lab/system"\nlabels = { site = "a" }\nworkers = 2\n')
    (host,) = load(path, surroundings=ROOT).hosts
    assert host == HostEntry(id="lab", uri="qemu+ssh://me@lab/system", labels={"site": "a"}, workers=2)


def test_the_result_cannot_be_changed(write: Write) -> None:
    config = load(write('[hosts.a]\nuri = "test:///default"\nlabels = { a = "b" }\n[operations.timeouts_s]\na = 1'))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.log.level = LogLevel.DEBUG  # type: ignore[misc] # that is what is tested
    for mapping in (config.hosts[0].labels, config.hosts[0].options, config.operations.timeouts_s):
        with pytest.raises(TypeError):
            mapping["x"] = "y"  # type: ignore[index] # that is what is tested


def test_timeouts_by_verb(write: Write) -> None:
    operations = load(write("[operations]\ndefault_timeout_s = 9\ntimeouts_s = { create = 5 }")).operations
    assert (operations.timeout_for("create"), operations.timeout_for("start")) == (5, 9)


def test_allowed_directories_are_resolved(write: Write, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    state = tmp_path / "state"
    config = load(
        write(f"[state]\ndirectory = '{state}'\n[storage]\nallowed_directories = ['{link}', '{link}/../real']\n"),
        surroundings=ROOT,
    )
    assert config.storage.allowed_directories == (real,)


def test_by_default_the_import_directory_is_allowed() -> None:
    config = load(overrides={"state.directory": "/s"}, surroundings=ROOT)
    assert config.storage.allowed_directories == (Path("/s/import"),)


def test_no_file_of_the_host_can_be_allowed(write: Write) -> None:
    assert load(write("[storage]\nallowed_directories = []"), surroundings=ROOT).storage.allowed_directories == ()


def test_home_is_expanded_and_paths_are_normal() -> None:
    config = load(overrides={"state.directory": "~/v/../w/"}, surroundings=ROOT)
    assert config.state.directory == Path("/root/w")


def test_owner_and_group_by_number_and_name() -> None:
    server = load(overrides={"server.socket_owner": "root", "server.socket_group": "12"}, surroundings=ROOT).server
    assert (server.socket_owner, server.socket_group) == (0, 12)


def test_loading_touches_nothing(tmp_path: Path) -> None:
    load(overrides={"state.directory": str(tmp_path / "state")}, surroundings=ROOT)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------- line_of


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\n\n# b = 2\nb = 2\n", ("b",), 4),
        ("[t]\nx = [\n 1,\n 2,\n]\ny = 1\n", ("t", "x"), 2),
        ("[t]\nx = [\n 1,\n 2,\n]\ny = 1\n", ("t", "y"), 6),
        ("s = '''\n[t]\nx = 1\n'''\n[t]\nx = 2\n", ("t", "x"), 6),
        ("t.u.v = 1\n", ("t", "u", "v"), 1),
        ("[[a]]\nx = 1\n[[a]]\nx = 2\n", ("a", "1", "x"), 4),
        ("a = 1\n", ("b",), None),
    ],
)
def test_line_of(text: str, path: tuple[str, ...], line: int | None) -> None:
    assert line_of(text, path) == line


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.integers() | st.booleans() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=5,
    )
)
def test_any_document_gives_a_configuration_or_a_contract_error(document: dict[str, object]) -> None:
    overrides = {f"log.{key.replace('.', '')}": value for key, value in document.items()}
    try:
        assert isinstance(load(overrides=overrides, surroundings=ROOT), Config)
    except InvalidArgumentError as refused:
        error = refused
    else:
        return
    assert error.reason is CONFIG_INVALID
    assert error.record.violations


# ------------------------------------------------------------------------------------- boundaries


def test_configuration_needs_neither_grpc_nor_pydantic_for_its_values() -> None:
    code = (
        "import sys, virtd.config; virtd.config.load()\n"
        "print([name for name in ('grpc', 'google.protobuf', 'pydantic') if name in sys.modules])"
    )
    environ = {key: value for key, value in os.environ.items() if key not in {"VIRTD_CONFIG", "XDG_CONFIG_HOME"}}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.strip() == "[]"


def test_tomllib_is_what_we_think_it_is() -> None:
    # _parse relies on the position being part of the message.
    with pytest.raises(tomllib.TOMLDecodeError, match="line 1"):
        tomllib.loads("=")
