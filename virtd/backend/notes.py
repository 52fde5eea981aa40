"""What becomes of fields, collected while a guest is designed."""

from __future__ import annotations

from dataclasses import dataclass, field

from virtd.backend.api import Fidelity, FieldVerdict


@dataclass(slots=True)
class Notes:
    """Verdicts in the order in which they were found, at most one rejection for each field."""

    verdicts: list[FieldVerdict] = field(default_factory=list)

    def reject(self, path: str, reason: str, *alternatives: str) -> None:
        """The field cannot be done."""
        if not self.rejected(path):
            self.verdicts.append(FieldVerdict(path, Fidelity.REJECTED, reason, alternatives))

    def emulate(self, path: str, reason: str) -> None:
        """The field is done by other means."""
        self.verdicts.append(FieldVerdict(path, Fidelity.EMULATED, reason))

    def degrade(self, path: str, reason: str) -> None:
        """The field is done in part."""
        self.verdicts.append(FieldVerdict(path, Fidelity.DEGRADED, reason))

    def ignore(self, path: str, reason: str) -> None:
        """The field has no effect."""
        self.verdicts.append(FieldVerdict(path, Fidelity.IGNORED, reason))

    def rejected(self, path: str) -> bool:
        """Whether the field was rejected already."""
        return any(known.field == path and known.fidelity is Fidelity.REJECTED for known in self.verdicts)
