"""The grammar: every command is there, says what it does, and loads only what it needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from virtd.cli.ctl import kinds
from virtd.cli.ctl.app import ENTRIES, SYNONYMS, cli
from virtd.cli.ctl.lazy import GlobalOption, global_options
from virtd.cli.guestctl import run

VERBS = frozenset(
    {"get", "describe", "create", "start", "shutdown", "stop", "reboot", "reset", "pause", "resume", "suspend"}
    | {"delete", "adopt", "snapshot", "console", "screenshot", "exec", "events", "operations", "wait", "hosts", "host"}
    | {"capabilities", "version", "completion", "config"}
)


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None, (*path, name)
            yield from leaves(below, (*path, name))
    else:
        yield path, command


LEAVES = dict(leaves(cli))


def test_the_promised_commands_are_there() -> None:
    assert set(ENTRIES) >= VERBS
    assert set(SYNONYMS.values()) <= set(ENTRIES)
    assert not set(SYNONYMS) & set(ENTRIES)
    for group, names in {
        "snapshot": "create list revert delete describe",
        "operations": "list get watch cancel",
        "host": "add remove probe",
        "config": "get-contexts use-context set-context current-context",
    }.items():
        assert {(group, name) for name in names.split()} <= set(LEAVES)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_has_help_and_takes_the_global_options(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = LEAVES[path]
    assert command.help
    own = {opt for param in command.params if not isinstance(param, GlobalOption) for opt in param.opts}
    found = {opt for param in command.params for opt in param.opts}
    if path != ("completion",) or found:
        wanted = {opt for option in global_options() for opt in option.opts}
        assert wanted <= found | own
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert all(option.help for option in options), [option.name for option in options if not option.help]
    assert run([*path, "--help"]) == 0
    shown = capsys.readouterr()
    assert "Usage: guestctl " + " ".join(path) in shown.out
    assert shown.err == ""


def test_the_words_of_types_are_not_ambiguous() -> None:
    words = [word for kind in kinds.GETTABLE for word in (kind.plural, *kind.aliases)]
    assert len(words) == len(set(words))
    for kind in kinds.ALL:
        keys = [column.key for column in kind.columns]
        assert len(keys) == len(set(keys)), kind.plural
        kind.load()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gte"], "there is no command 'gte'; did you mean 'get'?"),
        (["get", "gests"], "there is no type 'gests'; did you mean 'guests'?"),
        (["get"], "TYPE"),
        (["get", "guests", "--hots", "a"], "--hots"),
        (["snapshot", "crate"], "there is no command 'crate'; did you mean 'create'?"),
        (["get", "guests", "-o", "jason"], "'jason' is not one of table, wide, json"),
        (["get", "guests", "--timeout", "soon"], "'soon' is not a duration"),
        (["get", "pools", "-w"], "pools cannot be watched"),
        (["get", "guests", "--pool", "x"], "--pool is for volumes"),
        (["get", "guests", "a", "--filter", "x"], "do not go together"),
        (["create", "guest", "a", "--host", "h"], "--memory is missing"),
        (["create", "guest", "--memory", "1G"], "NAME is missing"),
        (["create", "-f", "x.yaml", "--vcpus", "2"], "--vcpus does not go with -f"),
        (["create", "guest", "a", "--host", "h", "--memory", "lots"], "'lots' is not a size"),
        (["create", "guest", "a", "--host", "h", "--memory", "1G", "--vcpus", "0"], "--vcpus"),
        (["create", "guest", "a", "--host", "h", "--memory", "1G", "--cmdline", "x"], "need --kernel"),
        (["create", "gest", "a"], "there is no command 'gest'; did you mean 'guest'?"),
        (["create"], "create"),
        (["start"], "GUEST..."),
        (["wait", "a"], "--for"),
        (["wait", "a", "--for", "ready"], "ready"),
        (["events", "--once"], "--once needs --since"),
        (["snapshot", "revert", "--host", "h", "one"], "which guest's snapshot 'one'?"),
        (["snapshot", "revert", "--host", "h", "a", "b", "c"], "what is 'c'?"),
        (["console", "h/a", "--until", "("], "--until '('"),
        (["exec", "h/a"], "COMMAND"),
        (["label", "h/a", "x"], "'x' is neither KEY=VALUE nor KEY-"),
        (["--target", "nonsense", "get", "guests"], "expected unix:PATH or HOST:PORT"),
        (["--target", "example.org:1", "get", "guests"], "speaks no TLS yet"),
        (["--context", "nowhere", "get", "guests"], "there is no context 'nowhere'"),
        (["start", "a/b/c/d"], "is not the name of a guest: write host/guest or hosts/{host}/guests/{guest}"),
        (["start", "hosts/a/guests/b", "--host", "c"], "is not on host c"),
        (["start", ""], "the name of the guest is empty"),
    ],
)
def test_a_wrong_command_line_is_2_and_explained(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    # Nobody listens there: a usage error must come before any call.
    monkeypatch.setenv("VIRTD_TARGET", f"unix:{tmp_path}/none")
    code = run(arguments)
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert said in shown.err


def test_a_defect_is_no_traceback_unless_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("virtd.cli.ctl.session.Session.client", broken)
    assert run(["hosts"]) == 1
    assert "error: a defect in guestctl: ZeroDivisionError: oh\nreason: INTERNAL_ERROR" in capsys.readouterr().err
    assert run(["hosts", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def imported(*arguments: str) -> set[str]:
    program = (
        "import sys; sys.argv[0] = 'guestctl'; from virtd.cli.guestctl import run; code = run(sys.argv[1:]);"
        "print('\\nMODULES', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["version", "--client"], {"grpc", "google.protobuf", "rich", "yaml", "asyncio", "virtd_client", "tomllib"}),
        (["--help"], {"grpc", "google.protobuf", "rich", "yaml", "virtd_client", "virtd.cli.ctl.cmd_get"}),
        (["start", "--help"], {"grpc", "rich", "yaml", "virtd.cli.ctl.cmd_get"}),
        (["completion", "bash"], {"grpc", "rich", "yaml"}),
        # grpc itself imports grpc.aio; nothing of ours does.
        (["version", "--target", "unix:/nonexistent"], {"rich", "yaml", "virtd_client._async"}),
        (["get", "guests", "--target", "unix:/nonexistent"], {"rich", "yaml", "google.protobuf.json_format"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_command_imports_no_more_than_it_needs(arguments: list[str], forbidden: set[str]) -> None:
    assert imported(*arguments) & forbidden == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_GUESTCTL_COMPLETE" in capsys.readouterr().out
