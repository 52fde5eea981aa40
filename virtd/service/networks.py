"""Use cases of networks."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from virtd.backend import capabilities as cap
from virtd.backend.api import NetworkChangeFacet, NetworkRequest
from virtd.errors import (
    NETWORK_EXISTS,
    NETWORK_IN_USE,
    NETWORK_NOT_FOUND,
    NETWORK_OVERLAPS,
    AlreadyExistsError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    unsupported,
)
from virtd.inventory import GuestView
from virtd.model.guest import GuestState, InterfaceKind
from virtd.model.network import DhcpLease, DhcpReservation, Network, NetworkSpec
from virtd.model.operation import Operation
from virtd.operations import Outcome, Run, Step, Verb
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core, once, submission
from virtd.service.network_rules import (
    check_macs,
    check_network_id,
    check_reservations,
    check_spec,
    normal_reservations,
    with_defaults,
)
from virtd.service.validate import Violations

_DOWN = frozenset({GuestState.STOPPED, GuestState.CRASHED, GuestState.SUSPENDED})


@dataclass(frozen=True, slots=True)
class NetworkArguments:
    """Which network; for one to create, with every choice made."""

    host: str
    network: str
    request: NetworkRequest | None = None
    autostart: bool | None = None
    reservations: tuple[DhcpReservation, ...] = ()
    remove: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"hosts/{self.host}/networks/{self.network}"


class Networks:
    """Use cases of networks."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._create = CreateNetwork(core, self)
        self._start = StartNetwork(core, self)
        self._stop = StopNetwork(core, self)
        self._update = UpdateNetwork(core, self)
        self._delete = DeleteNetwork(core, self)
        for verb in (self._create, self._start, self._stop, self._update, self._delete):
            core.engine.register(verb)

    # ------------------------------------------------------------------------------------ reading

    async def get(self, host: str, network: str) -> Network:
        """A network.

        :raises NotFoundError: NETWORK_NOT_FOUND.
        """
        name = f"hosts/{host}/networks/{network}"
        for entry in await self.all(host):
            if entry.name == name:
                return entry
        raise NotFoundError(NETWORK_NOT_FOUND, f"host {host} has no network {network}", resource=name)

    async def list(self, host: str, page_size: int, page_token: str) -> Page[Network]:
        """The networks of a host, by name."""
        return page_of(await self.all(host), page_size, page_token, lambda network: network.name)

    async def leases(self, host: str, network: str, page_size: int, page_token: str) -> Page[DhcpLease]:
        """What the network's DHCP server has given out, with the guests.

        :raises NotFoundError: NETWORK_NOT_FOUND.
        """
        facet = self.facet(host)
        found = await self._core.link(host).call(facet.list_leases(network))
        guests = {
            interface.mac.lower(): view.guest.name
            for view in self._core.inventory.guests(host)
            for interface in view.guest.status.interfaces
        }
        leases = [replace(lease, guest=guests.get(lease.mac, "")) for lease in found]
        return page_of(sorted(leases, key=_lease_key), page_size, page_token, _lease_key)

    async def all(self, host: str) -> Sequence[Network]:
        """All networks of a host with their names, and who uses them."""
        link = self._core.link(host)
        cap.require(link.capabilities, cap.NETWORKS, resource=f"hosts/{host}")
        facet = link.facets.networks
        if facet is None:
            raise unsupported(cap.NETWORKS, "the host offers no networks", resource=f"hosts/{host}")
        networks = await link.call(facet.list_networks())
        users = self._users(host)
        return sorted(
            (
                replace(
                    network,
                    name=f"hosts/{host}/networks/{network.name}",
                    used_by=tuple(view.guest.name for view in users.get(network.name, ())),
                )
                for network in networks
            ),
            key=lambda network: network.name,
        )

    def facet(self, host: str) -> NetworkChangeFacet:
        """What changes the host's networks.

        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        :raises UnavailableError: HOST_UNREACHABLE.
        """
        link = self._core.link(host)
        cap.require(link.capabilities, cap.NETWORK_CHANGES, resource=f"hosts/{host}")
        facet = link.facets.network_changes
        if facet is None:
            raise unsupported(cap.NETWORK_CHANGES, "the host offers none of this", resource=f"hosts/{host}")
        return facet

    def _users(self, host: str) -> Mapping[str, Sequence[GuestView]]:
        """Who has an interface on which network: as it is, and as it was asked for (a guest in the making)."""
        found: dict[str, tuple[GuestView, ...]] = {}
        for view in self._core.inventory.guests(host):
            names = {i.network for i in view.guest.status.interfaces if i.kind is InterfaceKind.NETWORK}
            names |= {i.network for i in view.guest.spec.interfaces if i.kind is InterfaceKind.NETWORK}
            for name in sorted(names):
                found[name] = (*found.get(name, ()), view)
        return found

    def check_unused(self, host: str, network: str, *, active_only: bool = False) -> None:
        """Refuse when a guest has an interface on the network.

        :param active_only: guests that are down do not count: they find it when it is up again.
        :raises FailedPreconditionError: NETWORK_IN_USE.
        """
        users = self._users(host).get(network, ())
        if active_only:
            users = [view for view in users if view.guest.status.state not in _DOWN]
        if users:
            names = ", ".join(view.guest.name for view in users)
            raise FailedPreconditionError(
                NETWORK_IN_USE,
                f"{network} is used by {names}",
                resource=f"hosts/{host}/networks/{network}",
                metadata={"used_by": names.replace(" ", "")},
            )

    async def check_free(self, host: str, spec: NetworkSpec) -> None:
        """Refuse a range that another network has, or one that the host is connected to.

        :raises InvalidArgumentError: NETWORK_OVERLAPS.
        """
        if not spec.cidr:
            return
        link, facet = self._core.link(host), self.facet(host)
        wanted = ipaddress.ip_network(spec.cidr)
        taken = [(cidr, network.name) for network in await self.all(host) for cidr in network.cidrs]
        taken += [(cidr, "a network that the host is connected to") for cidr in await link.call(facet.host_networks())]
        for cidr, owner in taken:
            if wanted.overlaps(ipaddress.ip_network(cidr, strict=False)):
                what = f"{spec.cidr} overlaps {cidr} of {owner}"
                raise InvalidArgumentError(
                    NETWORK_OVERLAPS,
                    f"network.cidr: {what}",
                    violations=(FieldViolation("network.cidr", what),),
                    metadata={"cidr": cidr},
                )

    # ----------------------------------------------------------------------------------- changing

    @once
    async def create(self, call: Call, host: str, network_id: str, spec: NetworkSpec) -> Operation | str:
        """Create and start a network; with ``validate_only`` its native configuration.

        See the RPC's documentation for the errors.
        """
        check_network_id(network_id)
        wrong = Violations()
        check_spec(spec, wrong)
        wrong.check()
        await self._core.settled(host)
        facet = self.facet(host)
        uuid = uuid4()
        # Libvirt's names of devices have 15 characters at most.
        bridge = spec.bridge or f"virtd{uuid.hex[:8]}"
        request = NetworkRequest(uuid, network_id, bridge, with_defaults(spec))
        arguments = NetworkArguments(host, network_id, request)
        await self.check_absent(arguments)
        await self.check_free(host, spec)
        if call.validate_only:
            return facet.lower_network(request)
        # One queue for all that are made on a host: of two with one range, the second is refused.
        return await self._core.engine.submit(
            self._create, arguments, submission(call, arguments.name, f"hosts/{host}/networks")
        )

    @once
    async def start(self, call: Call, host: str, network: str) -> Operation | None:
        """Start a network."""
        arguments = await self._existing(host, network)
        if call.validate_only:
            return None
        return await self._core.engine.submit(self._start, arguments, submission(call, arguments.name, arguments.name))

    @once
    async def stop(self, call: Call, host: str, network: str) -> Operation | None:
        """Stop a network that no active guest is connected to."""
        arguments = await self._existing(host, network)
        self.check_unused(host, network, active_only=True)
        if call.validate_only:
            return None
        return await self._core.engine.submit(self._stop, arguments, submission(call, arguments.name, arguments.name))

    @once
    async def update(
        self,
        call: Call,
        host: str,
        network: str,
        autostart: bool | None,
        reservations: Sequence[DhcpReservation],
        remove: Sequence[str],
    ) -> Operation | None:
        """Change autostart and reservations."""
        wrong = Violations()
        if autostart is None and not reservations and not remove:
            wrong.add("autostart", "one of autostart, set_reservations, remove_reservations is required")
        check_macs(remove, "remove_reservations", wrong)
        wrong.check()
        arguments = await self._existing(host, network)
        record = await self.get(host, network)
        if reservations:
            check_reservations(reservations, record, remove, wrong)
            wrong.check()
        arguments = replace(
            arguments,
            autostart=autostart,
            reservations=normal_reservations(reservations),
            remove=tuple(mac.lower() for mac in remove),
        )
        if call.validate_only:
            return None
        return await self._core.engine.submit(self._update, arguments, submission(call, arguments.name, arguments.name))

    @once
    async def delete(self, call: Call, host: str, network: str) -> Operation | None:
        """Delete a network that no guest has an interface on."""
        arguments = await self._existing(host, network)
        self.check_unused(host, network)
        if call.validate_only:
            return None
        return await self._core.engine.submit(self._delete, arguments, submission(call, arguments.name, arguments.name))

    async def _existing(self, host: str, network: str) -> NetworkArguments:
        await self._core.settled(host)
        self.facet(host)
        await self.get(host, network)
        return NetworkArguments(host, network)

    async def check_absent(self, arguments: NetworkArguments) -> None:
        """Refuse a name that is taken.

        :raises AlreadyExistsError: NETWORK_EXISTS.
        """
        if any(entry.name == arguments.name for entry in await self.all(arguments.host)):
            raise AlreadyExistsError(
                NETWORK_EXISTS,
                f"host {arguments.host} has a network {arguments.network} already",
                resource=arguments.name,
            )


def _lease_key(lease: DhcpLease) -> str:
    return f"{lease.mac} {lease.address}"


class NetworkVerb(Verb[NetworkArguments]):
    """A verb that works on one network and answers with it."""

    def __init__(self, core: Core, networks: Networks) -> None:
        self._core = core
        self._networks = networks

    @property
    def arguments(self) -> type[NetworkArguments]:
        """Journalled."""
        return NetworkArguments

    async def finish(self, run: Run[NetworkArguments]) -> Outcome:
        """The network."""
        network = await self._networks.get(run.arguments.host, run.arguments.network)
        return Outcome(network.name, network)


class CreateNetwork(NetworkVerb):
    """Define, start; what cannot be started is not left behind."""

    name = "network-create"

    def steps(self, arguments: NetworkArguments) -> Sequence[Step[NetworkArguments]]:
        """After the check, what has this UUID is this operation's own."""
        return [
            Step("check", self._check, weight=0.1),
            Step("define", self._define, undo=self._undefine),
            Step("start", self._start),
        ]

    async def _check(self, run: Run[NetworkArguments]) -> None:
        arguments = run.arguments
        await self._networks.check_absent(arguments)
        if arguments.request is not None:
            await self._networks.check_free(arguments.host, arguments.request.spec)

    async def _define(self, run: Run[NetworkArguments]) -> None:
        arguments = run.arguments
        if arguments.request is None:
            return
        facet, link = self._networks.facet(arguments.host), self._core.link(arguments.host)
        await link.call(facet.define_network(arguments.request, run))
        if arguments.request.spec.autostart:
            await link.call(facet.set_network_autostart(arguments.network, run, autostart=True))

    async def _undefine(self, run: Run[NetworkArguments]) -> None:
        error = run.operation.error
        if error is not None and error.reason == NETWORK_EXISTS.name:
            return  # somebody else's
        facet, link = self._networks.facet(run.arguments.host), self._core.link(run.arguments.host)
        await link.call(facet.undefine_network(run.arguments.network, run))

    async def _start(self, run: Run[NetworkArguments]) -> None:
        facet, link = self._networks.facet(run.arguments.host), self._core.link(run.arguments.host)
        await link.call(facet.start_network(run.arguments.network, run))


class StartNetwork(NetworkVerb):
    """Make it usable."""

    name = "network-start"

    def steps(self, arguments: NetworkArguments) -> Sequence[Step[NetworkArguments]]:
        """One step, idempotent."""
        return [Step("start", self._do, cancellable=False)]

    async def _do(self, run: Run[NetworkArguments]) -> None:
        facet, link = self._networks.facet(run.arguments.host), self._core.link(run.arguments.host)
        await link.call(facet.start_network(run.arguments.network, run))


class StopNetwork(NetworkVerb):
    """Checked once more when its turn comes."""

    name = "network-stop"

    def steps(self, arguments: NetworkArguments) -> Sequence[Step[NetworkArguments]]:
        """One step, idempotent."""
        return [Step("stop", self._do, cancellable=False)]

    async def _do(self, run: Run[NetworkArguments]) -> None:
        arguments = run.arguments
        self._networks.check_unused(arguments.host, arguments.network, active_only=True)
        facet, link = self._networks.facet(arguments.host), self._core.link(arguments.host)
        await link.call(facet.stop_network(arguments.network, run))


class UpdateNetwork(NetworkVerb):
    """Autostart and reservations; both at once or, when the second is refused, neither."""

    name = "network-update"

    def steps(self, arguments: NetworkArguments) -> Sequence[Step[NetworkArguments]]:
        """Idempotent; what the host may refuse comes first."""
        return [Step("update", self._do, cancellable=False)]

    async def _do(self, run: Run[NetworkArguments]) -> None:
        arguments = run.arguments
        facet, link = self._networks.facet(arguments.host), self._core.link(arguments.host)
        if arguments.reservations or arguments.remove:
            await link.call(facet.set_reservations(arguments.network, arguments.reservations, arguments.remove, run))
        if arguments.autostart is not None:
            await link.call(facet.set_network_autostart(arguments.network, run, autostart=arguments.autostart))


class DeleteNetwork(NetworkVerb):
    """Checked once more when its turn comes."""

    name = "network-delete"

    def steps(self, arguments: NetworkArguments) -> Sequence[Step[NetworkArguments]]:
        """One step, idempotent."""
        return [Step("delete", self._do, cancellable=False)]

    async def _do(self, run: Run[NetworkArguments]) -> None:
        arguments = run.arguments
        self._networks.check_unused(arguments.host, arguments.network)
        facet, link = self._networks.facet(arguments.host), self._core.link(arguments.host)
        await link.call(facet.undefine_network(arguments.network, run))

    async def finish(self, run: Run[NetworkArguments]) -> Outcome:
        """Nothing is left to show."""
        return Outcome()
