"""What validation is made of: a collector of violations, and the checks that every part of a spec shares."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

from virtd.errors import FIELD_INVALID, FieldViolation, InvalidArgumentError
from virtd.model.names import shown

TEXT_MAX: Final = 256
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
PART_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Violations:
    """Collects what is wrong; raises it all at once."""

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    def add(self, field: str, description: str, *alternatives: str) -> None:
        """One more."""
        self.found.append(FieldViolation(field, description, alternatives))

    def check(self) -> None:
        """Raise if there is any.

        :raises InvalidArgumentError: FIELD_INVALID with all of them.
        """
        if self.found:
            raise InvalidArgumentError(
                FIELD_INVALID,
                "; ".join(f"{violation.field}: {violation.description}" for violation in self.found[:5]),
                violations=tuple(self.found),
            )


def check_path_form(wrong: Violations, path: str, field: str) -> None:
    """A path of the host: there, absolute and of sane length."""
    if not path:
        wrong.add(field, "is required")
    elif CONTROL.search(path) or len(path) > os.pathconf("/", "PC_PATH_MAX"):
        wrong.add(field, "must be a path without control characters")
    elif not path.startswith("/"):
        wrong.add(field, f"{shown(path)} must be an absolute path")


def check_part_names(wrong: Violations, names: Iterable[str], prefix: str) -> None:
    """Names of the parts of one kind: well formed, and each once."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not PART_NAME.fullmatch(name):
            wrong.add(
                f"{prefix}[{index}].name",
                f"{shown(name)} is not a valid name: use 1 to 63 lower-case letters, digits or '-'",
            )
        elif name in seen:
            wrong.add(f"{prefix}[{index}].name", f"{name} is used twice")
        seen.add(name)
