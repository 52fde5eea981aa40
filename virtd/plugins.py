"""Finding backends: entry points, the block list, and a registrar that checks what it is given.

One plugin that cannot be imported, misspells a hook, or registers something unusable is recorded
with its ``init_error`` and stops no other (GetServerInfo shows the records).  pluggy *finds*
plugins; calls to a backend go through the typed Protocols of :mod:`virtd.backend.api`.

A :class:`PluginManager` is an ordinary object: the composition root makes one, tests make many.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import pluggy

from virtd.backend import hookspecs
from virtd.backend.api import Backend, BackendDescriptor
from virtd.backend.hookspecs import ENTRY_POINT_GROUP, PROJECT, AdmitAnswer, AdmitRequest
from virtd.errors import CONFIG_INVALID, INTERNAL_ERROR, FieldViolation, InternalError, InvalidArgumentError
from virtd.model.host import CapabilityLevel
from virtd.model.operation import Operation

_log = logging.getLogger(__name__)

_BACKEND_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
# A plugin may end the interpreter on import (a script taken for a module): that is its error, not ours.
_PLUGIN_FAULTS: Final = (Exception, SystemExit)


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One plugin as it was found.

    :param name: the entry point's name: what the block list in the configuration names.
    :param distribution: the distribution that brings it (``virtd-backend-kvm``), or ``""``.
    :param version: that distribution's version, or ``""``.
    :param entry_point: what the entry point names (``virtd_kvm.plugin``), or ``""``.
    :param backend_ids: the backends that it registered and that are in use.
    :param init_error: why it is not in use, or ``""``.  One line, for a person.
    :param blocked: the configuration blocks it; it was not imported.
    """

    name: str
    distribution: str = ""
    version: str = ""
    entry_point: str = ""
    backend_ids: tuple[str, ...] = ()
    init_error: str = ""
    blocked: bool = False

    @property
    def source(self) -> str:
        """Where it comes from, for a person: ``virtd-backend-kvm 0.1.0 (virtd_kvm.plugin)``."""
        origin = f"{self.distribution} {self.version}".strip()
        return f"{origin} ({self.entry_point})".strip() if self.entry_point else origin


class _Registrar:
    """What one plugin's ``virtd_register_backends`` is given.  Nothing counts until the hook has returned."""

    def __init__(self, taken: Mapping[str, Backend]) -> None:
        self._taken = dict(taken)
        self.added: list[Backend] = []

    def register(self, backend: Backend) -> None:
        """Check a backend's descriptor and take it.

        :raises ValueError: the descriptor is not usable, or its id or a scheme is taken.
        """
        descriptor = _usable_descriptor(backend)
        if descriptor.id in self._taken:
            raise ValueError(f"a backend with the id {descriptor.id!r} is registered already")
        for other in self._taken.values():
            for scheme in descriptor.uri_schemes:
                if scheme in other.descriptor.uri_schemes:
                    raise ValueError(
                        f"the URI scheme {scheme!r} of backend {descriptor.id!r} belongs to backend "
                        f"{other.descriptor.id!r} already"
                    )
        self._taken[descriptor.id] = backend
        self.added.append(backend)


def _usable_descriptor(backend: Backend) -> BackendDescriptor:
    descriptor = getattr(backend, "descriptor", None)
    if not isinstance(descriptor, BackendDescriptor):
        raise ValueError(f"{type(backend).__name__}.descriptor is not a BackendDescriptor")  # noqa: TRY004 - the registrar's contract names ValueError
    for method in ("discover", "open"):
        if not inspect.iscoroutinefunction(getattr(backend, method, None)):
            raise ValueError(f"{type(backend).__name__}.{method} is not an async method")
    for name in ("id", "title", "version", "native_format"):
        if not getattr(descriptor, name):
            raise ValueError(f"the backend's descriptor has an empty {name}")
    if not _BACKEND_ID.fullmatch(descriptor.id):
        raise ValueError(f"{descriptor.id!r} is not a backend id: use lower-case letters, digits and '-'")
    if not descriptor.uri_schemes:
        raise ValueError(f"backend {descriptor.id!r} names no uri_schemes")
    for scheme in descriptor.uri_schemes:
        if not _SCHEME.fullmatch(scheme):
            raise ValueError(f"{scheme!r} of backend {descriptor.id!r} is not a URI scheme")
    _check_lists(descriptor)
    return descriptor


def _check_lists(descriptor: BackendDescriptor) -> None:
    _no_twice(descriptor.uri_schemes, "URI scheme", descriptor.id)
    _no_twice((entry.id for entry in descriptor.capabilities), "capability", descriptor.id)
    _no_twice((option.name for option in descriptor.options), "option", descriptor.id)
    for entry in descriptor.capabilities:
        if entry.level is not CapabilityLevel.NATIVE and not entry.reason:
            raise ValueError(f"capability {entry.id!r} of backend {descriptor.id!r} is {entry.level} without a reason")


def _no_twice(values: Iterable[str], what: str, backend: str) -> None:
    seen: set[str] = set()
    for value in values:
        if not value:
            raise ValueError(f"backend {backend!r} has an empty {what}")
        if value in seen:
            raise ValueError(f"backend {backend!r} names the {what} {value!r} twice")
        seen.add(value)


class PluginManager:
    """Loads plugins and keeps what they registered.

    :param blocked: names of entry points that are not imported at all.

    Not thread-safe: it is filled at start-up and only read afterwards.
    """

    def __init__(self, blocked: Iterable[str] = ()) -> None:
        self._blocked = frozenset(blocked)
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._hook_names = tuple(sorted(vars(self._pluggy.hook)))
        self._backends: dict[str, Backend] = {}
        self._records: list[PluginRecord] = []

    # ---------------------------------------------------------------------------- what there is

    @property
    def backends(self) -> Mapping[str, Backend]:
        """The backends in use, by id."""
        return MappingProxyType(self._backends)

    @property
    def report(self) -> Sequence[PluginRecord]:
        """Every plugin that was found, in the order of loading, the blocked and the broken included."""
        return tuple(self._records)

    @property
    def schemes(self) -> Mapping[str, str]:
        """Every URI scheme that can be used now, with the id of its backend."""
        return {scheme: id_ for id_, backend in self._backends.items() for scheme in backend.descriptor.uri_schemes}

    def backend_for_uri(self, uri: str) -> Backend:
        """The backend that takes this host URI.

        :raises InvalidArgumentError: CONFIG_INVALID; the message lists the known schemes.
        """
        schemes = self.schemes
        scheme, colon, _ = uri.partition(":")
        if colon and scheme in schemes:
            return self._backends[schemes[scheme]]
        known = ", ".join(sorted(schemes)) or "none: no backend is loaded"
        wrong = f"no backend takes the scheme {scheme[:40]!r}" if colon else "the host URI has no scheme"
        broken = [record.name for record in self._records if record.init_error]
        hint = f"; plugins that failed to load: {', '.join(broken)}" if broken else ""
        raise InvalidArgumentError(
            CONFIG_INVALID,
            f"{wrong} (known schemes: {known}){hint}",
            violations=(FieldViolation("uri", wrong, tuple(sorted(schemes))),),
        )

    # ---------------------------------------------------------------------------------- loading

    def load_entry_points(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        """Load every plugin of the group ``virtd.backends``, each on its own.

        :param entry_points: for tests: these instead of the installed ones.
        """
        found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP) if entry_points is None else entry_points
        loaded: set[tuple[str, str, str]] = set()
        # Sorted, so that a clash of two plugins has the same loser on every machine.
        for entry in sorted(found, key=lambda entry: (entry.name, entry.value)):
            distribution = entry.dist.name if entry.dist else ""
            # A distribution can be seen twice, by a path that is on sys.path in two spellings.
            key = (entry.name, entry.value, distribution)
            if key not in loaded:
                loaded.add(key)
                self._load(entry, distribution, entry.dist.version if entry.dist else "")

    def register(self, plugin: object, name: str) -> PluginRecord:
        """Register a plugin that is already imported (for tests and embedders).

        :returns: its record; a fault is in ``init_error``, nothing is raised.
        """
        return self._add(lambda: plugin, PluginRecord(name))

    def _load(self, entry: importlib.metadata.EntryPoint, distribution: str, version: str) -> None:
        record = PluginRecord(entry.name, distribution, version, entry.value)
        if entry.name in self._blocked:
            self._keep(record, blocked=True)
            return
        self._add(entry.load, record)

    def _add(self, load: Callable[[], object], record: PluginRecord) -> PluginRecord:
        if self._pluggy.has_plugin(record.name):
            return self._keep(record, error=f"another plugin is called {record.name!r} as well")
        plugin: object = None
        try:
            plugin = load()
            self._pluggy.register(plugin, record.name)
            self._check_hooks(plugin)
            registrar = _Registrar(self._backends)
            self._caller("virtd_register_backends", plugin)(registry=registrar)
        except _PLUGIN_FAULTS as error:
            if plugin is not None and self._pluggy.get_name(plugin) == record.name:
                self._pluggy.unregister(plugin)
            _log.warning("plugin %s is not used: %s", record.name, error, exc_info=error)
            return self._keep(record, error=f"{type(error).__name__}: {error}".replace("\n", " "))
        for backend in registrar.added:
            self._backends[backend.descriptor.id] = backend
        return self._keep(record, backends=tuple(backend.descriptor.id for backend in registrar.added))

    def _keep(
        self, record: PluginRecord, *, error: str = "", blocked: bool = False, backends: tuple[str, ...] = ()
    ) -> PluginRecord:
        kept = PluginRecord(
            record.name, record.distribution, record.version, record.entry_point, backends, error, blocked
        )
        self._records.append(kept)
        return kept

    def _check_hooks(self, plugin: object) -> None:
        """What pluggy's ``check_pending`` looks for, but only in this plugin, and with a suggestion."""
        callers = self._pluggy.get_hookcallers(plugin) or []
        for caller in callers:
            if not caller.has_spec():
                raise pluggy.PluginValidationError(
                    plugin, f"there is no hook {caller.name}{self._suggest(caller.name)}"
                )
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and inspect.iscoroutinefunction(implementation.function):
                    # pluggy would hand out the bare coroutine: the hook would never run.
                    raise pluggy.PluginValidationError(plugin, f"the hook {caller.name} must not be async")
        if not callers:
            near = [self._suggest(name) for name in dir(plugin) if name.startswith(f"{PROJECT}_")]
            why = "; is @hookimpl missing?" if near else ""
            raise pluggy.PluginValidationError(plugin, f"it implements no hook of {PROJECT}{why}")

    def _suggest(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._hook_names, n=1)
        return f"; did you mean {near[0]}?" if near else f"; the hooks are {', '.join(self._hook_names)}"

    def _caller(self, hook: str, plugin: object) -> pluggy.HookCaller:
        others = [other for other in self._pluggy.get_plugins() if other is not plugin]
        return self._pluggy.subset_hook_caller(hook, others)

    def _callers(self, hook: str) -> list[tuple[str, pluggy.HookCaller]]:
        """One caller per plugin that implements the hook, so that one's fault is known to be its own."""
        caller: pluggy.HookCaller = getattr(self._pluggy.hook, hook)
        return [(impl.plugin_name, self._caller(hook, impl.plugin)) for impl in caller.get_hookimpls()]

    # ------------------------------------------------------------------------------------ hooks

    def admit(self, request: AdmitRequest) -> AdmitAnswer:
        """Ask every plugin about a guest that is about to be created.

        :returns: all violations and warnings together.
        :raises InternalError: INTERNAL_ERROR, a check raised or answered nonsense: it fails closed.
        """
        violations: list[FieldViolation] = []
        warnings: list[str] = []
        for name, caller in self._callers("virtd_admit"):
            try:
                answers = caller(request=request)
            except _PLUGIN_FAULTS as error:
                _log.exception("the admission check of plugin %s failed", name)
                raise _broken_check(name) from error
            for answer in answers:
                if not isinstance(answer, AdmitAnswer):
                    _log.error("the admission check of plugin %s answered %r, not an AdmitAnswer", name, answer)
                    raise _broken_check(name)
                violations.extend(answer.violations)
                warnings.extend(answer.warnings)
        return AdmitAnswer(tuple(violations), tuple(warnings))

    def operation_finished(self, operation: Operation) -> None:
        """Tell every plugin that an operation has ended.  Never raises: faults are logged."""
        for name, caller in self._callers("virtd_operation_finished"):
            try:
                caller(operation=operation)
            except _PLUGIN_FAULTS:
                _log.exception("virtd_operation_finished of plugin %s failed", name)


def _broken_check(plugin: str) -> InternalError:
    return InternalError(
        INTERNAL_ERROR,
        f"the admission check of plugin {plugin!r} failed, so the guest is refused",
        metadata={"plugin": plugin},
    )
