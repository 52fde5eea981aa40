"""Plugins: one that is broken stops no other, and everybody can see why."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from virtd.backend.api import BackendDescriptor, OptionSchema
from virtd.backend.capabilities import absent, native
from virtd.backend.hookspecs import AdmitAnswer, AdmitRequest, hookimpl
from virtd.errors import FieldViolation, InternalError, InvalidArgumentError
from virtd.model.guest import GuestSpec
from virtd.model.host import Capability, CapabilityLevel, CapabilityProvenance
from virtd.model.operation import Operation
from virtd.plugins import PluginManager

DESCRIPTOR = BackendDescriptor("one", "One", "1", ("one",), (native("guest.lifecycle"),), "text")
REQUEST = AdmitRequest("somebody", "hosts/a", "hosts/a/guests/b", GuestSpec())


class Backend:
    def __init__(self, **changes: Any) -> None:
        self.descriptor = replace(DESCRIPTOR, **changes)

    async def discover(self) -> tuple[()]:
        return ()

    async def open(self, config: object) -> object:
        raise NotImplementedError


class Plugin:
    """Registers what it is given."""

    def __init__(self, *backends: object) -> None:
        self._backends = backends

    @hookimpl
    def virtd_register_backends(self, registry: Any) -> None:
        for backend in self._backends:
            registry.register(backend)


@pytest.fixture
def manager() -> PluginManager:
    return PluginManager()


# ------------------------------------------------------------------------------------- registering


def test_register(manager: PluginManager) -> None:
    backend = Backend()
    record = manager.register(Plugin(backend), "mine")
    assert record == manager.report[0]
    assert (record.name, record.backend_ids, record.init_error, record.blocked) == ("mine", ("one",), "", False)
    assert list(manager.backends) == ["one"]
    backends: Any = manager.backends
    assert backends["one"] is backend
    with pytest.raises(TypeError):
        backends["two"] = backend


def test_managers_share_nothing(manager: PluginManager) -> None:
    manager.register(Plugin(Backend()), "mine")
    assert not PluginManager().backends


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (Backend(id="two", uri_schemes=("two", "one")), "'one' of backend 'two' belongs to backend 'one'"),
        (Backend(uri_schemes=("other",)), "id 'one' is registered already"),
        (Backend(id="two", uri_schemes=()), "no uri_schemes"),
        (Backend(id="two", uri_schemes=("two", "two")), "'two' twice"),
        (Backend(id="two", uri_schemes=("",)), "is not a URI scheme"),
        (Backend(id="two", uri_schemes=("TWO",)), "is not a URI scheme"),
        (Backend(id="", uri_schemes=("two",)), "empty id"),
        (Backend(id="Two!", uri_schemes=("two",)), "is not a backend id"),
        (Backend(id="two", title="", uri_schemes=("two",)), "empty title"),
        (Backend(id="two", version="", uri_schemes=("two",)), "empty version"),
        (Backend(id="two", native_format="", uri_schemes=("two",)), "empty native_format"),
        (
            Backend(id="two", uri_schemes=("two",), capabilities=(native("guest.pause"), absent("guest.pause", "no"))),
            "'guest.pause' twice",
        ),
        (
            Backend(
                id="two",
                uri_schemes=("two",),
                capabilities=(Capability("x", CapabilityLevel.PARTIAL, CapabilityProvenance.DECLARED),),
            ),
            "PARTIAL without a reason",
        ),
        (Backend(id="two", uri_schemes=("two",), options=(OptionSchema("", "?"),)), "empty option"),
        (object(), "object.descriptor is not a BackendDescriptor"),
        (types.SimpleNamespace(descriptor=replace(DESCRIPTOR, id="two")), "discover is not an async method"),
    ],
)
def test_unusable_backend_is_refused(manager: PluginManager, backend: object, words: str) -> None:
    manager.register(Plugin(Backend()), "good")
    good_too = Backend(id="three", uri_schemes=("three",))
    record = manager.register(Plugin(good_too, backend), "bad")
    assert words in record.init_error
    assert record.backend_ids == ()
    # All or nothing: the bad plugin's usable backend is not taken either.
    assert list(manager.backends) == ["one"]


def test_a_hook_that_raises_disables_its_plugin_only(manager: PluginManager) -> None:
    class Broken:
        @hookimpl
        def virtd_register_backends(self, registry: Any) -> None:
            registry.register(Backend())
            message = "no\nluck"
            raise RuntimeError(message)

        @hookimpl
        def virtd_admit(self, request: AdmitRequest) -> AdmitAnswer:
            raise AssertionError

    assert manager.register(Broken(), "broken").init_error == "RuntimeError: no luck"
    assert manager.register(Plugin(Backend()), "good").backend_ids == ("one",)
    assert manager.admit(REQUEST) == AdmitAnswer(), "a disabled plugin's other hooks must not be called"


def test_a_misspelt_hook_is_an_error_with_a_suggestion(manager: PluginManager) -> None:
    class Misspelt(Plugin):
        @hookimpl
        def virtd_admitt(self, request: AdmitRequest) -> None: ...

    record = manager.register(Misspelt(Backend()), "misspelt")
    assert "there is no hook virtd_admitt; did you mean virtd_admit?" in record.init_error
    assert not manager.backends
    assert manager.register(Plugin(Backend()), "good").init_error == ""


def test_a_wrong_argument_is_an_error(manager: PluginManager) -> None:
    class Wrong(Plugin):
        @hookimpl
        def virtd_admit(self, request: AdmitRequest, more: int) -> None: ...

    assert "'more'" in manager.register(Wrong(Backend()), "wrong").init_error
    assert not manager.backends
    assert manager.register(Plugin(Backend()), "good").init_error == ""


def test_an_async_hook_is_an_error(manager: PluginManager) -> None:
    class Async(Plugin):
        @hookimpl
        async def virtd_admit(self, request: AdmitRequest) -> None: ...

    assert "virtd_admit must not be async" in manager.register(Async(Backend()), "async").init_error


def test_a_forgotten_marker_is_an_error(manager: PluginManager) -> None:
    class Unmarked:
        def virtd_register_backends(self, registry: Any) -> None: ...

    assert "is @hookimpl missing?" in manager.register(Unmarked(), "unmarked").init_error


def test_one_name_twice(manager: PluginManager) -> None:
    manager.register(Plugin(Backend()), "mine")
    second = manager.register(Plugin(Backend(id="two", uri_schemes=("two",))), "mine")
    assert "another plugin is called 'mine'" in second.init_error
    assert list(manager.backends) == ["one"]


# ------------------------------------------------------------------------------------ entry points


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Installs distributions of one module each."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def install(name: str, code: str) -> None:
        (tmp_path / f"plugin_{name}.py").write_text(code)
        information = tmp_path / f"virtd_backend_{name}-1.5.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: virtd-backend-{name}\nVersion: 1.5\n")
        (information / "entry_points.txt").write_text(f"[virtd.backends]\n{name} = plugin_{name}\n")
        made.append(f"plugin_{name}")

    yield install
    for module in made:
        sys.modules.pop(module, None)


def _entry_points(names: set[str]) -> list[importlib.metadata.EntryPoint]:
    return [entry for entry in importlib.metadata.entry_points(group="virtd.backends") if entry.name in names]


GOOD = """
from virtd.backend import hookimpl
from tests.unit.test_plugins import Backend

@hookimpl
def virtd_register_backends(registry):
    registry.register(Backend(id="{0}", uri_schemes=("{0}",)))
"""


def test_entry_points_are_loaded_one_by_one(manager: PluginManager, installed: Callable[[str, str], None]) -> None:
    installed("aaa", GOOD.format("aaa"))
    installed("broken", "import no_such_module_anywhere")
    installed("exits", "raise SystemExit(3)")
    installed("syntax", "def (:")
    installed("zzz", GOOD.format("zzz"))
    manager.load_entry_points(_entry_points({"aaa", "broken", "exits", "syntax", "zzz"}))
    records = {record.name: record for record in manager.report}
    assert list(records) == ["aaa", "broken", "exits", "syntax", "zzz"]
    assert list(manager.backends) == ["aaa", "zzz"]
    assert "no_such_module_anywhere" in records["broken"].init_error
    assert records["exits"].init_error.startswith("SystemExit")
    assert records["syntax"].init_error.startswith("SyntaxError")
    assert records["aaa"].source == "virtd-backend-aaa 1.5 (plugin_aaa)"


def test_blocked_plugins_are_not_imported(installed: Callable[[str, str], None]) -> None:
    installed("aaa", "raise AssertionError('imported')")
    installed("zzz", GOOD.format("zzz"))
    manager = PluginManager(blocked=["aaa"])
    manager.load_entry_points(_entry_points({"aaa", "zzz"}))
    blocked = manager.report[0]
    assert (blocked.name, blocked.blocked, blocked.init_error, blocked.backend_ids) == ("aaa", True, "", ())
    assert "plugin_aaa" not in sys.modules
    assert list(manager.backends) == ["zzz"]


def test_the_installed_fake_is_found(manager: PluginManager) -> None:
    manager.load_entry_points()
    fake = next(record for record in manager.report if record.name == "fake")
    assert fake.backend_ids == ("fake",)
    assert fake.distribution == "virtd"
    assert manager.backend_for_uri("fake:///x?guests=3") is manager.backends["fake"]


def test_loading_twice_changes_nothing(manager: PluginManager, installed: Callable[[str, str], None]) -> None:
    installed("aaa", GOOD.format("aaa"))
    entries = _entry_points({"aaa"})
    manager.load_entry_points([*entries, *entries])
    assert len(manager.report) == 1


# --------------------------------------------------------------------------------------------- URIs


def test_unknown_scheme_lists_the_known_ones(manager: PluginManager) -> None:
    manager.register(Plugin(Backend(uri_schemes=("one", "one+ssh"))), "mine")
    manager.register(object(), "broken")
    with pytest.raises(InvalidArgumentError) as caught:
        manager.backend_for_uri("qemu:///system")
    assert caught.value.reason.name == "CONFIG_INVALID"
    assert "'qemu'" in caught.value.message
    assert "one, one+ssh" in caught.value.message
    assert "failed to load: broken" in caught.value.message
    assert caught.value.record.violations[0].alternatives == ("one", "one+ssh")
    assert manager.backend_for_uri("one+ssh://root@host/x").descriptor.id == "one"


@pytest.mark.parametrize("uri", ["", "one", "/one", "//one/"])
def test_no_scheme(manager: PluginManager, uri: str) -> None:
    manager.register(Plugin(Backend()), "mine")
    with pytest.raises(InvalidArgumentError, match="has no scheme"):
        manager.backend_for_uri(uri)


def test_no_backends_at_all(manager: PluginManager) -> None:
    with pytest.raises(InvalidArgumentError, match="no backend is loaded"):
        manager.backend_for_uri("one:///")


# -------------------------------------------------------------------------------------------- hooks


class Check:
    """Answers or raises what it is given."""

    def __init__(self, answer: object) -> None:
        self._answer = answer
        self.finished: list[Operation] = []

    @hookimpl
    def virtd_admit(self, request: AdmitRequest) -> object:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    @hookimpl
    def virtd_operation_finished(self, operation: Operation) -> None:
        self.finished.append(operation)
        if isinstance(self._answer, BaseException):
            raise self._answer


def test_admit_collects_all_answers(manager: PluginManager) -> None:
    violation = FieldViolation("spec.vcpus", "too many")
    manager.register(Check(AdmitAnswer((violation,))), "refuses")
    manager.register(Check(None), "silent")
    manager.register(Check(AdmitAnswer(warnings=("hm",))), "warns")
    answer = manager.admit(REQUEST)
    assert answer.violations == (violation,)
    assert answer.warnings == ("hm",)


@pytest.mark.parametrize("answer", [RuntimeError("secret detail"), SystemExit(1), "yes", True])
def test_a_broken_admission_check_fails_closed(manager: PluginManager, answer: object) -> None:
    manager.register(Check(None), "good")
    manager.register(Check(answer), "bad")
    with pytest.raises(InternalError) as caught:
        manager.admit(REQUEST)
    assert caught.value.reason.name == "INTERNAL_ERROR"
    assert "'bad'" in caught.value.message
    assert "secret" not in caught.value.message


def test_operation_finished_reaches_everybody(manager: PluginManager, caplog: pytest.LogCaptureFixture) -> None:
    checks = [Check(None), Check(ValueError("x")), Check(None)]
    for index, check in enumerate(checks):
        manager.register(check, f"check-{index}")
    operation = Operation("operations/1", "start", "hosts/a/guests/b")
    manager.operation_finished(operation)
    assert [check.finished for check in checks] == [[operation]] * 3
    assert "check-1" in caplog.text


def test_without_plugins_everything_is_admitted(manager: PluginManager) -> None:
    assert manager.admit(REQUEST) == AdmitAnswer()
