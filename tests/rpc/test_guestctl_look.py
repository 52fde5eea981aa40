"""``explain``, ``doctor`` and ``top``: what a field is, what is wrong, who is busy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.rpc.guestctl_kit import Ctl, environment, hosts
from tests.rpc.scripted_server import ScriptedServer
from tests.tools.gen_schema import OUTPUT
from virtd.cli.ctl import cmd_top
from virtd.v1 import host_pb2, metrics_pb2


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as found:
        yield found


@pytest.fixture
def ctl(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Ctl:
    for name, value in environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GUESTCTL_CONTEXT", raising=False)
    return Ctl(server, capfd)


def valid(data: Any) -> Any:
    schema = (OUTPUT / f"{data['kind']}.json").read_text()
    jsonschema.validate(data, yaml.safe_load(schema))
    return data


# ------------------------------------------------------------------------------------------ explain


def test_explain_tells_type_meaning_and_values(ctl: Ctl, server: ScriptedServer) -> None:
    result = ctl("explain", "guest.spec.disks.cache")
    assert result.code == 0
    assert "one of NONE, WRITEBACK" in result.out
    assert "a crash of the host loses data" in result.out
    assert server.calls == [], "no daemon is asked"


def test_explain_takes_a_spec_field_without_its_type(ctl: Ctl) -> None:
    short, full = ctl("explain", "memory_bytes").out, ctl("explain", "guest.spec.memory_bytes").out
    assert short.splitlines()[1:] == full.splitlines()[1:]
    assert "size, such as 256MiB" in short


def test_explain_lists_what_is_below(ctl: Ctl) -> None:
    flat = ctl("explain", "guest.spec.interfaces").out
    assert "port_forwards  <list of PortForward>" in flat
    assert "host_port" not in flat
    assert "host_port" in ctl("explain", "guest.spec.interfaces", "--recursive").out


def test_explain_as_data(ctl: Ctl) -> None:
    data = valid(ctl("explain", "guest.spec.disks.bus", "-o", "json").json)
    assert [value["name"] for value in data["item"]["values"]] == ["VIRTIO", "SCSI", "SATA", "IDE"]
    assert all(value["description"] for value in data["item"]["values"])


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("guest.spec.disks.cach", "did you mean 'cache'?"),
        ("gest", "did you mean 'guest'?"),
        ("guest.spec.vcpus.more", "plain value"),
    ],
)
def test_explain_knows_what_was_meant(ctl: Ctl, path: str, hint: str) -> None:
    result = ctl("explain", path)
    assert result.code == 2
    assert hint in result.err


# ------------------------------------------------------------------------------------------- doctor


def checks(*found: tuple[str, str, str]) -> host_pb2.DiagnoseHostResponse:
    return host_pb2.DiagnoseHostResponse(
        checks=[
            host_pb2.HostCheck(
                id=id_, status=host_pb2.CheckStatus.Value(f"CHECK_STATUS_{status}"), summary="s", remedy=do
            )
            for id_, status, do in found
        ]
    )


def test_doctor_shows_what_is_wrong_and_what_to_do(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", hosts("a"))
    server.on("DiagnoseHost", checks(("one", "OK", ""), ("kvm.device", "PROBLEM", "modprobe kvm_intel")))
    result = ctl("doctor")
    assert result.code == 1
    assert "modprobe kvm_intel" in result.out
    assert "one" not in result.out
    assert "1 of 2 checks found nothing to do" in result.err
    assert "one" in ctl("doctor", "--all").out


def test_doctor_is_content_with_warnings(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", hosts("a"))
    server.on("DiagnoseHost", checks(("tpm", "WARNING", "install swtpm")))
    assert ctl("doctor").code == 0
    data = valid(ctl("doctor", "a", "-o", "json").json)
    assert data["host"] == "hosts/a"
    assert data["items"][0]["remedy"] == "install swtpm"


def test_doctor_without_a_host_says_so(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", host_pb2.ListHostsResponse())
    result = ctl("doctor")
    assert result.code == 1
    assert "guestctl host add" in result.err


# ---------------------------------------------------------------------------------------------- top


def sample(name: str, at: float, cpu: float, read: int | None = None) -> metrics_pb2.GuestMetrics:
    found = metrics_pb2.GuestMetrics(name=f"hosts/a/guests/{name}", cpu_time_s=cpu, vcpus=2)
    found.sample_time.FromNanoseconds(int(at * 1e9))
    if read is not None:
        found.blocks.add(name="vda", read_bytes=read)
    return found


def test_a_rate_needs_two_samples_and_is_never_negative() -> None:
    assert cmd_top.rate(None, sample("g", 1, 1)) is None
    same = sample("g", 1, 1)
    assert cmd_top.rate(same, same) is None
    row = cmd_top.rate(sample("g", 1, 1, 1000), sample("g", 3, 4, 5000))
    assert row is not None
    assert (row.cpu, row.read, row.written) == (1.5, 2000.0, None)
    anew = cmd_top.rate(sample("g", 1, 100), sample("g", 3, 1))
    assert anew is not None
    assert anew.cpu is None, "it was started anew in between"


def test_the_busiest_stand_first_and_the_unknown_last() -> None:
    rows = [
        row
        for name, cpu in (("calm", 1.1), ("busy", 9.0), ("anew", 0.5))
        if (row := cmd_top.rate(sample(name, 1, 1.0), sample(name, 2, cpu)))
    ]
    assert [row.name.split("/")[-1] for row in cmd_top.ordered(rows, "cpu")] == ["busy", "calm", "anew"]
    assert [row.name.split("/")[-1] for row in cmd_top.ordered(rows, "name")] == ["anew", "busy", "calm"]


def test_top_once(ctl: Ctl, server: ScriptedServer) -> None:
    first = metrics_pb2.GetMetricsResponse(metrics=[sample("calm", 1, 1.0), sample("busy", 1, 1.0, 0)])
    second = metrics_pb2.GetMetricsResponse(metrics=[sample("calm", 2, 1.25), sample("busy", 2, 2.5, 2048)])
    server.on("GetMetrics", first, second)
    result = ctl("top")
    assert result.code == 0
    head, busy, calm = (line.split() for line in result.out.splitlines())
    assert head[:3] == ["NAME", "HOST", "CPU"]
    assert busy[:3] == ["busy", "a", "1.50"]
    assert "KiB/s" in " ".join(busy)
    assert calm[:3] == ["calm", "a", "0.25"]


def test_top_says_when_nothing_runs(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("GetMetrics", metrics_pb2.GetMetricsResponse())
    result = ctl("top", "--once")
    assert (result.code, result.out) == (0, "")
    assert "no guest runs" in result.err
