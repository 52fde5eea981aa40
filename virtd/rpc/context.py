"""What is known of the RPC that is being served; follows the work through ``await``."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, cast

import grpc

from virtd.auth import UNKNOWN, Peer
from virtd.rpc.requests import fingerprint
from virtd.service.call import Call
from virtd.v1 import capability_pb2

_MARGIN_S: Final = 0.1
_LEAST_S: Final = 0.001

Context = grpc.aio.ServicerContext[Any, Any]


def remaining(context: Context) -> float | None:
    """Seconds until the caller's deadline; None when it set none (gRPC's stubs do not know that)."""
    return cast("float | None", context.time_remaining())


@dataclass(slots=True, eq=False)
class Rpc:
    """One RPC.  ``resource``, ``request_id`` and ``operation`` are filled in as they become known.

    ``draining`` is set when the daemon stops and this RPC has been asked to end.
    """

    method: str
    rpc_id: str
    context: Context
    peer: Peer = UNKNOWN
    resource: str = ""
    request_id: str = ""
    operation: str = ""
    validate_only: bool = False
    draining: bool = False
    task: asyncio.Task[Any] | None = field(default=None, repr=False)

    @property
    def caller(self) -> str:
        """The authenticated identity."""
        return self.peer.caller

    def call(self, request: Any) -> Call:
        """What the service is told of this RPC.  ``request`` has been checked."""
        policy = getattr(request, "on_conflict", 0)
        return Call(
            caller=self.caller,
            method=self.method,
            rpc_id=self.rpc_id,
            request_id=getattr(request, "request_id", "").lower(),
            fingerprint=fingerprint(self.method, request),
            validate_only=getattr(request, "validate_only", False),
            reject_conflict=policy == capability_pb2.CONFLICT_POLICY_REJECT,
        )

    def within_deadline(self, seconds: float) -> float:
        """``seconds``, or less where the caller's deadline comes first.

        A little is kept back, so that the answer "not yet" arrives before the caller gives up.
        Never zero, which services take for "not said".
        """
        left = remaining(self.context)
        return seconds if left is None else max(_LEAST_S, min(seconds, left - _MARGIN_S))


CURRENT: Final[ContextVar[Rpc]] = ContextVar("rpc")


def current() -> Rpc:
    """The RPC that is being served here.

    :raises LookupError: none is.
    """
    return CURRENT.get()
