"""Exit codes of guestctl: a public contract, see docs/reference/exit-codes.md."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """What a script learns from a command without reading its output."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    CONFLICT = 5
    UNSUPPORTED = 6
    UNREACHABLE = 7
    PARTIAL = 8
    DIFFERENT = 10
    TIMEOUT = 124
    INTERRUPTED = 130
    BROKEN_PIPE = 141


_BY_REASON: Final = {
    "FIELD_UNSUPPORTED": Exit.UNSUPPORTED,
    "CAPABILITY_UNSUPPORTED": Exit.UNSUPPORTED,
    "OPERATION_CANCELLED": Exit.FAILED,
    "OPERATION_INTERRUPTED": Exit.FAILED,
    "RESUME_TOKEN_EXPIRED": Exit.CONFLICT,
}
"""Reasons that say more than their kind does."""

_BY_KIND: Final = {
    "InvalidArgument": Exit.USAGE,
    "OutOfRange": Exit.USAGE,
    "NotFound": Exit.NOT_FOUND,
    "PermissionDenied": Exit.NOT_ALLOWED,
    "Unauthenticated": Exit.NOT_ALLOWED,
    "AlreadyExists": Exit.CONFLICT,
    "FailedPrecondition": Exit.CONFLICT,
    "Conflict": Exit.CONFLICT,
    "Aborted": Exit.CONFLICT,
    "Unsupported": Exit.UNSUPPORTED,
    "Unimplemented": Exit.UNSUPPORTED,
    "Unavailable": Exit.UNREACHABLE,
    "DeadlineExceeded": Exit.TIMEOUT,
}


def for_error(kind: str, reason: str) -> Exit:
    """The exit code of an error by its kind (``NotFound``) and reason (``GUEST_NOT_FOUND``)."""
    return _BY_REASON.get(reason) or _BY_KIND.get(kind, Exit.FAILED)


def together(codes: list[Exit]) -> Exit:
    """The exit code of a command that did several things.

    All alike: that code.  Some done and some not: PARTIAL.  Nothing done, for several causes: FAILED.
    """
    kinds = set(codes)
    if not kinds:
        return Exit.DONE
    if len(kinds) == 1:
        return codes[0]
    return Exit.PARTIAL if Exit.DONE in kinds or Exit.PARTIAL in kinds else Exit.FAILED
