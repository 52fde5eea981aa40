"""Schedules, and the newer fields of snapshots, through the daemon's API on a fake host."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from tests.rpc.rpc_fakes import error_of
from tests.rpc.test_rpc_daemon import GUEST, SPEC, _ended, channel
from virtd.v1 import guest_pb2, guest_service_pb2, guest_service_pb2_grpc, snapshot_pb2, snapshot_pb2_grpc
from virtd.v1 import schedule_pb2 as pb
from virtd.v1 import schedule_pb2_grpc as pb_grpc

__all__ = ["channel"]


async def create_guest(channel: Any) -> None:
    guests = guest_service_pb2_grpc.GuestServiceStub(channel)
    request = guest_service_pb2.CreateGuestRequest(parent="hosts/lab", guest_id="one", guest=guest_pb2.Guest(spec=SPEC))
    assert (await _ended(channel, (await guests.CreateGuest(request)).operation)).HasField("response")


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return str(error_of(error.value).reason)


async def test_the_life_of_a_schedule(channel: Any) -> None:
    await create_guest(channel)
    stub = pb_grpc.ScheduleServiceStub(channel)
    wanted = pb.Schedule(guest=GUEST, every_s=3600, snapshot=pb.SnapshotAction(), retention=pb.Retention(keep_last=3))
    checked = await stub.CreateSchedule(pb.CreateScheduleRequest(schedule_id="s", schedule=wanted, validate_only=True))
    assert checked.schedule.status.HasField("next_run_time")
    assert not (await stub.ListSchedules(pb.ListSchedulesRequest())).schedules
    made = (await stub.CreateSchedule(pb.CreateScheduleRequest(schedule_id="s", schedule=wanted))).schedule
    assert (made.name, made.retention.keep_last, made.WhichOneof("action")) == ("schedules/s", 3, "snapshot")
    again = pb.CreateScheduleRequest(schedule_id="s", schedule=wanted)
    assert await refused(stub.CreateSchedule(again)) == "SCHEDULE_EXISTS"
    bad = pb.UpdateScheduleRequest(schedule=made, update_fields=["status"])
    assert await refused(stub.UpdateSchedule(bad)) == "FIELD_INVALID"
    stale = pb.UpdateScheduleRequest(schedule=made, update_fields=["paused"], etag="old")
    assert await refused(stub.UpdateSchedule(stale)) == "ETAG_MISMATCH"
    made.paused = True
    paused = (await stub.UpdateSchedule(pb.UpdateScheduleRequest(schedule=made, update_fields=["paused"]))).schedule
    assert (paused.paused, paused.every_s, paused.status.HasField("next_run_time")) == (True, 3600, False)
    await stub.RunSchedule(pb.RunScheduleRequest(name="schedules/s"))
    assert (await stub.GetSchedule(pb.GetScheduleRequest(name="schedules/s"))).schedule.name == "schedules/s"
    await stub.DeleteSchedule(pb.DeleteScheduleRequest(name="schedules/s"))
    assert await refused(stub.GetSchedule(pb.GetScheduleRequest(name="schedules/s"))) == "SCHEDULE_NOT_FOUND"


async def test_plans_updates_and_lists_of_snapshots(channel: Any) -> None:
    await create_guest(channel)
    stub = snapshot_pb2_grpc.SnapshotServiceStub(channel)
    ask = snapshot_pb2.CreateSnapshotRequest(parent=GUEST, snapshot_id="a", validate_only=True)
    plan = (await stub.CreateSnapshot(ask)).plan
    assert (plan.location, bool(plan.reason)) == ("internal", True)
    for parent in (None, "a"):
        request = snapshot_pb2.CreateSnapshotRequest(parent=GUEST, snapshot_id="b" if parent else "a")
        await _ended(channel, (await stub.CreateSnapshot(request)).operation)
    name = f"{GUEST}/snapshots/a"
    update = snapshot_pb2.UpdateSnapshotRequest(snapshot=snapshot_pb2.Snapshot(name=name, description="words"))
    await _ended(channel, (await stub.UpdateSnapshot(update)).operation)
    for parent in (GUEST, "hosts/lab/guests/-", "hosts/-/guests/-"):
        listed = await stub.ListSnapshots(snapshot_pb2.ListSnapshotsRequest(parent=parent))
        assert [(s.name.rpartition("/")[2], s.description) for s in listed.snapshots] == [("a", "words"), ("b", "")]
        assert not listed.errors
    wrong = snapshot_pb2.ListSnapshotsRequest(parent="hosts/-/guests/one")
    assert await refused(stub.ListSnapshots(wrong)) == "FIELD_INVALID"
    update.update_fields.append("kind")
    assert await refused(stub.UpdateSnapshot(update)) == "FIELD_INVALID"
    external = snapshot_pb2.CreateSnapshotRequest(parent=GUEST, snapshot_id="c", location="SNAPSHOT_LOCATION_EXTERNAL")
    assert await refused(stub.CreateSnapshot(external)) == "SNAPSHOT_MIXED"
    gone = snapshot_pb2.DeleteSnapshotRequest(name=name, children=True)
    await _ended(channel, (await stub.DeleteSnapshot(gone)).operation)
    assert not (await stub.ListSnapshots(snapshot_pb2.ListSnapshotsRequest(parent=GUEST))).snapshots
