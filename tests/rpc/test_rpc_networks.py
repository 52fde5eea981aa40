"""The methods of NetworkService reach the service with what was sent, and answer with what it gave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.rpc.rpc_fakes import Fakes, Running, error_of, running
from virtd.model.network import DhcpRange, DhcpReservation, NetworkMode, NetworkSpec
from virtd.v1 import capability_pb2
from virtd.v1 import network_pb2 as pb

S = "/virtd.v1.NetworkService/"
NAME = "hosts/a/networks/n"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, Fakes()) as made:
        yield made


async def send(daemon: Running, method: str, request: Any) -> Any:
    return await daemon.unary(S + method, getattr(pb, f"{method}Response"))(request)


async def test_a_network_is_made_of_its_specification(daemon: Running) -> None:
    spec = pb.NetworkSpec(
        mode=pb.NETWORK_MODE_NAT,
        cidr="10.0.0.0/24",
        dhcp_range=pb.DhcpRange(start="10.0.0.9", end="10.0.0.10"),
        domain="lab",
        reservations=[pb.DhcpReservation(mac="m", address="b", hostname="h")],
        autostart=True,
    )
    request = pb.CreateNetworkRequest(parent="hosts/a", network_id="n", network=spec)
    assert (await send(daemon, "CreateNetwork", request)).operation.name == "operations/1"
    call, *arguments = daemon.fakes.arguments("networks.create")
    assert not call.reject_conflict
    assert arguments == [
        "a",
        "n",
        NetworkSpec(
            NetworkMode.NAT,
            "10.0.0.0/24",
            DhcpRange("10.0.0.9", "10.0.0.10"),
            domain="lab",
            reservations=(DhcpReservation("m", "b", "h"),),
            autostart=True,
        ),
    ]
    request.validate_only = True

    async def plan_only(*_: Any) -> str:
        return "<network/>"

    daemon.fakes.hooks["networks.create"] = plan_only
    plan = await send(daemon, "CreateNetwork", request)
    assert plan.native == "<network/>"
    assert not plan.HasField("operation")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CreateNetworkRequest(parent="hosts/a", network_id="n"), "network"),
        (pb.CreateNetworkRequest(parent="hosts/a", network_id="n", network=pb.NetworkSpec(cidr="x")), "network.mode"),
        (pb.CreateNetworkRequest(parent="hosts/a", network=pb.NetworkSpec(mode=pb.NETWORK_MODE_NAT)), "network_id"),
        (pb.CreateNetworkRequest(parent="a", network_id="n"), "parent"),
    ],
)
async def test_what_is_missing_is_named(daemon: Running, request_: Any, field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(daemon, "CreateNetwork", request_)
    error = error_of(caught.value)
    assert error.reason == "FIELD_INVALID"
    assert [violation.field for violation in error.violations] == [field]


@pytest.mark.parametrize("verb", ["start", "stop", "delete"])
async def test_verbs_of_one_network(daemon: Running, verb: str) -> None:
    method = f"{verb.capitalize()}Network"
    request = getattr(pb, f"{method}Request")(name=NAME, on_conflict=capability_pb2.CONFLICT_POLICY_REJECT)
    assert (await send(daemon, method, request)).operation.name == "operations/1"
    call, *arguments = daemon.fakes.arguments(f"networks.{verb}")
    assert call.reject_conflict
    assert arguments == ["a", "n"]


@pytest.mark.parametrize("autostart", [None, True, False])
async def test_an_update_tells_what_was_said_from_what_was_not(daemon: Running, autostart: bool | None) -> None:
    request = pb.UpdateNetworkRequest(
        name=NAME,
        autostart=autostart,
        set_reservations=[pb.DhcpReservation(mac="m", address="b")],
        remove_reservations=["c"],
    )
    await send(daemon, "UpdateNetwork", request)
    assert daemon.fakes.arguments("networks.update")[1:] == (
        "a", "n", autostart, [DhcpReservation("m", "b")], ["c"],
    )  # fmt: skip


async def test_leases(daemon: Running) -> None:
    found = await send(daemon, "ListLeases", pb.ListLeasesRequest(parent=NAME))
    (lease,) = found.leases
    assert (lease.mac, lease.address, lease.prefix_length) == ("52:54:00:00:00:01", "10.0.0.2", 24)
    assert (lease.hostname, lease.guest) == ("g", "hosts/a/guests/g")
    assert lease.expire_time.seconds > 0
    assert found.next_page_token == "more"
