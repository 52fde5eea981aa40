"""Identity and permissions: default deny, and a row for every RPC that is served."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from virtd.auth import TABLE, UNKNOWN, Peer, Permission, Policy, authorize, unix_peer
from virtd.auth import identity as identity_module
from virtd.auth.authz import EVERYTHING
from virtd.errors import PermissionDeniedError
from virtd.rpc.interceptors import WAITING
from virtd.rpc.server import RpcOptions, RpcServer
from virtd.service import Services

START = "/virtd.v1.GuestService/StartGuest"
POLICY = Policy(own_uid=1234, uids=frozenset({77}), gids=frozenset({500}))


def _served() -> set[str]:
    services: Any = SimpleNamespace(audit=None, operations=None)
    server = RpcServer(cast("Services", services), RpcOptions(runtime_directory=Path("/nowhere"), policy=POLICY))
    return {
        f"/{name}/{method.name}" for name, (descriptor, _) in server.served.items() for method in descriptor.methods
    }


def test_every_served_method_has_a_row_and_every_row_a_method() -> None:
    served = _served()
    assert START in served
    assert served - set(TABLE) == set(), "these could be called by nobody: add rows to virtd.auth.authz.TABLE"
    # The health protocol got List late; older releases of its library do not have it.
    assert set(TABLE) - served <= {"/grpc.health.v1.Health/List"}, "these rows belong to no method"
    assert served >= WAITING


def test_every_permission_is_used() -> None:
    assert {rule.permission for rule in TABLE.values()} == set(Permission)


def test_what_changes_something_is_audited() -> None:
    reading = ("Get", "List", "Wait", "Watch", "Pull", "Read", "Take", "Follow", "Probe", "Plan", "Check", "Diagnose")
    reading += ("ServerReflection",)
    for method, rule in TABLE.items():
        # What a guest keeps in its files is its own: who has read them is written down.
        reads = method.rpartition("/")[2].startswith(reading) and not method.endswith("/ReadFile")
        assert rule.audited != reads, method


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        (Peer("unix", uid=0, gid=0), True),
        (Peer("unix", uid=1234, gid=9), True),
        (Peer("unix", uid=77, gid=9), True),
        (Peer("unix", uid=5, gid=9, groups=frozenset({9, 500})), True),
        (Peer("unix", uid=5, gid=500, groups=frozenset({9})), False),  # groups is the whole list
        (Peer("unix", uid=5, gid=9, groups=frozenset({9, 501})), False),
        (Peer("tcp", address="127.0.0.1"), False),
        (Peer("unknown", uid=0), False),
        (UNKNOWN, False),
    ],
)
def test_the_policy(peer: Peer, allowed: bool) -> None:
    if allowed:
        assert authorize(POLICY, peer, START).permission is Permission.GUESTS_OPERATE
    else:
        with pytest.raises(PermissionDeniedError) as caught:
            authorize(POLICY, peer, START)
        assert caught.value.record.metadata["permission"] == "guests.operate"
    assert authorize(POLICY, peer, "/grpc.health.v1.Health/Check").permission is Permission.HEALTH


def test_tcp_only_if_the_administrator_says_so() -> None:
    open_policy = Policy(own_uid=1, tcp=True)
    assert open_policy.permissions(Peer("tcp", address="127.0.0.1")) == EVERYTHING
    assert open_policy.permissions(Peer("unix", uid=5, gid=5)) == frozenset()


def test_a_method_without_a_row_is_denied_to_root() -> None:
    with pytest.raises(PermissionDeniedError, match="no row"):
        authorize(POLICY, Peer("unix", uid=0, gid=0), "/virtd.v1.GuestService/Frobnicate")


def test_the_kernels_word() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        peer = unix_peer(ours)
    assert (peer.kind, peer.uid, peer.gid, peer.pid) == ("unix", os.geteuid(), os.getegid(), os.getpid())
    assert peer.groups == {os.getegid(), *os.getgroups()}
    assert peer.caller == f"unix:uid={os.geteuid()}"


def test_an_old_kernel_is_asked_for_the_accounts_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_module, "_SO_PEERGROUPS", 9999)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert os.getegid() in unix_peer(ours).groups
    assert identity_module._account_groups(4_000_000, 3) == [], "no such account"


def test_a_socket_that_is_none() -> None:
    with socket.socket() as tcp:
        # Not connected and not unix: the kernel has nobody to name, and says -1, which no policy knows.
        peer = unix_peer(tcp)
    assert peer.uid == 2**32 - 1
    assert POLICY.permissions(peer) == frozenset()


def test_callers() -> None:
    assert Peer("tcp", address="::1").caller == "tcp:::1"
    assert UNKNOWN.caller == "unknown"
