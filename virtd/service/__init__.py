"""Use cases, one file a resource.  They know neither gRPC nor any hypervisor."""

from __future__ import annotations

from dataclasses import dataclass

from virtd.service.agents import Agents
from virtd.service.audit import Audit
from virtd.service.consoles import Consoles
from virtd.service.core import Core, CoreOptions
from virtd.service.events import Events
from virtd.service.guests import Guests
from virtd.service.hosts import Hosts, MakeLink
from virtd.service.images import ImageCatalogue, Images
from virtd.service.metrics import Metrics
from virtd.service.networks import Networks
from virtd.service.operations import Operations
from virtd.service.server import Server
from virtd.service.snapshots import Snapshots
from virtd.service.storage import Storage


@dataclass(frozen=True, slots=True)
class Services:
    """All use cases."""

    server: Server
    hosts: Hosts
    guests: Guests
    snapshots: Snapshots
    storage: Storage
    networks: Networks
    images: Images
    consoles: Consoles
    agents: Agents
    operations: Operations
    events: Events
    metrics: Metrics
    audit: Audit


def make_services(core: Core, make_link: MakeLink) -> Services:
    """Build all use cases and register their verbs with the engine."""
    catalogue = ImageCatalogue(core.database)
    return Services(
        server=Server(core),
        hosts=Hosts(core, make_link),
        guests=Guests(core, catalogue),
        snapshots=Snapshots(core),
        storage=Storage(core),
        networks=Networks(core),
        images=Images(core, catalogue),
        consoles=Consoles(core),
        agents=Agents(core),
        operations=Operations(core),
        events=Events(core),
        metrics=Metrics(core),
        audit=Audit(core),
    )


__all__ = ["Core", "CoreOptions", "Services", "make_services"]
