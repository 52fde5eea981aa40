"""The units for systemd: accepted by systemd where it is there, and true to what the daemon needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from virtd.config import Surroundings, load

UNITS = ("virtd.service", "virtd.socket")
# Each of these would break guests that run below the unit; virtd.service says how.
FORBIDDEN = {
    "PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy", "MemoryDenyWriteExecute", "PrivateNetwork",
    "ProtectKernelTunables", "ProtectKernelModules", "ProtectControlGroups", "PrivateMounts", "RestrictNamespaces",
    "ProtectHome", "PrivateTmp", "NoNewPrivileges", "PrivateUsers", "User", "DynamicUser", "CapabilityBoundingSet",
}  # fmt: skip
SECTIONS = {"virtd.service": ["Unit", "Service", "Install"], "virtd.socket": ["Unit", "Socket", "Install"]}


def text(name: str) -> str:
    return (files("virtd") / "data/systemd" / name).read_text()


def settings(name: str) -> dict[str, dict[str, str]]:
    """Sections and their settings; a unit of ours says nothing twice."""
    sections: dict[str, dict[str, str]] = {}
    for line in text(name).splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            current = sections.setdefault(header[1], {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            assert key not in current, line
            current[key] = value
    return sections


@pytest.mark.parametrize("name", UNITS)
def test_form(name: str) -> None:
    assert list(settings(name)) == SECTIONS[name]
    for line in text(name).splitlines():
        assert len(line) <= 120, line


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed; the other tests here check the units without it")
    for name in UNITS:
        # The command has to exist for the check.
        (tmp_path / name).write_text(text(name).replace("/usr/bin/virtd serve", "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}, timeout=60,
    )  # fmt: skip
    # Of other units of the machine, this is not the place to speak.
    ours = [line for line in done.stderr.splitlines() if "virtd" in line]
    assert (ours, done.returncode) == ([], 0)


def test_a_guest_survives_a_restart_of_the_daemon() -> None:
    service = settings("virtd.service")["Service"]
    assert service["KillMode"] == "process"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["OOMPolicy"] == "continue"


def test_nothing_that_breaks_guests_is_set() -> None:
    assert not FORBIDDEN & set(settings("virtd.service")["Service"])


def test_the_daemon_has_time_to_drain() -> None:
    service = settings("virtd.service")["Service"]
    config = load(surroundings=Surroundings(environ={"HOME": "/root"}, uid=0))
    assert float(service["TimeoutStopSec"]) > config.server.drain_timeout_s + 10


def test_directories_and_socket_are_the_defaults_of_root() -> None:
    config = load(surroundings=Surroundings(environ={"HOME": "/root"}, uid=0))
    service, socket = settings("virtd.service")["Service"], settings("virtd.socket")["Socket"]
    assert Path("/var/lib") / service["StateDirectory"] == config.state.directory
    assert Path("/run") / service["RuntimeDirectory"] == config.state.runtime_directory
    assert Path(socket["ListenStream"]) == config.server.socket
    assert int(socket["SocketMode"], 8) == config.server.socket_mode


def test_a_wrong_configuration_is_not_tried_for_ever() -> None:
    from virtd.cli.daemon import WRONG

    assert settings("virtd.service")["Service"]["RestartPreventExitStatus"] == str(WRONG)


def test_the_command_that_the_unit_runs_exists() -> None:
    from virtd.cli.daemon import cli

    command = settings("virtd.service")["Service"]["ExecStart"].split()
    assert Path(command[0]).name == "virtd"
    assert set(command[1:]) <= set(cli.commands)


def test_tmpfiles() -> None:
    lines = [line.split() for line in text("virtd.tmpfiles.conf").splitlines() if line and not line.startswith("#")]
    config = load(surroundings=Surroundings(environ={"HOME": "/root"}, uid=0))
    assert [line[1] for line in lines] == [
        str(path) for path in (config.state.runtime_directory, config.state.directory, config.state.import_directory)
    ]
    assert all(len(line) == 6 and line[0] == "d" for line in lines)
