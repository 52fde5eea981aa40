"""What becomes of the volumes of a guest that goes: each is deleted with the last who needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from virtd.backend.api import StorageFacet
from virtd.errors import POOL_NOT_FOUND, FailedPreconditionError, NotFoundError, unsupported
from virtd.inventory import HostLink
from virtd.model.storage import Volume
from virtd.operations import Run
from virtd.service.core import Core


def storage_of(link: HostLink) -> StorageFacet:
    """The host's storage.

    :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
    """
    if link.facets.storage is None:
        raise unsupported("host.volumes", "the host offers no volumes")
    return link.facets.storage


def owners_of(core: Core, host: str) -> dict[str, set[str]]:
    """Who owns which volume (``pool/volume``) of a host: guests, and entries of the trash.

    The disks below those of linked clones have several owners.
    """
    found: dict[str, set[str]] = {}
    for view in core.inventory.guests(host):
        for volume in view.owned_volumes:
            found.setdefault(volume, set()).add(view.guest.name)
    for trashed in core.trash.owners(host):
        for volume in trashed.owned:
            found.setdefault(volume, set()).add(trashed.entry.name)
    return found


async def dispose(core: Core, run: Run[Any], host: str, volumes: Sequence[str], gone: frozenset[str]) -> frozenset[str]:
    """Delete volumes, but those that somebody else owns or is based on: these are named, and stay.

    Idempotent.  What is on top goes first.

    :param volumes: ``pool/volume``.
    :param gone: the names of the owners that are going.
    :returns: those that stay though nobody else owns them, or of which that is not known.
    """
    link = core.link(host)
    storage = storage_of(link)
    owners = owners_of(core, host)
    mine: list[str] = []
    for volume in dict.fromkeys(volumes):
        others = owners.get(volume, set()) - gone
        if others:
            run.note(f"volume {volume} stays: {', '.join(sorted(others))} needs it too")
        else:
            mine.append(volume)
    left, based = await _looked_up(link, storage, run, mine)
    deleted: set[str] = set()
    while left:
        free = [volume for volume, path in left.items() if not based.get(path)]
        if not free:
            break
        for volume in free:
            path = left.pop(volume)
            pool, _, name = volume.partition("/")
            await link.call(storage.delete_volume(pool, name, run))
            deleted.add(volume)
            for children in based.values():
                children.discard(path)
    for volume, path in left.items():
        run.warn(f"volume {volume} stays: {', '.join(sorted(based[path]))} is based on it")
    return frozenset(mine) - deleted


async def _looked_up(
    link: HostLink, storage: StorageFacet, run: Run[Any], volumes: Sequence[str]
) -> tuple[dict[str, str], dict[str, set[str]]]:
    """The paths of volumes, and the paths of what is based on each path, as far as their pools can be asked."""
    paths: dict[str, str] = {}
    based: dict[str, set[str]] = {}
    by_pool: dict[str, list[str]] = {}
    for volume in volumes:
        by_pool.setdefault(volume.partition("/")[0], []).append(volume)
    for pool, found in by_pool.items():
        try:
            await _add_based(link, storage, pool, based)
            for volume in found:
                paths[volume] = await link.call(storage.volume_path(pool, volume.partition("/")[2]))
        except NotFoundError as error:
            if error.reason is not POOL_NOT_FOUND:
                raise
            run.note(f"pool {pool} is gone, and with it {', '.join(found)}")
        except FailedPreconditionError as error:
            # Of a pool that is stopped nobody can say what is based on what: nothing of it is deleted.
            run.warn(f"{', '.join(found)} stay: {error.message}")
    return paths, based


async def _add_based(link: HostLink, storage: StorageFacet, pool: str, based: dict[str, set[str]]) -> None:
    """Add the paths of a pool's volumes to what each is based on."""
    records: Sequence[Volume] = await link.call(storage.list_volumes(pool))
    for record in records:
        if record.backing_path:
            based.setdefault(record.backing_path, set()).add(record.path)
