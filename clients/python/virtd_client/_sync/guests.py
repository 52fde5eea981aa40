# Generated from _async/guests.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""Guests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._io import blocking as io
from virtd_client._retry import Backoff, Deadline, is_outage
from virtd_client._sync.lifecycle import GuestLifecycle
from virtd_client._sync.operation import Operation
from virtd_client._sync.service import pages
from virtd_client.errors import CLIENT_TIMEOUT, VirtdError, WaitTimeout
from virtd_client.types import DiskPolicyName, GuestList, OnConflict, UpdateModeName

if TYPE_CHECKING:
    from virtd.v1.guest_pb2 import Guest
    from virtd.v1.guest_service_pb2 import HostError, HostPlan
    from virtd.v1.guest_service_pb2_grpc import GuestServiceStub
    from virtd.v1.operation_pb2 import OperationResult

_GUEST = "virtd.v1.Guest"
_RESULT = "virtd.v1.OperationResult"
_GRACE_S = 5.0


class Guests(GuestLifecycle):
    """Guests of all hosts.

    Names are ``hosts/{host}/guests/{guest}``.  Methods that change something return an operation as
    soon as the daemon has journalled it; with ``validate_only`` they only check, and the operation
    has no name.  ``request_id`` is a UUID: a repetition with the same one and the same arguments gives
    the same operation; without one, a new one is made, and used again if the call has to be repeated.
    """

    @cached_property
    def _stub(self) -> GuestServiceStub:
        from virtd.v1.guest_service_pb2_grpc import GuestServiceStub

        return GuestServiceStub(self._transport.channel)

    def list(self, parent: str = "hosts/-", *, filter: str = "", page_size: int = 0) -> GuestList:  # noqa: A002 - the API's name
        """The guests of one host, or of all, by name; all pages.

        :param filter: for example ``status.state=RUNNING AND labels.env=prod``.
        :param page_size: how many in one call; 0: the daemon's choice.
        """
        from virtd.v1 import guest_service_pb2 as pb

        guests: list[Guest] = []
        host_errors: dict[str, HostError] = {}
        resume_token: str | None = None
        for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListGuests,
                pb.ListGuestsRequest(parent=parent, filter=filter, page_size=page_size, page_token=token),
            )
        ):
            guests.extend(page.guests)
            for host_error in page.host_errors:
                host_errors.setdefault(host_error.host, host_error)
            # The first page's: what changed while the later ones were read comes after it.
            resume_token = page.resume_token if resume_token is None else resume_token
        return GuestList(tuple(guests), tuple(host_errors.values()), resume_token or "")

    def get(self, name: str) -> Guest:
        """One guest."""
        from virtd.v1 import guest_service_pb2 as pb

        return (self._transport.unary(self._stub.GetGuest, pb.GetGuestRequest(name=name))).guest

    def create(
        self,
        parent: str,
        guest_id: str,
        guest: Guest,
        *,
        start: bool = False,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Create a guest and its disks; with ``validate_only`` the operation has a ``plan``.

        :param parent: ``hosts/{host}``.
        :param guest: spec, display name, labels and annotations are read.
        :param start: start it as well, in the same operation.
        """
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.CreateGuestRequest(
            parent=parent,
            guest_id=guest_id,
            guest=guest,
            start=start,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.CreateGuest,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )

    def update(
        self,
        guest: Guest,
        update_fields: Sequence[str] = (),
        *,
        etag: str = "",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Guest:
        """Change display name, labels or annotations; the guest after the change.

        :param guest: its name, and the new values.
        :param update_fields: which of the three; empty: all.
        :param etag: change only if the guest still has this one.
        """
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.UpdateGuestRequest(
            guest=guest,
            update_fields=update_fields,
            etag=etag,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return (self._transport.unary(self._stub.UpdateGuest, request)).guest

    def change(
        self,
        guest: Guest,
        update_fields: Sequence[str] = ("spec",),
        *,
        mode: UpdateModeName | None = None,
        allow_replace: bool = False,
        delete_removed_disks: bool = False,
        force_eject: bool = False,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Change a guest's spec, and what else ``update_fields`` names.

        :param guest: its name, and the new values.
        :param update_fields: ``spec`` is every field that the guest's spec sets; or paths under it.
        :param mode: when it takes effect; None: in the running guest where that is possible.
        :param allow_replace: also what needs the native guest to be defined anew.
        :param delete_removed_disks: delete the volumes of removed disks, if virtd created them.
        :param force_eject: change a medium also if the guest has locked the drive's tray.
        :param validate_only: check only; the operation has no name, but a ``plan``.
        """
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.UpdateGuestRequest(
            guest=guest,
            update_fields=update_fields,
            mode=_messages.update_mode(mode),
            allow_replace=allow_replace,
            delete_removed_disks=delete_removed_disks,
            force_eject=force_eject,
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.UpdateGuest, request, _GUEST, plan=(lambda response: response.plan) if validate_only else None
        )

    def delete(
        self,
        name: str,
        *,
        force: bool = False,
        keep_disks: bool = False,
        disk_policy: DiskPolicyName | None = None,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[OperationResult]:
        """Delete a guest, its snapshots, and the disks that virtd created for it.

        :param force: stop it first if it runs.
        :param disk_policy: ``trash``: it can be brought back (``client.trash``); None: as the daemon is configured.
        """
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.DeleteGuestRequest(
            name=name,
            force=force,
            keep_disks=keep_disks,
            disk_policy=_messages.disk_policy(disk_policy),
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.DeleteGuest, request, _RESULT)

    def shutdown(
        self,
        name: str,
        *,
        timeout_s: float = 0,
        force_after_timeout: bool = False,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Ask the guest's system to shut down, again and again until it obeys or its time is over.

        :param timeout_s: how long the guest may take; 0: 120.
        :param force_after_timeout: then cut the power; otherwise the operation fails with
            SHUTDOWN_IGNORED and the guest runs on.
        """
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.ShutdownGuestRequest(
            name=name,
            timeout_s=timeout_s,
            force_after_timeout=force_after_timeout,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.ShutdownGuest, request, _GUEST)

    def start(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Start a guest, or restore a suspended one."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.StartGuestRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.StartGuest, request, _GUEST)

    def stop(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Cut the power at once.  A shutdown that is under way is cancelled for it."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.StopGuestRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.StopGuest, request, _GUEST)

    def reboot(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Ask the guest's system to reboot."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.RebootGuestRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.RebootGuest, request, _GUEST)

    def reset(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Reset at once, as by the reset button."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.ResetGuestRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.ResetGuest, request, _GUEST)

    def pause(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Stop the virtual CPUs; memory is kept."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.PauseGuestRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.PauseGuest, request, _GUEST)

    def resume(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Continue a paused guest."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.ResumeGuestRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.ResumeGuest, request, _GUEST)

    def suspend(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Save a running guest to disk and stop it; :meth:`start` restores it."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.SuspendGuestRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.SuspendGuest, request, _GUEST)

    def adopt(self, name: str, *, request_id: str | None = None, validate_only: bool = False) -> Operation[Guest]:
        """Take a foreign guest under management.  Nothing in the guest changes."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.AdoptGuestRequest(
            name=name, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        return self._start(self._stub.AdoptGuest, request, _GUEST)

    def plan(self, hosts: Sequence[str], guest: Guest, *, guest_id: str = "") -> tuple[HostPlan, ...]:
        """What a guest would become on each of the hosts (``hosts/-``: all), without side effect."""
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.PlanGuestRequest(hosts=hosts, guest=guest, guest_id=guest_id)
        return tuple((self._transport.unary(self._stub.PlanGuest, request)).plans)

    def plan_for(
        self, name: str, guest: Guest, *, update_fields: Sequence[str] = (), mode: UpdateModeName | None = None
    ) -> HostPlan:
        """What applying ``guest`` to this name would do: ``update`` is set if there is such a guest.

        Otherwise it is the plan of a creation.  What is wrong with the guest is in ``error``.  No side effect.
        """
        from virtd.v1 import guest_service_pb2 as pb

        request = pb.PlanGuestRequest(name=name, guest=guest, update_fields=update_fields)
        if mode is not None:
            request.mode = pb.UpdateMode.Value(f"UPDATE_MODE_{mode.upper().replace('-', '_')}")
        return (self._transport.unary(self._stub.PlanGuest, request)).plans[0]

    def wait(
        self,
        name: str,
        *,
        state: str | None = None,
        condition: str | None = None,
        deleted: bool = False,
        timeout_s: float = 60.0,
    ) -> Guest | None:
        """Wait until a guest is in a state, a condition is true, or it is deleted.

        Goes on over lost connections and restarts of the daemon.

        :param state: for example ``RUNNING``; one of the three must be given.
        :param condition: for example ``AGENT_READY`` or ``agent-ready``.
        :returns: the guest; None for ``deleted``.
        :raises DeadlineExceeded: it was not so in time.
        :raises ValueError: not exactly one of the three, or an unknown word.
        """
        from virtd.v1 import guest_service_pb2 as pb

        if (state is not None) + (condition is not None) + deleted != 1:
            raise ValueError("give exactly one of state, condition and deleted")
        request = pb.WaitGuestRequest(name=name)
        if state is not None:
            request.state = _messages.guest_state(state)
        elif condition is not None:
            request.condition = _messages.condition_type(condition)
        else:
            request.deleted = True
        deadline = Deadline(timeout_s)
        backoff = Backoff(max_s=2.0)
        patience: Deadline | None = None
        while True:
            # Zero would mean the daemon's default.
            request.timeout_s = max(deadline.at_most(timeout_s), 0.001)
            try:
                response = self._transport.unary(
                    self._stub.WaitGuest, request, timeout_s=request.timeout_s + _GRACE_S, retry=False
                )
            except VirtdError as error:
                if not is_outage(error):
                    raise
                patience = patience or deadline.earlier(self._transport.retry_s)
                if patience.passed:
                    raise
                io.sleep(patience.at_most(backoff.next_s(error.retry_after_s)))
                if deadline.passed:
                    raise WaitTimeout(
                        f"{name} was not so after {timeout_s} s, of which the daemon was away for the last",
                        reason=CLIENT_TIMEOUT,
                        resource=name,
                    ) from error
            else:
                return response.guest if response.HasField("guest") else None
