"""Adopt and release: who manages a guest.  Nothing changes in the hypervisor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from virtd.errors import GUEST_NOT_FOUND, INVALID_STATE, FailedPreconditionError, NotFoundError
from virtd.inventory import GuestView
from virtd.model.guest import Guest, Origin, RunStrategy
from virtd.operations import Run, Step
from virtd.service.verbs.base import GuestArguments, GuestVerb


class _OriginVerb(GuestVerb[GuestArguments]):
    @property
    def arguments(self) -> type[GuestArguments]:
        """Journalled."""
        return GuestArguments

    async def view(self, run: Run[GuestArguments]) -> GuestView:
        """The guest, read anew.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """
        await self.refresh(run)
        view = self.core.inventory.by_uid(run.arguments.uid)
        if view is None:
            name = str(run.arguments.guest_name)
            raise NotFoundError(GUEST_NOT_FOUND, f"{run.arguments.guest} is gone", resource=name)
        return view


class AdoptGuest(_OriginVerb):
    """Take a foreign guest under management."""

    name = "adopt"

    def steps(self, arguments: GuestArguments) -> Sequence[Step[GuestArguments]]:
        """One step, idempotent.  Its disks are not virtd's: a later delete keeps them."""
        return [Step("adopt", self._do, cancellable=False)]

    async def _do(self, run: Run[GuestArguments]) -> None:
        link, arguments = self.link(run), run.arguments
        view = await self.view(run)
        if view.guest.status.origin is Origin.MANAGED:
            return
        native = await link.call(link.session.get_guest(arguments.uid))
        if not native.persistent:
            raise FailedPreconditionError(
                INVALID_STATE,
                f"{arguments.guest} is transient: its hypervisor forgets it when it stops; define it there "
                "persistently first (`virsh define`)",
                resource=str(arguments.guest_name),
            )
        starts = link.facets.autostart
        autostart = await link.call(starts.get_autostart(arguments.uid)) if starts is not None else False

        def adopt(guest: Guest) -> Guest:
            return replace(
                guest,
                # What the spec says now is what was read from the hypervisor; from here on it is the user's.
                spec=replace(guest.spec, run_strategy=RunStrategy.MANUAL, autostart=autostart),
                status=replace(guest.status, origin=Origin.MANAGED),
            )

        adopted = (await self.core.inventory.change(view.guest.uid, adopt)).guest
        if adopted.status.unmodelled:
            run.warn(
                "the spec does not show these parts of the guest; virtd keeps them as they are: "
                + ", ".join(adopted.status.unmodelled)
            )


class ReleaseGuest(_OriginVerb):
    """Let go of a guest: it and its disks stay as they are."""

    name = "release"

    def steps(self, arguments: GuestArguments) -> Sequence[Step[GuestArguments]]:
        """One step, idempotent."""
        return [Step("release", self._do, cancellable=False)]

    async def _do(self, run: Run[GuestArguments]) -> None:
        view = await self.view(run)
        if view.guest.status.origin is Origin.FOREIGN:
            return
        if view.owned_volumes:
            run.note(f"belong to nobody from now on: {', '.join(view.owned_volumes)}")
            self.core.inventory.own_volumes(view.guest.uid, ())

        def release(guest: Guest) -> Guest:
            return replace(guest, labels={}, annotations={}, status=replace(guest.status, origin=Origin.FOREIGN))

        await self.core.inventory.change(view.guest.uid, release)
        await self.refresh(run)  # its spec is what the hypervisor says, from now on
