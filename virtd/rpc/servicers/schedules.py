"""virtd.v1.ScheduleService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.errors import invalid_field
from virtd.model.names import check_new_id, parse, shown
from virtd.model.schedule import Schedule
from virtd.rpc.context import Context
from virtd.rpc.convert import from_message, to_message
from virtd.rpc.servicers.base import SCHEDULE, Servicer, call_of
from virtd.service.schedules import MUTABLE
from virtd.v1 import schedule_pb2 as pb


class ScheduleServicer(Servicer):
    """Schedules."""

    async def CreateSchedule(self, request: pb.CreateScheduleRequest, _context: Context) -> pb.CreateScheduleResponse:
        """Create a schedule."""
        schedule = await self.services.schedules.create(
            call_of(request), check_new_id(request.schedule_id, "schedule_id"), _draft(request.schedule)
        )
        return pb.CreateScheduleResponse(schedule=to_message(schedule, pb.Schedule))

    async def GetSchedule(self, request: pb.GetScheduleRequest, _context: Context) -> pb.GetScheduleResponse:
        """One schedule."""
        schedule = self.services.schedules.get(**parse(request.name, SCHEDULE))
        return pb.GetScheduleResponse(schedule=to_message(schedule, pb.Schedule))

    async def ListSchedules(self, request: pb.ListSchedulesRequest, _context: Context) -> pb.ListSchedulesResponse:
        """All schedules."""
        page = self.services.schedules.list(request.page_size, request.page_token)
        return pb.ListSchedulesResponse(
            schedules=[to_message(schedule, pb.Schedule) for schedule in page.items],
            next_page_token=page.next_page_token,
        )

    async def UpdateSchedule(self, request: pb.UpdateScheduleRequest, _context: Context) -> pb.UpdateScheduleResponse:
        """Change a schedule."""
        ids = parse(request.schedule.name, SCHEDULE, "schedule.name")
        for index, field in enumerate(request.update_fields):
            if field not in MUTABLE:
                raise invalid_field(f"update_fields[{index}]", f"{shown(field)} cannot be changed", *MUTABLE)
        schedule = await self.services.schedules.update(
            call_of(request),
            ids["schedule_id"],
            _draft(request.schedule),
            tuple(request.update_fields) or MUTABLE,
            request.etag,
        )
        return pb.UpdateScheduleResponse(schedule=to_message(schedule, pb.Schedule))

    async def DeleteSchedule(self, request: pb.DeleteScheduleRequest, _context: Context) -> pb.DeleteScheduleResponse:
        """Delete a schedule."""
        ids = parse(request.name, SCHEDULE)
        await self.services.schedules.delete(call_of(request), ids["schedule_id"], request.etag)
        return pb.DeleteScheduleResponse()

    async def RunSchedule(self, request: pb.RunScheduleRequest, _context: Context) -> pb.RunScheduleResponse:
        """Let it run now."""
        schedule = await self.services.schedules.run_now(**parse(request.name, SCHEDULE))
        return pb.RunScheduleResponse(schedule=to_message(schedule, pb.Schedule))


def _draft(message: pb.Schedule) -> Schedule:
    """What a client says of a schedule; what only virtd knows is left out."""
    asked = pb.Schedule()
    asked.CopyFrom(message)
    for output in ("etag", "status", "create_time", "update_time"):
        asked.ClearField(output)
    return from_message(asked, Schedule, "schedule")
