"""The Python client as a package: what an import loads, where it connects, that both flavours are one."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import virtd_client
from virtd_client import _retry, _target

from tests.rpc.scripted_server import ScriptedServer, forever, operation, stream
from tests.tools import gen_sync_client
from virtd.v1 import event_pb2, guest_pb2, guest_service_pb2, server_pb2

PACKAGE = Path(virtd_client.__file__).parent


def loaded_by(code: str) -> set[str]:
    """Modules that a fresh interpreter has after running something."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split())


# --- imports ------------------------------------------------------------------------------------------


def test_importing_the_package_and_its_errors_is_cheap() -> None:
    loaded = loaded_by(
        "import virtd_client; virtd_client.errors.NotFound; virtd_client.Reset; virtd_client.default_target()"
    )
    assert not {name for name in loaded if name.partition(".")[0] in {"grpc", "google", "asyncio"}}
    assert not {name for name in loaded if name.startswith("virtd.")}


def test_a_sync_call_loads_its_own_service_only() -> None:
    info = server_pb2.GetServerInfoResponse(server=server_pb2.ServerInfo(version="7"))
    with ScriptedServer() as server:
        server.on("GetServerInfo", info)
        loaded = loaded_by(
            "import virtd_client\n"
            f"with virtd_client.Client.connect({server.target!r}) as client:\n"
            "    assert client.server.info().version == '7'\n"
        )
    assert {name for name in loaded if name.startswith("virtd.v1.") and "pb2" in name} == {
        "virtd.v1.capability_pb2",
        "virtd.v1.server_pb2",
        "virtd.v1.server_pb2_grpc",
    }
    assert not {name for name in loaded if name.startswith(("virtd_client._async", "google.longrunning", "google.rpc"))}


def test_only_the_async_flavour_names_grpc_aio() -> None:
    # (The package grpc itself loads grpc.aio since 1.32; nothing here can prevent that.)
    users = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if (isinstance(node, ast.Import) and any(alias.name == "grpc.aio" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module in {"grpc.aio", "virtd_client._io.aio"})
        or (isinstance(node, ast.ImportFrom) and node.module == "virtd_client._io" and node.names[0].name == "aio")
    }
    assert all(user.startswith(("_async/", "_io/aio.py")) for user in users)
    assert "_io/aio.py" in users


def test_every_public_name_can_be_had() -> None:
    for name in virtd_client.__all__:
        assert getattr(virtd_client, name) is not None
        assert name in dir(virtd_client)
    with pytest.raises(AttributeError, match="no attribute 'Machine'"):
        _ = virtd_client.Machine


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


# --- the sync flavour -----------------------------------------------------------------------------------


def test_the_sync_flavour_is_what_the_generator_writes() -> None:
    assert gen_sync_client.differences() == []


def test_a_changed_or_forgotten_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in gen_sync_client.TARGET.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(gen_sync_client, "TARGET", tmp_path)
    (tmp_path / "operation.py").write_text("# edited by hand\n")
    (tmp_path / "left_over.py").write_text("")
    assert gen_sync_client.differences() == ["left_over.py", "operation.py"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("async def f() -> AsyncThing:\n    return await g()\n", "def f() -> Thing:\n    return g()\n"),
        ("x = [i async for i in AsyncThing()]\n", "x = [i for i in Thing()]\n"),
        ("async with a as b, c:\n    raise StopAsyncIteration\n", "with a as b, c:\n    raise StopIteration\n"),
        ("def f(x: Callable[[str], Awaitable[T]]):\n    pass\n", "def f(x: Callable[[str], T]):\n    pass\n"),
        ("async def f():\n    for a in b:\n        yield a\n", "def f():\n    yield from b\n"),
        ("x = 1\n# async only\ny = 2\n# end of async only\nz = 3\n", "x = 1\nz = 3\n"),
        ('"""An AsyncThing: ``async with`` it."""\n', '"""An Thing: ``with`` it."""\n'),
        ("asynchronous = await_me = aiox = 1\n", "asynchronous = await_me = aiox = 1\n"),
        ("def f() -> ThingAsyncStub: ...\n", "def f() -> ThingStub: ...\n"),
    ],
)
def test_translation(source: str, expected: str) -> None:
    translated = gen_sync_client.translate(source, "operation.py")
    assert translated.removeprefix(gen_sync_client.HEADER.format(name="operation.py")).lstrip("\n") == expected


def test_nothing_async_is_left_in_the_sync_flavour() -> None:
    for file in gen_sync_client.TARGET.glob("*.py"):
        text = file.read_text()
        assert text.startswith(f"# Generated from _async/{file.name} by")
        assert not re.search(r"\b(async|await)\b|Async[A-Z]|\baio\b|asyncio", text.partition("\n")[2]), file.name


def test_both_flavours_have_the_same_signatures() -> None:
    groups = [
        name for name, value in inspect.getmembers(virtd_client.Client) if hasattr(value, "attrname") and name[0] != "_"
    ]
    assert len(groups) == 20
    sync = virtd_client.Client.connect("unix:/nowhere")
    other = virtd_client.AsyncClient.connect("unix:/nowhere")
    for group in groups:
        left, right = type(getattr(sync, group)), type(getattr(other, group))
        assert right.__name__ == f"Async{left.__name__}"
        methods = [name for name, value in vars(right).items() if callable(value) and name[0] != "_"]
        assert methods
        for method in methods:
            parameters = [inspect.signature(getattr(cls, method)).parameters for cls in (left, right)]
            assert list(parameters[0]) == list(parameters[1])
            assert [p.default for p in parameters[0].values()] == [p.default for p in parameters[1].values()]


# --- where it connects ------------------------------------------------------------------------------------


def test_the_default_target(tmp_path: Path) -> None:
    assert _target.default_target({}) == "unix:/run/virtd/virtd.sock"
    user = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert _target.default_target(user) == "unix:/run/virtd/virtd.sock"
    (tmp_path / "virtd").mkdir()
    (tmp_path / "virtd" / "virtd.sock").touch()
    assert _target.default_target(user) == f"unix:{tmp_path}/virtd/virtd.sock"
    assert _target.default_target({**user, "VIRTD_TARGET": "127.0.0.1:1"}) == "127.0.0.1:1"


def test_the_environment_is_read_by_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTD_TARGET", "unix:/a/b.sock")
    assert virtd_client.Client.connect().target == "unix:/a/b.sock"


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:///run/x.sock", "unix:/run/x.sock"),
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("127.9.9.9:1", "127.9.9.9:1"),
        ("localhost:50051", "localhost:50051"),
        ("[::1]:50051", "[::1]:50051"),
    ],
)
def test_targets(target: str, address: str) -> None:
    assert _target.parse_target(target).address == address


def test_a_relative_socket_is_beside_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _target.parse_target("unix:x.sock").address == f"unix:{tmp_path}/x.sock"


@pytest.mark.parametrize(
    "target",
    [
        "",
        "unix:",
        "unix:a\0b",
        "/run/x.sock",
        "localhost",
        "localhost:",
        ":1",
        "localhost:0",
        "localhost:70000",
        "localhost:x",
    ],
)
def test_targets_of_no_known_form(target: str) -> None:
    with pytest.raises(ValueError, match="target"):
        _target.parse_target(target)


@pytest.mark.parametrize(
    "target", ["10.0.0.1:50051", "kvm1.example:50051", "0.0.0.0:1", "[::]:1", "localhost.example:1"]
)
def test_nothing_goes_over_a_network_in_the_clear(target: str) -> None:
    with pytest.raises(ValueError, match="no TLS yet"):
        virtd_client.AsyncClient.connect(target)


def test_the_limits_and_keepalive_of_a_channel() -> None:
    options = dict(_target.parse_target("localhost:1").options)
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == 64 << 20
    assert options["grpc.keepalive_time_ms"] == 30_000
    assert options["grpc.keepalive_permit_without_calls"] == 0
    assert options["grpc.enable_http_proxy"] == 0


# --- the README -------------------------------------------------------------------------------------------


def test_the_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (PACKAGE.parent / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    guest = guest_pb2.Guest(name="hosts/local/guests/demo")
    running = operation("operations/1", stage="define", fraction=0.25)
    stopped = event_pb2.Event(revision=1, attributes={"state": "STOPPED"})
    batch = event_pb2.EventBatch(events=[stopped], resume_token="t1")
    with ScriptedServer() as server:
        monkeypatch.setenv("VIRTD_TARGET", server.target)
        server.on("CreateGuest", guest_service_pb2.CreateGuestResponse(operation=running))
        server.on("WaitOperation", operation("operations/1", stage="boot", fraction=1.0, response=guest))
        server.on("PullEvents", event_pb2.PullEventsResponse(resume_token="t0"))
        server.on("ShutdownGuest", guest_service_pb2.ShutdownGuestResponse(operation=running))
        server.on("WatchEvents", stream(event_pb2.WatchEventsResponse(events=batch), then=forever))
        exec(compile(example, "README.md", "exec"), {})
        assert [call.method for call in server.calls] == [
            "CreateGuest",
            "WaitOperation",
            "PullEvents",
            "ShutdownGuest",
            "WatchEvents",
        ]
    assert capsys.readouterr().out == "define 25%\nboot 100%\n"


# --- waiting ----------------------------------------------------------------------------------------------


def test_backoff_grows_to_its_limit_and_is_spread() -> None:
    backoffs = [_retry.Backoff(initial_s=0.1, max_s=2.0) for _ in range(200)]
    for ceiling in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        waits = [backoff.next_s() for backoff in backoffs]
        assert all(0.1 * ceiling <= wait <= ceiling for wait in waits)
        assert max(waits) - min(waits) > ceiling / 2
    assert _retry.Backoff().next_s(retry_after_s=9.0) == 9.0
    tired = _retry.Backoff(max_s=1.0)
    assert all(tired.next_s() <= 1.0 for _ in range(5000))


def test_deadlines() -> None:
    never = _retry.Deadline(None)
    assert never.remaining_s() is None
    assert never.at_most(7) == 7
    assert not never.passed
    now = _retry.Deadline(0)
    assert now.passed
    assert now.remaining_s() == 0
    assert now.at_most(7) == 0
    assert never.earlier(0).passed
    assert now.earlier(None).passed
    assert not _retry.Deadline(60).earlier(None).passed
    assert _retry.Deadline(60).earlier(0).passed
