"""The command ``virtd``, as a process: output, exit codes, and what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Stands for the composition root: says what it was given, and ends as it is told.
FAKE_DAEMON = """
import sys, types
from virtd import errors

async def serve(config):
    print(config.server.socket, config.server.tcp_listen, config.log.level.value, sep="|")
    {body}

module = types.ModuleType("virtd.daemon")
module.serve = serve
sys.modules["virtd.daemon"] = module
from virtd.cli.daemon import main
sys.argv = ["virtd", *sys.argv[1:]]
main()
"""


def environ(tmp_path: Path) -> dict[str, str]:
    # A HOME of its own: the developer's configuration must not decide the outcome.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "VIRTD_"))}
    return {**kept, "HOME": str(tmp_path), "VIRTD_CONFIG": str(tmp_path / "virtd.toml")}


def virtd(tmp_path: Path, *arguments: str, config: str | None = "") -> subprocess.CompletedProcess[str]:
    if config is not None:
        (tmp_path / "virtd.toml").write_text(config)
    return subprocess.run(
        [sys.executable, "-m", "virtd.cli.daemon", *arguments],
        capture_output=True, text=True, env=environ(tmp_path), check=False, timeout=60,
    )  # fmt: skip


def serve(tmp_path: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "virtd.toml").write_text("")
    return subprocess.run(
        [sys.executable, "-c", FAKE_DAEMON.format(body=body), "serve", *arguments],
        capture_output=True, text=True, env=environ(tmp_path), check=False, timeout=60,
    )  # fmt: skip


def test_version(tmp_path: Path) -> None:
    from virtd import __version__

    done = virtd(tmp_path, "version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"virtd {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["serve", "--bogus"], ["serve", "--log-level", "loud"]])
def test_wrong_usage_is_2(tmp_path: Path, arguments: list[str]) -> None:
    done = virtd(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Usage: virtd" in done.stderr
    assert done.stdout == ""


def test_check_of_a_good_file(tmp_path: Path) -> None:
    done = virtd(tmp_path, "config", "check", config="[log]\nlevel = 'debug'")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/virtd.toml: good\n")


def test_check_tells_every_defect_on_a_line_of_its_own(tmp_path: Path) -> None:
    done = virtd(tmp_path, "config", "check", config="[log]\nlevle = 'debug'\n\n[metrics]\ninterval_s = 0\n")
    assert done.returncode == 2
    assert done.stdout == ""
    assert sorted(done.stderr.splitlines()) == [
        f"virtd: log.levle: {tmp_path}/virtd.toml, line 2: unknown option; did you mean 'level'?",
        f"virtd: metrics.interval_s: {tmp_path}/virtd.toml, line 5: must be greater than 0",
    ]


def test_a_missing_file_is_said_in_one_line(tmp_path: Path) -> None:
    done = virtd(tmp_path, "config", "check", "--config", "/no/such", config=None)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "virtd: /no/such: cannot be read: No such file or directory\n"


def test_show_can_be_checked_again(tmp_path: Path) -> None:
    shown = virtd(tmp_path, "config", "show", config="[operations]\nmax_parallel = 3\n")
    assert "max_parallel = 3" in shown.stdout
    again = virtd(tmp_path, "config", "show", config=shown.stdout)
    assert again.stdout == shown.stdout


def test_reference(tmp_path: Path) -> None:
    assert "### `server.socket`" in virtd(tmp_path, "config", "reference").stdout
    toml = virtd(tmp_path, "config", "reference", "--toml").stdout
    assert virtd(tmp_path, "config", "check", config=toml).returncode == 0


@pytest.mark.parametrize(("body", "code"), [("return 0", 0), ("return 1", 1)])
def test_serve_ends_with_the_daemons_code(tmp_path: Path, body: str, code: int) -> None:
    assert serve(tmp_path, body).returncode == code


def test_serve_hands_the_command_line_down(tmp_path: Path) -> None:
    done = serve(
        tmp_path, "return 0", "--state-dir", "state", "--tcp", "127.0.0.1:0", "--insecure", "--log-level", "debug"
    )
    assert done.stdout == f"{Path.cwd()}/state/run/virtd.sock|127.0.0.1:0|debug\n"


def test_serve_refuses_tcp_without_insecure(tmp_path: Path) -> None:
    done = serve(tmp_path, "return 0", "--tcp", "127.0.0.1:0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("virtd: server.tcp_listen: on the command line: TCP has no TLS yet")


def test_a_contract_error_is_one_line_with_what_to_do(tmp_path: Path) -> None:
    body = "raise errors.FailedPreconditionError(errors.STATE_DIRECTORY_LOCKED, '/s is in use by process 7')"
    done = serve(tmp_path, body)
    assert done.returncode == 1
    assert done.stderr == (
        "virtd: /s is in use by process 7. Stop the other daemon, or give this one a state directory of its own.\n"
    )


def test_an_error_of_the_system_is_one_line(tmp_path: Path) -> None:
    done = serve(tmp_path, "open('/no/such/place')")
    assert (done.returncode, done.stderr) == (1, "virtd: /no/such/place: No such file or directory\n")


def test_a_defect_shows_its_traceback(tmp_path: Path) -> None:
    done = serve(tmp_path, "raise KeyError('x')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    done = serve(tmp_path, "raise ModuleNotFoundError('No module', name='structlog.x')")
    assert done.returncode == 1
    assert (
        done.stderr
        == "virtd: structlog.x is not installed: this is a client's installation; pip install 'virtd[daemon]'\n"
    )


def test_a_reader_that_goes_away_causes_no_traceback(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -u -m virtd.cli.daemon config reference | head -c 1"
    (tmp_path / "virtd.toml").write_text("")
    done = subprocess.run(
        ["/bin/bash", "-c", command], capture_output=True, text=True, env=environ(tmp_path), check=False, timeout=60
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_help_and_version_import_little() -> None:
    code = (
        "import sys\nfrom virtd.cli import daemon\ndaemon.cli(['version'], standalone_mode=False)\n"
        "print(sorted({'grpc', 'pydantic', 'structlog', 'libvirt', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
