"""The hooks that a plugin may implement.

A plugin is a module or object named by an entry point of the group ``virtd.backends``.  Hooks do
not do the work: a backend's hook *registers* a typed :class:`virtd.backend.api.Backend`, and all
calls then go through its methods (pluggy has no typed calls and no async hooks).

Every hook takes ONE request object, so that fields can be added without breaking plugins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import pluggy

if TYPE_CHECKING:
    from virtd.backend.api import Backend
    from virtd.errors import FieldViolation
    from virtd.model.guest import GuestSpec
    from virtd.model.operation import Operation

PROJECT: Final = "virtd"
ENTRY_POINT_GROUP: Final = "virtd.backends"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook of its name."""


class BackendRegistrar(Protocol):
    """What :func:`virtd_register_backends` is given."""

    def register(self, backend: Backend) -> None:
        """Add a backend.

        :raises ValueError: another backend has the same id, or the descriptor is not usable.
        """


@dataclass(frozen=True, slots=True)
class AdmitRequest:
    """A guest that is about to be created: who asks, where, and the spec after all defaults."""

    caller: str
    host: str
    guest: str
    spec: GuestSpec


@dataclass(frozen=True, slots=True)
class AdmitAnswer:
    """Violations refuse the request (FIELD_INVALID); warnings travel with the operation."""

    violations: tuple[FieldViolation, ...] = ()
    warnings: tuple[str, ...] = field(default=())


@hookspec
def virtd_register_backends(registry: BackendRegistrar) -> None:
    """Register this plugin's backends.

    Called once, at start-up, before any host is opened.  Must not do I/O.  An exception disables
    the plugin (it is shown as ``init_error`` by GetServerInfo) and no other.
    """


@hookspec
def virtd_admit(request: AdmitRequest) -> AdmitAnswer | None:
    """Look at a guest before it is created; refuse it or warn.

    Called synchronously on the event loop for each CreateGuest, after virtd's own validation and
    before any side effect: it must be quick and do no I/O.  None means "nothing to say".  An
    exception refuses the request with INTERNAL_ERROR: a broken admission check fails closed.
    """


@hookspec
def virtd_operation_finished(operation: Operation) -> None:
    """An operation has reached its terminal state, which is already durable.

    Called synchronously on the event loop; it must be quick.  An exception is logged and ignored.
    Called once for each end that this daemon sees; after a crash it can be missed.
    """
