"""libvirt's errors as contract errors: by code and domain, never by text.

The table follows ``virErrorNumber`` in libvirt's ``virterror.h``.  What has no entry becomes
BACKEND_ERROR, with the native call, code and message kept.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

import libvirt

from virtd.errors import (
    AGENT_NOT_READY,
    BACKEND_ERROR,
    CAPABILITY_UNSUPPORTED,
    DEADLINE_EXCEEDED,
    GUEST_EXISTS,
    GUEST_NOT_FOUND,
    HOST_UNREACHABLE,
    INVALID_STATE,
    NETWORK_NOT_FOUND,
    OPERATION_CANCELLED,
    POOL_NOT_FOUND,
    SNAPSHOT_NOT_FOUND,
    STORAGE_FULL,
    VOLUME_EXISTS,
    VOLUME_NOT_FOUND,
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    NativeError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
    UnsupportedError,
    VirtdError,
)

RETRY_AFTER_S: Final = 2.0

_Make = Callable[[Reason, str, NativeError], VirtdError]


def _plain(cls: type[VirtdError]) -> _Make:
    return lambda reason, message, native: cls(reason, message, native=native)


def _again(reason: Reason, message: str, native: NativeError) -> VirtdError:
    return UnavailableError(reason, message, native=native, retry_after_s=RETRY_AFTER_S)


_NOT_FOUND: Final = _plain(NotFoundError)
_EXISTS: Final = _plain(AlreadyExistsError)
_UNSUPPORTED: Final = _plain(UnsupportedError)

_BY_CODE: Final[dict[int, tuple[_Make, Reason, str]]] = {
    libvirt.VIR_ERR_NO_DOMAIN: (_NOT_FOUND, GUEST_NOT_FOUND, "the host has no such guest"),
    libvirt.VIR_ERR_DOM_EXIST: (_EXISTS, GUEST_EXISTS, "the host has a guest of this name"),
    libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT: (_NOT_FOUND, SNAPSHOT_NOT_FOUND, "the guest has no such snapshot"),
    libvirt.VIR_ERR_NO_STORAGE_POOL: (_NOT_FOUND, POOL_NOT_FOUND, "the host has no such pool"),
    libvirt.VIR_ERR_NO_STORAGE_VOL: (_NOT_FOUND, VOLUME_NOT_FOUND, "the pool has no such volume"),
    libvirt.VIR_ERR_STORAGE_VOL_EXIST: (_EXISTS, VOLUME_EXISTS, "the pool has a volume of this name"),
    libvirt.VIR_ERR_NO_NETWORK: (_NOT_FOUND, NETWORK_NOT_FOUND, "the host has no such network"),
    libvirt.VIR_ERR_NO_CONNECT: (_again, HOST_UNREACHABLE, "the hypervisor does not answer"),
    libvirt.VIR_ERR_INVALID_CONN: (_again, HOST_UNREACHABLE, "the connection is gone"),
    libvirt.VIR_ERR_AUTH_FAILED: (_again, HOST_UNREACHABLE, "the host refused virtd's credentials"),
    libvirt.VIR_ERR_AUTH_CANCELLED: (_again, HOST_UNREACHABLE, "the host asked for credentials that virtd has not"),
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: (_again, HOST_UNREACHABLE, "no way to authenticate to the host"),
    libvirt.VIR_ERR_OPERATION_INVALID: (
        _plain(FailedPreconditionError),
        INVALID_STATE,
        "not possible in the guest's present state",
    ),
    libvirt.VIR_ERR_NO_SUPPORT: (_UNSUPPORTED, CAPABILITY_UNSUPPORTED, "this hypervisor's driver cannot do it"),
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: (_UNSUPPORTED, CAPABILITY_UNSUPPORTED, "not supported for this guest"),
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: (_UNSUPPORTED, CAPABILITY_UNSUPPORTED, "not supported in this configuration"),
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: (_UNSUPPORTED, CAPABILITY_UNSUPPORTED, "an option is not supported here"),
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: (_again, AGENT_NOT_READY, "the guest agent does not answer"),
    libvirt.VIR_ERR_AGENT_UNSYNCED: (_again, AGENT_NOT_READY, "the guest agent is still busy with an older call"),
    libvirt.VIR_ERR_OPERATION_TIMEOUT: (
        _plain(DeadlineExceededError),
        DEADLINE_EXCEEDED,
        "the hypervisor gave up waiting",
    ),
    libvirt.VIR_ERR_OPERATION_ABORTED: (_plain(CancelledError), OPERATION_CANCELLED, "the native job was aborted"),
}

# virReportSystemError carries errno in int1, over the wire too.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# Domains whose errors are about the transport itself.
_TRANSPORT: Final = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})
_TRANSPORT_CODES: Final = frozenset(
    {
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_OPERATION_FAILED,
    }
)


def code_of(error: libvirt.libvirtError) -> int:
    """The error's code; VIR_ERR_INTERNAL_ERROR where the binding gave none."""
    code = error.get_error_code()
    return libvirt.VIR_ERR_INTERNAL_ERROR if code is None else int(code)


def native_of(error: libvirt.libvirtError, call: str) -> NativeError:
    """What libvirt said, verbatim."""
    return NativeError(call, str(code_of(error)), error.get_error_message() or str(error))


def is_transport(error: libvirt.libvirtError) -> bool:
    """Whether the error is about the way to the host rather than about the request."""
    return error.get_error_domain() in _TRANSPORT and code_of(error) in _TRANSPORT_CODES


def translate(error: libvirt.libvirtError, call: str, *, connection_alive: bool = True) -> VirtdError:
    """The contract error for a libvirt error.

    :param call: the native call that failed (``virDomainCreate``).
    :param connection_alive: False when the connection broke: whatever libvirt says then, all that is
        known is that the host did not answer.
    """
    native = native_of(error, call)
    code = code_of(error)
    if not connection_alive or is_transport(error):
        return _again(HOST_UNREACHABLE, f"the connection to the host was lost: {native.message}", native)
    if code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in _FULL:
        return ResourceExhaustedError(STORAGE_FULL, f"no space left on the host: {native.message}", native=native)
    entry = _BY_CODE.get(code)
    if entry is None:
        return InternalError(BACKEND_ERROR, f"{call} failed: {native.message}", native=native)
    make, reason, words = entry
    return make(reason, f"{words}: {native.message}", native)


def unreachable(message: str, *, call: str = "", retry_after_s: float = RETRY_AFTER_S) -> UnavailableError:
    """HOST_UNREACHABLE where no native error exists (a time-out, a host known to be away)."""
    native = NativeError(call, "", message) if call else None
    return UnavailableError(HOST_UNREACHABLE, message, native=native, retry_after_s=retry_after_s)
