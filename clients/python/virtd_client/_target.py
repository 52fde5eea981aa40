"""Where the daemon listens, and how a channel to it is set up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

TARGET_VARIABLE: Final = "VIRTD_TARGET"
SYSTEM_SOCKET: Final = "/run/virtd/virtd.sock"
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

ChannelOption = tuple[str, str | int]

_OPTIONS: Final[tuple[ChannelOption, ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A daemon that is stopped or a network that drops everything is noticed within 40 s, on streams
    # too. Never while idle: servers punish that.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A restarted daemon is found again in about a second; gRPC's default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # How long one attempt to connect may take (its name misleads).
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # Clients in one process do not share connections, and so neither one's state of reconnecting.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed target: the address for gRPC, and the options of its channel."""

    address: str
    options: tuple[ChannelOption, ...]

    def __str__(self) -> str:
        return self.address


def default_target(environment: Mapping[str, str] | None = None) -> str:
    """``$VIRTD_TARGET``; else the socket of the user's own daemon where there is one; else the system's."""
    env = os.environ if environment is None else environment
    if target := env.get(TARGET_VARIABLE):
        return target
    if runtime := env.get("XDG_RUNTIME_DIR"):
        own = Path(runtime) / "virtd" / "virtd.sock"
        if own.exists():
            return f"unix:{own}"
    return f"unix:{SYSTEM_SOCKET}"


def parse_target(target: str | None) -> Target:
    """Parse ``unix:PATH`` or ``HOST:PORT``; None: :func:`default_target`.

    :raises ValueError: another form, or a host that is not this machine: without TLS, which is not
        there yet, everybody on the way could read and change everything.
    """
    text = default_target() if target is None else target
    scheme, separator, path = text.partition(":")
    if scheme == "unix":
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path or "\0" in path:
            raise ValueError(f"target {text!r}: unix: is followed by the path of a socket")
        # The default authority would be the escaped path, which some servers refuse.
        return Target(f"unix:{Path(path).absolute()}", (*_OPTIONS, ("grpc.default_authority", "localhost")))
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"target {text!r}: expected unix:PATH or HOST:PORT")
    if not _is_loopback(host):
        raise ValueError(
            f"target {text!r}: {host} is not this machine, and this client speaks no TLS yet; "
            "forward the daemon's socket instead: ssh -L /tmp/virtd.sock:/run/virtd/virtd.sock"
        )
    # No proxy stands between this machine and itself, whatever http_proxy says.
    return Target(text, (*_OPTIONS, ("grpc.enable_http_proxy", 0)))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
