"""Schedules."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._async.service import AsyncService, pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtd.v1.schedule_pb2 import Schedule
    from virtd.v1.schedule_pb2_grpc import ScheduleServiceAsyncStub


class AsyncSchedules(AsyncService):
    """Work that virtd does by itself, again and again.  Names are ``schedules/{schedule}``."""

    @cached_property
    def _stub(self) -> ScheduleServiceAsyncStub:
        from virtd.v1.schedule_pb2_grpc import ScheduleServiceStub

        return ScheduleServiceStub(self._transport.channel)

    async def create(
        self, schedule_id: str, schedule: Schedule, *, request_id: str | None = None, validate_only: bool = False
    ) -> Schedule:
        """Create a schedule."""
        from virtd.v1 import schedule_pb2 as pb

        request = pb.CreateScheduleRequest(
            schedule_id=schedule_id,
            schedule=schedule,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return (await self._transport.unary(self._stub.CreateSchedule, request)).schedule

    async def get(self, name: str) -> Schedule:
        """One schedule."""
        from virtd.v1 import schedule_pb2 as pb

        return (await self._transport.unary(self._stub.GetSchedule, pb.GetScheduleRequest(name=name))).schedule

    async def list(self, *, page_size: int = 0) -> tuple[Schedule, ...]:
        """All schedules, by name."""
        from virtd.v1 import schedule_pb2 as pb

        schedules: tuple[Schedule, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListSchedules, pb.ListSchedulesRequest(page_size=page_size, page_token=token)
            )
        ):
            schedules += tuple(page.schedules)
        return schedules

    async def update(
        self, schedule: Schedule, fields: Sequence[str] = (), *, etag: str = "", validate_only: bool = False
    ) -> Schedule:
        """Change a schedule.

        :param schedule: its name, and the new values.
        :param fields: what to change (``paused``, ``retention`` ...); empty: all of them.
        """
        from virtd.v1 import schedule_pb2 as pb

        request = pb.UpdateScheduleRequest(
            schedule=schedule, update_fields=fields, etag=etag, validate_only=validate_only
        )
        return (await self._transport.unary(self._stub.UpdateSchedule, request)).schedule

    async def delete(self, name: str, *, etag: str = "", validate_only: bool = False) -> None:
        """Delete a schedule; what it has made stays."""
        from virtd.v1 import schedule_pb2 as pb

        request = pb.DeleteScheduleRequest(name=name, etag=etag, validate_only=validate_only)
        await self._transport.unary(self._stub.DeleteSchedule, request)

    async def run(self, name: str) -> Schedule:
        """Let a schedule run now; see its ``status`` for what becomes of it."""
        from virtd.v1 import schedule_pb2 as pb

        return (await self._transport.unary(self._stub.RunSchedule, pb.RunScheduleRequest(name=name))).schedule
