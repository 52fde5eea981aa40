"""Operations: every change that takes time is one, and outlives the call that asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from virtd.errors import ErrorRecord


class OperationState(StrEnum):
    """PENDING (queued) -> RUNNING -> exactly one of SUCCEEDED, FAILED, CANCELLED, for ever."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether nothing can change any more."""
        return self in (OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED)


@dataclass(frozen=True, slots=True)
class OperationNote:
    """One line of the reason trail: what was decided or noticed on the way, and when."""

    time: datetime
    message: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as it is now.  ``name`` is ``operations/{id}``.

    ``target`` is the resource it works on, ``verb`` the RPC's verb in lower case (``create``).
    ``fraction`` is 0..1, or None while it cannot be known; ``stage`` is one of ``stages``.
    ``waiting_for`` is the host whose return it waits for (``hosts/{host}``); empty while it works.
    ``result`` is the name of the resource that the response carries (empty for a deletion).
    """

    name: str
    verb: str
    target: str
    state: OperationState = OperationState.PENDING
    stage: str = ""
    stages: tuple[str, ...] = ()
    fraction: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    cancellable: bool = True
    cancel_requested: bool = False
    caller: str = ""
    request_id: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[OperationNote, ...] = ()
    error: ErrorRecord | None = None
    result: str = ""
    result_data: Mapping[str, str] = field(default_factory=dict)
    revision: int = 0
    recovered: bool = False
    waiting_for: str = ""
    create_time: datetime | None = None
    start_time: datetime | None = None
    update_time: datetime | None = None
    end_time: datetime | None = None
