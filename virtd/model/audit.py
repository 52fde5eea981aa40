"""Audit records: who asked for what, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One call that changes something or was denied.  ``outcome`` is ``OK`` or a reason's name."""

    sequence: int
    time: datetime
    caller: str
    method: str
    resource: str
    request_id: str
    outcome: str
    operation: str = ""
