"""``get``, ``describe`` and their like: what is shown, and what is said of what cannot be.

Longer than 500 lines because every type is shown in every format.
"""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.rpc.guestctl_kit import COMMAND, Ctl, environment, guest, hosts, listed, spawn
from tests.rpc.scripted_server import AWAY, Fail, ScriptedServer, operation, stream, virtd_fail
from tests.tools.gen_schema import OUTPUT
from virtd.v1 import (
    audit_pb2,
    capability_pb2,
    event_pb2,
    guest_pb2,
    guest_service_pb2,
    host_pb2,
    image_pb2,
    metrics_pb2,
    network_pb2,
    operation_pb2,
    server_pb2,
    snapshot_pb2,
    storage_pb2,
)


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
    """The document, after a look at its published schema."""
    schema = (OUTPUT / f"{data['kind']}.json").read_text()
    jsonschema.validate(data, yaml.safe_load(schema))
    return data


def test_a_table(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListGuests", listed(guest("web1"), guest("db", state=guest_pb2.GUEST_STATE_STOPPED)))
    result = ctl("get", "guests")
    assert result.code == 0
    head, *rows = [line.split() for line in result.out.splitlines()]
    assert head == ["NAME", "HOST", "STATE", "VCPUS", "MEMORY", "ADDRESS", "AGE"]
    assert rows == [
        ["web1", "a", "RUNNING", "2", "256", "MiB", "-", "-"],
        ["db", "a", "STOPPED", "2", "256", "MiB", "-", "-"],
    ]
    assert "\x1b" not in result.out
    assert server.calls_of("ListGuests")[0].request.parent == "hosts/-"


@pytest.mark.parametrize("fmt", ["json", "yaml"])
def test_documents_are_valid_and_complete(ctl: Ctl, server: ScriptedServer, fmt: str) -> None:
    server.on("ListGuests", listed(guest("web1", labels={"env": "prod"})))
    result = ctl("-o", fmt, "get", "guests")
    data = valid(yaml.safe_load(result.out))
    assert data["apiVersion"] == "virtd.v1"
    assert data["kind"] == "GuestList"
    assert data["hostErrors"] == []
    assert data["resumeToken"] == "t1"
    (item,) = data["items"]
    assert item["name"] == "hosts/a/guests/web1"
    assert item["spec"]["memory_bytes"] == "268435456"
    assert item["status"]["state"] == "GUEST_STATE_RUNNING"
    assert item["labels"] == {"env": "prod"}
    assert "create_time" not in item


def test_the_format_may_stand_before_or_after_the_command(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListGuests", listed(guest("web1")))
    assert ctl("-o", "name", "get", "guests").out == "hosts/a/guests/web1\n"
    assert ctl("get", "guests", "-o", "name").out == "hosts/a/guests/web1\n"
    assert ctl("-o", "json", "get", "guests", "-o", "name").out == "hosts/a/guests/web1\n"


def test_lines_and_csv(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListGuests", listed(guest("web1", display_name='a "b", c'), guest("db")))
    assert [item["name"] for item in ctl("get", "g", "-o", "jsonl").lines] == [
        "hosts/a/guests/web1",
        "hosts/a/guests/db",
    ]
    rows = list(csv.DictReader(io.StringIO(ctl("get", "guest", "-o", "csv").out)))
    assert rows[0]["memory_bytes"] == "268435456"
    assert rows[0]["create_time"] == ""
    assert [row["name"] for row in rows] == ["hosts/a/guests/web1", "hosts/a/guests/db"]


def test_wide_has_more_columns_and_stale_is_said(ctl: Ctl, server: ScriptedServer) -> None:
    stale = guest("web1", labels={"env": "prod"})
    stale.status.stale_since.FromSeconds(1_700_000_000)
    condition = stale.status.conditions.add(type="CONDITION_TYPE_AGENT_READY", status="CONDITION_STATUS_TRUE")
    stale.status.conditions.add(type="CONDITION_TYPE_BOOTED", status="CONDITION_STATUS_UNKNOWN")
    assert condition.status == guest_pb2.CONDITION_STATUS_TRUE
    server.on("ListGuests", listed(stale))
    out = ctl("get", "guests", "-o", "wide").out
    assert "RUNNING (stale)" in out
    assert "env=prod" in out
    assert "agent-ready" in out
    assert "booted" not in out


def test_a_guest_cannot_write_to_the_terminal(ctl: Ctl, server: ScriptedServer) -> None:
    evil = guest("web1", labels={"x": "\x1b]0;owned\x07"})
    evil.status.addresses.add(address="\x1b[2J10.0.0.1\nFAKE ROW")
    server.on("ListGuests", listed(evil))
    server.on("GetGuest", guest_service_pb2.GetGuestResponse(guest=evil))
    for arguments in (("get", "guests", "-o", "wide"), ("describe", "guest", "a/web1")):
        out = ctl(*arguments).out
        assert "\x1b" not in out
        assert "\\x1b" in out
        assert "\nFAKE ROW" not in out


def test_nothing_there_is_said_on_stderr_and_data_stays_empty(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListGuests", listed())
    result = ctl("get", "guests")
    assert (result.code, result.out, result.err) == (0, "", "no guests\n")
    assert ctl("get", "guests", "-q").err == ""
    assert valid(ctl("get", "guests", "-o", "json").json)["items"] == []


def test_a_dead_host_gives_the_rest_a_warning_and_8(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListGuests", listed(guest("web1"), silent=("b",)))
    result = ctl("get", "guests")
    assert result.code == 8
    assert "web1" in result.out
    assert result.err == "warning: host b does not answer: b does not answer (HOST_UNREACHABLE)\n"
    document = ctl("get", "guests", "-o", "json", "-q")
    assert document.code == 8
    assert valid(document.json)["hostErrors"][0]["host"] == "hosts/b"


def test_filter_and_host_are_handed_on(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListGuests", listed(guest("web1")))
    ctl("get", "guests", "--host", "b", "--filter", "status.state=RUNNING")
    request = server.calls_of("ListGuests")[0].request
    assert (request.parent, request.filter) == ("hosts/b", "status.state=RUNNING")


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("hosts/b/guests/db", "hosts/b/guests/db"),
        ("b/db", "hosts/b/guests/db"),
        ("db", "hosts/b/guests/db"),
        ("00000000-0000-4000-8000-0000000000db", "hosts/b/guests/db"),
    ],
)
def test_the_forms_of_a_name(ctl: Ctl, server: ScriptedServer, given: str, asked: str) -> None:
    server.on("ListHosts", hosts("a", "b"))
    server.on("ListGuests", listed(guest("web1"), guest("db", "b")))
    server.on("GetGuest", guest_service_pb2.GetGuestResponse(guest=guest("db", "b")))
    result = ctl("get", "guest", given, "-o", "name")
    assert (result.code, result.out) == (0, "hosts/b/guests/db\n")
    assert server.calls_of("GetGuest")[0].request.name == asked


def test_with_one_host_a_bare_id_needs_no_search(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", hosts("a"))
    server.on("GetGuest", guest_service_pb2.GetGuestResponse(guest=guest("web1")))
    assert ctl("get", "guest", "web1").code == 0
    assert server.calls_of("ListGuests") == []


def test_an_ambiguous_id_lists_the_candidates(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", hosts("a", "b"))
    server.on("ListGuests", listed(guest("web1"), guest("web1", "b")))
    result = ctl("stop", "web1")
    assert result.code == 2
    assert "'web1' stands for 2 guests: hosts/a/guests/web1, hosts/b/guests/web1" in result.err
    assert server.calls_of("StopGuest") == []


def test_not_found_is_3_and_suggests(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", hosts("a", "b"))
    server.on("ListGuests", listed(guest("web1")))
    result = ctl("get", "guest", "wbe1")
    assert (result.code, result.out) == (3, "")
    assert result.err == (
        "error: there is no guest 'wbe1'; did you mean 'web1'?\n"
        "reason: GUEST_NOT_FOUND\n"
        "next: List the guests with `guestctl get guests`.\n"
    )


def test_what_cannot_be_seen_is_not_called_gone(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListHosts", hosts("a", "b"))
    server.on("ListGuests", listed(guest("web1"), silent=("b",)))
    result = ctl("get", "guest", "other")
    assert result.code == 7
    assert "reason: HOST_UNREACHABLE" in result.err


def test_some_names_found_and_some_not_is_8(ctl: Ctl, server: ScriptedServer) -> None:
    missing = virtd_fail(5, "GUEST_NOT_FOUND", "NotFound", message="hosts/a has no guest y")
    server.on("GetGuest", guest_service_pb2.GetGuestResponse(guest=guest("x")), missing)
    result = ctl("get", "guests", "a/x", "a/y", "-o", "name")
    assert (result.code, result.out) == (8, "hosts/a/guests/x\n")
    assert "error: a/y: hosts/a has no guest y\nreason: GUEST_NOT_FOUND" in result.err


def test_describe_shows_every_field(ctl: Ctl, server: ScriptedServer) -> None:
    found = guest("web1", labels={"env": "prod"})
    found.spec.disks.add(name="root").blank.capacity_bytes = 2**30
    found.status.allowed_actions.extend(["stop", "pause"])
    found.create_time.FromSeconds(1_700_000_000)
    server.on("GetGuest", guest_service_pb2.GetGuestResponse(guest=found))
    out = ctl("describe", "guest", "a/web1").out
    for line in (
        "name: hosts/a/guests/web1",
        "  memory_bytes: 268435456 (256 MiB)",
        "    - name: root",
        "        capacity_bytes: 1073741824 (1 GiB)",
        "  state: RUNNING",
        "  allowed_actions: stop, pause",
        "  env: prod",
    ):
        assert line in out.splitlines()
    assert "create_time: 2023-11-14T22:13:20.000Z (" in out
    item = valid(ctl("describe", "guest", "a/web1", "-o", "json").json)["item"]
    assert item["spec"]["disks"][0]["blank"]["capacity_bytes"] == "1073741824"


def script_everything(server: ScriptedServer) -> None:
    server.on(
        "ListHosts", host_pb2.ListHostsResponse(hosts=[host_pb2.Host(name="hosts/a", state="HOST_STATE_CONNECTED")])
    )
    server.on("ListGuests", listed(guest("web1")))
    snapshot = snapshot_pb2.Snapshot(name="hosts/a/guests/web1/snapshots/one", kind="SNAPSHOT_KIND_DISK_AND_MEMORY")
    server.on("ListSnapshots", snapshot_pb2.ListSnapshotsResponse(snapshots=[snapshot]))
    server.on("ListPools", storage_pb2.ListPoolsResponse(pools=[storage_pb2.Pool(name="hosts/a/pools/p")]))
    volume = storage_pb2.Volume(name="hosts/a/pools/p/volumes/v", used_by=["hosts/a/guests/web1"])
    server.on("ListVolumes", storage_pb2.ListVolumesResponse(volumes=[volume]))
    network = network_pb2.Network(name="hosts/a/networks/n", active=True)
    server.on("ListNetworks", network_pb2.ListNetworksResponse(networks=[network]))
    server.on("ListImages", image_pb2.ListImagesResponse(images=[image_pb2.Image(name="images/i", size_bytes=5)]))
    listing = [operation("operations/1", verb="start", target="hosts/a/guests/web1", state="OPERATION_STATE_RUNNING")]
    server.on("ListOperations", type_of_list()(operations=listing))
    sample = metrics_pb2.GuestMetrics(name="hosts/a/guests/web1", cpu_time_s=1.25)
    sample.blocks.add(name="a", read_bytes=1024)
    sample.blocks.add(name="b", read_bytes=1024)
    server.on("GetMetrics", metrics_pb2.GetMetricsResponse(metrics=[sample]))
    record = audit_pb2.AuditRecord(sequence=7, caller="unix:uid=0", method="/virtd.v1.GuestService/StopGuest")
    server.on("ListAuditRecords", audit_pb2.ListAuditRecordsResponse(records=[record]))
    capability = capability_pb2.Capability(
        id="guest.pause", level="CAPABILITY_LEVEL_UNSUPPORTED", reason="no such call"
    )
    server.on("GetCapabilities", host_pb2.GetCapabilitiesResponse(capabilities=[capability]))


def type_of_list() -> Any:
    from google.longrunning import operations_pb2

    return operations_pb2.ListOperationsResponse


KINDS = {
    "guests": "web1 a RUNNING",
    "hosts": "a CONNECTED",
    "snapshots": "one web1 a DISK+MEMORY",
    "pools": "p a",
    "volumes": "v p a - - - web1",
    "networks": "n a yes",
    "images": "i - 5 B",
    "operations": "1 start hosts/a/guests/web1 RUNNING",
    "metrics": "web1 a 1.2s - - - - 2 KiB",
    "audit": "7 - unix:uid=0 StopGuest",
}


@pytest.mark.parametrize("word", KINDS)
def test_every_type_in_every_format(ctl: Ctl, server: ScriptedServer, word: str) -> None:
    script_everything(server)
    for fmt in ("table", "wide"):
        shown = ctl("get", word, "-o", fmt)
        assert shown.code == 0, shown.err
        assert " ".join(shown.out.splitlines()[1].split()).startswith(KINDS[word])
    document = valid(ctl("get", word, "-o", "json").json)
    assert len(document["items"]) == 1
    assert yaml.safe_load(ctl("get", word, "-o", "yaml").out) == document
    assert ctl("get", word, "-o", "jsonl").lines == document["items"]
    assert len(list(csv.DictReader(io.StringIO(ctl("get", word, "-o", "csv").out)))) == 1


def test_capabilities_with_their_reasons(ctl: Ctl, server: ScriptedServer) -> None:
    script_everything(server)
    assert "guest.pause  UNSUPPORTED" in ctl("capabilities").out
    assert "no such call" in ctl("capabilities", "a").out
    assert valid(ctl("capabilities", "hosts/a", "-o", "json").json)["host"] == "hosts/a"
    assert {call.request.name for call in server.calls_of("GetCapabilities")} == {"hosts/a"}


def test_capabilities_with_their_proof(ctl: Ctl, server: ScriptedServer) -> None:
    script_everything(server)
    proven = capability_pb2.Capability(
        id="guest.pause", level="CAPABILITY_LEVEL_NATIVE", provenance="CAPABILITY_PROVENANCE_VERIFIED"
    )
    proven.verified_with = "QEMU 7.2.22, libvirt 9.0.0"
    proven.verified_time.FromJsonString("2026-01-02T03:04:05Z")
    server.on("GetCapabilities", host_pb2.GetCapabilitiesResponse(capabilities=[proven]))
    shown = ctl("capabilities", "a", "--machine", "xenpv").out
    assert "VERIFIED WITH" in shown.splitlines()[0]
    assert "NATIVE  VERIFIED    QEMU 7.2.22, libvirt 9.0.0" in shown
    assert "2026-01-02" in ctl("capabilities", "a", "-o", "wide").out
    assert valid(ctl("capabilities", "a", "-o", "json").json)["items"][0]["verified_with"] == proven.verified_with
    assert server.calls_of("GetCapabilities")[0].request.machine == "xenpv"


def test_capabilities_of_a_guest(ctl: Ctl, server: ScriptedServer) -> None:
    script_everything(server)
    assert ctl("capabilities", "--guest", "hosts/a/guests/web1").code == 0
    (call,) = server.calls_of("GetCapabilities")
    assert (call.request.name, call.request.guest) == ("hosts/a", "hosts/a/guests/web1")


def test_pools_of_several_hosts_when_one_is_dead(ctl: Ctl, server: ScriptedServer) -> None:
    dead = virtd_fail(14, "HOST_UNREACHABLE", "Unavailable", message="b is away")
    without = virtd_fail(9, "CAPABILITY_UNSUPPORTED", "Unsupported", message="no pools here")
    server.on("ListHosts", hosts("a", "b", "c"))
    server.on(
        "ListPools", storage_pb2.ListPoolsResponse(pools=[storage_pb2.Pool(name="hosts/a/pools/p")]), dead, without
    )
    result = ctl("get", "pools", "-o", "json")
    assert result.code == 8
    data = valid(result.json)
    assert [item["name"] for item in data["items"]] == ["hosts/a/pools/p"]
    assert [entry["host"] for entry in data["hostErrors"]] == ["hosts/b"]
    assert "host b does not answer: b is away" in result.err


def test_a_host_that_was_chosen_and_is_dead_is_7(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("ListPools", virtd_fail(14, "HOST_UNREACHABLE", "Unavailable", message="b is away"))
    result = ctl("get", "pools", "--host", "b")
    assert result.code == 7
    assert "next: virtd reconnects by itself; look at `guestctl describe host HOST` for the last error." in result.err


@pytest.mark.parametrize(
    ("failure", "code", "reason"),
    [
        (virtd_fail(5, "GUEST_NOT_FOUND", "NotFound"), 3, "GUEST_NOT_FOUND"),
        (virtd_fail(7, "ACCESS_DENIED", "PermissionDenied"), 4, "ACCESS_DENIED"),
        (virtd_fail(9, "CAPABILITY_UNSUPPORTED", "Unsupported"), 6, "CAPABILITY_UNSUPPORTED"),
        (virtd_fail(14, "HOST_UNREACHABLE", "Unavailable"), 7, "HOST_UNREACHABLE"),
        (virtd_fail(13, "BACKEND_ERROR", "Internal"), 1, "BACKEND_ERROR"),
        (virtd_fail(3, "FIELD_INVALID", "InvalidArgument"), 2, "FIELD_INVALID"),
        (Fail(16, "who are you"), 4, "GRPC_UNAUTHENTICATED"),
        (Fail(12, "no such method"), 6, "GRPC_UNIMPLEMENTED"),
        (AWAY, 7, "DAEMON_UNREACHABLE"),
    ],
)
def test_errors_of_the_daemon_by_exit_code(
    ctl: Ctl, server: ScriptedServer, failure: Fail, code: int, reason: str
) -> None:
    server.on("GetGuest", failure)
    result = ctl("describe", "guest", "a/web1")
    assert (result.code, result.out) == (code, "")
    assert f"reason: {reason}\n" in result.err
    assert result.err.startswith("error: ")


def test_the_details_of_an_error_are_shown(ctl: Ctl, server: ScriptedServer) -> None:
    record = {
        "message": "the disk is too small",
        "violations": [
            capability_pb2.FieldViolation(field="guest.spec.disks[0]", description="has 3 bytes", alternatives=["1GiB"])
        ],
        "allowed_actions": ["start", "delete"],
        "native": capability_pb2.NativeError(call="virDomainCreate", code="1", message="boom\x1b[2J"),
        "retry_after_s": 2.5,
    }
    server.on("GetGuest", virtd_fail(3, "FIELD_INVALID", "InvalidArgument", **record))
    err = ctl("describe", "guest", "a/web1").err
    assert "  guest.spec.disks[0]: has 3 bytes; accepted here: 1GiB\n" in err
    assert "  allowed now: start, delete\n" in err
    assert "  native: virDomainCreate code 1: boom\\x1b[2J\n" in err
    assert "  retry after: 2.5s\n" in err


def test_no_daemon_says_how_to_start_one(ctl: Ctl, server: ScriptedServer, tmp_path: Path) -> None:
    result = ctl("get", "guests", "--target", f"unix:{tmp_path}/none.sock")
    assert result.code == 7
    assert result.err == (
        f"error: no daemon answers at unix:{tmp_path}/none.sock: there is no such socket\n"
        "reason: DAEMON_UNREACHABLE\n"
        "next: start it with: virtd serve (or name another daemon with --target or a context)\n"
    )
    server.stop()
    assert "error: no daemon answers" in ctl("get", "guests").err


def test_a_daemon_that_hangs_ends_at_the_time_limit(ctl: Ctl, server: ScriptedServer) -> None:
    import asyncio

    async def hang(_request: Any, _context: Any) -> None:
        await asyncio.Event().wait()

    server.on("ListGuests", hang)
    result = ctl("get", "guests", "--timeout", "300ms")
    assert result.code == 124
    assert "reason: CLIENT_TIMEOUT" in result.err


def test_version(ctl: Ctl, server: ScriptedServer) -> None:
    info = server_pb2.ServerInfo(version="9.8.7", caller="unix:uid=0")
    info.backends.add(id="kvm", version="1", init_error="libvirt is missing")
    server.on("GetServerInfo", server_pb2.GetServerInfoResponse(server=info))
    result = ctl("version")
    assert result.code == 0
    assert result.out.startswith("guestctl  ")
    assert f"virtd     9.8.7 at {server.target}\n" in result.out
    assert "backend   kvm 1: libvirt is missing" in ctl("version", "-v").out
    assert valid(ctl("version", "-o", "json").json)["server"]["version"] == "9.8.7"
    server.on("GetServerInfo", AWAY)
    away = ctl("version", "-o", "json")
    assert away.code == 7
    assert valid(away.json)["server"] is None
    assert valid(ctl("version", "--client", "-o", "json").json)["client"]["version"]


def test_contexts_choose_daemon_host_and_time_limit(
    ctl: Ctl, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on("ListGuests", listed(guest("web1")))
    monkeypatch.delenv("VIRTD_TARGET")
    assert ctl("config", "set-context", "lab", "--target", server.target, "--host", "b").code == 0
    assert ctl("config", "set-context", "other", "--target", "unix:/nonexistent").code == 0
    assert ctl("config", "current-context").out == "lab\n"
    assert ctl("get", "guests").code == 0
    assert server.calls_of("ListGuests")[-1].request.parent == "hosts/b"
    assert ctl("get", "guests", "--host", "-").code == 0
    assert server.calls_of("ListGuests")[-1].request.parent == "hosts/-"
    assert ctl("--context", "other", "get", "guests").code == 7
    monkeypatch.setenv("GUESTCTL_CONTEXT", "other")
    assert ctl("get", "guests").code == 7
    assert ctl("get", "guests", "--target", server.target).code == 0
    monkeypatch.delenv("GUESTCTL_CONTEXT")
    assert ctl("config", "use-context", "othr").code == 2
    assert ctl("config", "use-context", "other").code == 0
    monkeypatch.setenv("VIRTD_TARGET", server.target)
    # A variable of the shell is closer than the file's current context.
    assert ctl("get", "guests").code == 0
    data = valid(ctl("config", "get-contexts", "-o", "json").json)
    assert [(row["name"], row["current"]) for row in data["items"]] == [("lab", False), ("other", True)]
    assert ctl("config", "delete-context", "other").code == 0
    assert ctl("config", "current-context").code == 3
    assert ctl("config", "set-context", "bad", "--target", "example.org:443").code == 2


def event(revision: int, kind: str, name: str, **fields: Any) -> event_pb2.Event:
    return event_pb2.Event(revision=revision, type=f"EVENT_TYPE_{kind}", resource=f"hosts/a/guests/{name}", **fields)


def batch(token: str, *found: event_pb2.Event) -> event_pb2.WatchEventsResponse:
    return event_pb2.WatchEventsResponse(events=event_pb2.EventBatch(events=found, resume_token=token))


def test_watching_a_list(server: ScriptedServer, tmp_path: Path) -> None:
    from tests.rpc.scripted_server import forever

    stopped = guest("web1", state=guest_pb2.GUEST_STATE_STOPPED)
    host_event = event_pb2.Event(revision=3, type="EVENT_TYPE_HOST_CHANGED", resource="hosts/a")
    later = event_pb2.PullEventsResponse(resume_token="t9")
    server.on("PullEvents", event_pb2.PullEventsResponse(resume_token="t0"), later)
    server.on("ListGuests", listed(guest("web1")))
    server.on(
        "WatchEvents",
        stream(
            batch("t2", event(2, "GUEST_STATE_CHANGED", "web1", guest=stopped), host_event),
            batch("t5", event(4, "GUEST_ADDED", "new", guest=guest("new")), event(5, "GUEST_REMOVED", "web1")),
            then=forever,
        ),
    )
    process = spawn(server, tmp_path, "get", "guests", "-w", "-o", "json")
    assert process.stdout is not None
    try:
        lines = [valid(yaml.safe_load(process.stdout.readline())) for _ in range(4)]
    finally:
        process.terminate()
        process.communicate()
    assert [(line["change"], line["item"]["name"].rpartition("/")[2]) for line in lines] == [
        ("present", "web1"),
        ("changed", "web1"),
        ("added", "new"),
        ("removed", "web1"),
    ]
    assert lines[1]["item"]["status"]["state"] == "GUEST_STATE_STOPPED"
    # The token is older than the list: nothing can fall between the two.
    assert server.calls_of("WatchEvents")[0].request.resume_token == "t0"
    assert [call.method for call in server.calls].index("PullEvents") < [c.method for c in server.calls].index(
        "ListGuests"
    )


def test_events_as_lines_until_the_limit(ctl: Ctl, server: ScriptedServer) -> None:
    server.on("PullEvents", event_pb2.PullEventsResponse(resume_token="t0"))
    changed = event(1, "GUEST_STATE_CHANGED", "web1", attributes={"state": "RUNNING", "previous_state": "STARTING"})
    server.on("WatchEvents", stream(batch("t1", changed, event(2, "GUEST_REMOVED", "web1"))))
    result = ctl("events", "--limit", "2")
    assert result.code == 0
    assert "GUEST_STATE_CHANGED" in result.out
    assert "previous_state=STARTING state=RUNNING" in result.out
    assert result.err == "go on with: guestctl events --since t1\n"
    lines = ctl("events", "--limit", "2", "-o", "jsonl", "--filter", "type=X").lines
    assert [valid(line)["resumeToken"] for line in lines] == ["t0", "t1"]
    assert server.calls_of("WatchEvents")[-1].request.filter == "type=X"


def test_events_once_reads_what_is_there_and_ends(ctl: Ctl, server: ScriptedServer) -> None:
    page = event_pb2.PullEventsResponse(
        events=[event(1, "GUEST_ADDED", "a"), event(2, "GUEST_ADDED", "b")], resume_token="t2"
    )
    server.on("PullEvents", page, event_pb2.PullEventsResponse(resume_token="t3"))
    result = ctl("events", "--once", "--since", "t0", "-o", "csv")
    assert result.code == 0
    assert len(result.out.splitlines()) == 3
    assert "--since t3" in result.err
    assert [call.request.resume_token for call in server.calls_of("PullEvents")] == ["t0", "t2"]
    server.on("PullEvents", page, event_pb2.PullEventsResponse(resume_token="t3"))
    # A reader that stops after the first line and goes on from its token must see the second one.
    lines = ctl("events", "--once", "--since", "t0", "-o", "jsonl").lines
    assert [line["resumeToken"] for line in lines] == ["t0", "t2"]


def test_events_end_at_the_time_limit_with_124(ctl: Ctl, server: ScriptedServer) -> None:
    from tests.rpc.scripted_server import forever

    server.on("PullEvents", event_pb2.PullEventsResponse(resume_token="t0"))
    server.on("WatchEvents", stream(then=forever))
    result = ctl("events", "--timeout", "500ms")
    assert result.code == 124
    assert "--since t0" in result.err


def test_an_expired_token_is_said_and_the_watch_goes_on(ctl: Ctl, server: ScriptedServer) -> None:
    expired = virtd_fail(11, "RESUME_TOKEN_EXPIRED", "OutOfRange")
    server.on("PullEvents", event_pb2.PullEventsResponse(resume_token="t9"))
    server.on("WatchEvents", expired, stream(batch("t10", event(10, "GUEST_ADDED", "a"))))
    result = ctl("events", "--since", "t0", "--limit", "1", "-o", "jsonl")
    assert result.code == 0
    assert [valid(line)["kind"] for line in result.lines] == ["EventReset", "Event"]
    assert "events may be missing here (EXPIRED)" in result.err


def test_a_reader_that_goes_away_ends_it_quietly(server: ScriptedServer, tmp_path: Path) -> None:
    server.on("ListGuests", listed(*(guest(f"g{index}") for index in range(3000))))
    reader = subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process = subprocess.Popen(
        [*COMMAND, "get", "guests"], stdout=reader.stdin, stderr=subprocess.PIPE, env=environment(server, tmp_path)
    )
    assert reader.stdin is not None
    reader.stdin.close()
    with reader, process:
        assert reader.stdout is not None
        out = reader.stdout.read()
        _, err = process.communicate(timeout=30)
    assert out.startswith(b"NAME")
    assert (process.returncode, err) == (141, b"")


def test_a_full_disk_is_an_error(server: ScriptedServer, tmp_path: Path) -> None:
    server.on("ListGuests", listed(guest("web1")))
    with Path("/dev/full").open("wb") as full:
        process = spawn(server, tmp_path, "get", "guests", stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err == b"error: reading or writing failed: No space left on device\n"


def test_names_are_completed_from_the_daemon(ctl: Ctl, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.on("ListGuests", listed(guest("web1"), guest("web1", "b"), guest("db")))

    def complete(words: str) -> list[str]:
        monkeypatch.setenv("_GUESTCTL_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        try:
            return [line.partition(",")[2] for line in ctl().out.splitlines() if line]
        finally:
            monkeypatch.delenv("_GUESTCTL_COMPLETE")

    assert complete("guestctl start ") == ["a/web1", "b/web1", "db"]
    assert complete("guestctl start d") == ["db"]
    assert complete("guestctl start hosts/a/") == ["hosts/a/guests/web1", "hosts/a/guests/db"]
    assert complete("guestctl describe guest d") == ["db"]
    assert complete("guestctl get vol") == ["volumes"]
    assert "snapshot" in complete("guestctl sn")
    assert complete("guestctl get guests -o js") == ["json", "jsonl"]
    server.stop()
    assert complete("guestctl start ") == []


def test_the_kinds_of_operations_have_times(ctl: Ctl, server: ScriptedServer) -> None:
    metadata = operation_pb2.OperationMetadata(fraction=0.5)
    found = operation("operations/1", verb="create", state="OPERATION_STATE_SUCCEEDED", fraction=metadata.fraction)
    server.on("ListOperations", type_of_list()(operations=[found]))
    server.on("GetOperation", found)
    assert "50%" in ctl("operations", "list", "--filter", "state=RUNNING").out
    assert server.calls_of("ListOperations")[0].request.filter == "state=RUNNING"
    assert "verb: create" in ctl("operations", "get", "1").out
    assert server.calls_of("GetOperation")[0].request.name == "operations/1"
