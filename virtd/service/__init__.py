"""Use cases, one file a resource.  They know neither gRPC nor any hypervisor."""

from __future__ import annotations

from dataclasses import dataclass

from virtd.service.agents import Agents
from virtd.service.audit import Audit
from virtd.service.backups import Backups
from virtd.service.bases import Bases
from virtd.service.catalogue import ImageCatalogue
from virtd.service.clones import Clones
from virtd.service.consoles import Consoles
from virtd.service.core import Core, CoreOptions
from virtd.service.device_updates import Devices
from virtd.service.downloads import Downloads
from virtd.service.events import Events
from virtd.service.guests import Guests
from virtd.service.hosts import Hosts, MakeLink
from virtd.service.images import Images
from virtd.service.metrics import Metrics
from virtd.service.migrations import Migrations
from virtd.service.networks import Networks
from virtd.service.operations import Operations
from virtd.service.pools import Pools
from virtd.service.schedules import Schedules
from virtd.service.scheduling import Scheduler
from virtd.service.server import Server
from virtd.service.snapshots import Snapshots
from virtd.service.storage import Storage
from virtd.service.strategy import Strategies
from virtd.service.trash import Trash
from virtd.service.updates import Updates
from virtd.service.uploads import Uploads


@dataclass(frozen=True, slots=True)
class Services:
    """All use cases."""

    server: Server
    hosts: Hosts
    guests: Guests
    clones: Clones
    trash: Trash
    strategies: Strategies
    snapshots: Snapshots
    schedules: Schedules
    scheduler: Scheduler
    backups: Backups
    storage: Storage
    pools: Pools
    downloads: Downloads
    uploads: Uploads
    networks: Networks
    images: Images
    catalogue: ImageCatalogue
    consoles: Consoles
    agents: Agents
    operations: Operations
    events: Events
    metrics: Metrics
    audit: Audit
    updates: Updates
    devices: Devices
    migrations: Migrations


def make_services(core: Core, make_link: MakeLink) -> Services:
    """Build all use cases and register their verbs with the engine."""
    core.bases = Bases(core.database)
    catalogue = ImageCatalogue(core.database, core.options.image_directory)
    uploads = Uploads(core)
    storage = Storage(core, uploads)
    guests = Guests(core, catalogue)
    snapshots, schedules = Snapshots(core), Schedules(core)
    backups = Backups(core, guests)
    return Services(
        server=Server(core),
        hosts=Hosts(core, make_link),
        guests=guests,
        clones=Clones(core, guests),
        trash=Trash(core, guests),
        strategies=Strategies(core, *guests.strategy_verbs),
        snapshots=snapshots,
        schedules=schedules,
        scheduler=Scheduler(core, schedules, snapshots, backups),
        backups=backups,
        storage=storage,
        pools=Pools(core, storage),
        downloads=Downloads(core, storage),
        uploads=uploads,
        networks=Networks(core),
        images=Images(core, catalogue, uploads),
        catalogue=catalogue,
        consoles=Consoles(core),
        agents=Agents(core),
        operations=Operations(core),
        events=Events(core),
        metrics=Metrics(core),
        audit=Audit(core),
        updates=Updates(core, catalogue),
        devices=Devices(core),
        migrations=Migrations(core, guests),
    )


__all__ = ["Core", "CoreOptions", "Services", "make_services"]
