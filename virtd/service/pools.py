"""Use cases that change pools."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final, TypeVar

from virtd.backend import capabilities as cap
from virtd.errors import (
    PATH_NOT_ALLOWED,
    POOL_EXISTS,
    POOL_IN_USE,
    POOL_INACTIVE,
    POOL_NOT_EMPTY,
    POOL_NOT_FOUND,
    AlreadyExistsError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
)
from virtd.inventory import GuestView
from virtd.model.guest import GuestState
from virtd.model.names import check_new_id, shown
from virtd.model.operation import Operation
from virtd.model.storage import Pool, PoolKind, PoolState
from virtd.operations import Verb
from virtd.service.call import Call
from virtd.service.core import Core, is_local, once, submission
from virtd.service.storage import Storage
from virtd.service.validate import Violations, check_allowed_path
from virtd.service.verbs.pools import (
    CreatePool,
    CreatePoolArguments,
    DeletePool,
    DeletePoolArguments,
    PoolArguments,
    RefreshPool,
    StartPool,
    StopPool,
    UpdatePool,
    UpdatePoolArguments,
)

A = TypeVar("A", bound=PoolArguments)

PATH_MAX: Final = 1024
HOSTNAME_MAX: Final = 253
_CAPABILITY: Final = {
    PoolKind.DIR: cap.POOL_MANAGE,
    PoolKind.LOGICAL: cap.POOL_LOGICAL,
    PoolKind.NFS: cap.POOL_NFS,
}
_FIELD: Final = {PoolKind.DIR: "directory", PoolKind.LOGICAL: "logical", PoolKind.NFS: "nfs"}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
# What LVM takes (lvm(8), "Valid names"), and nothing that a program could take for an option or a folder.
_VOLUME_GROUP: Final = re.compile(r"[A-Za-z0-9+_][A-Za-z0-9+_.-]{0,126}")
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*\.?")
_IDLE: Final = frozenset({GuestState.STOPPED, GuestState.CRASHED})


class Pools:
    """Use cases of pools; :class:`virtd.service.storage.Storage` lists them."""

    def __init__(self, core: Core, storage: Storage) -> None:
        self._core = core
        self._storage = storage
        self._create = CreatePool(core, self)
        self._update = UpdatePool(core, self)
        self._start = StartPool(core, self)
        self._stop = StopPool(core, self)
        self._refresh = RefreshPool(core, self)
        self._delete = DeletePool(core, self)
        for verb in (self._create, self._update, self._start, self._stop, self._refresh, self._delete):
            core.engine.register(verb)

    async def get(self, host: str, pool: str) -> Pool:
        """A pool.

        :raises NotFoundError: POOL_NOT_FOUND.
        """
        return await self._storage.get_pool(host, pool)

    @once
    async def create(self, call: Call, arguments: CreatePoolArguments) -> Operation | None:
        """Make a pool and start it."""
        check_new_id(arguments.pool, "pool_id")
        _check_form(arguments)
        host = arguments.host
        await self._core.settled(host)
        cap.require(self._core.link(host).capabilities, _CAPABILITY[arguments.kind], resource=f"hosts/{host}")
        arguments = self._allowed(arguments)
        await self.check_new(arguments)
        return await self._submit(call, self._create, arguments)

    @once
    async def update(self, call: Call, host: str, pool: str, autostart: bool | None) -> Operation | None:
        """Change what may be changed."""
        await self._known(host, pool)
        return await self._submit(call, self._update, UpdatePoolArguments(host, pool, autostart))

    @once
    async def start(self, call: Call, host: str, pool: str) -> Operation | None:
        """Make its volumes usable."""
        await self._known(host, pool)
        return await self._submit(call, self._start, PoolArguments(host, pool))

    @once
    async def stop(self, call: Call, host: str, pool: str) -> Operation | None:
        """Let it go."""
        await self._known(host, pool)
        await self.check_unused(host, pool, also_by_stopped=False)
        return await self._submit(call, self._stop, PoolArguments(host, pool))

    @once
    async def refresh(self, call: Call, host: str, pool: str) -> Operation | None:
        """Look again at what is in it."""
        record = await self._known(host, pool)
        if record.state is PoolState.INACTIVE:
            raise FailedPreconditionError(POOL_INACTIVE, f"{record.name} is not started", resource=record.name)
        return await self._submit(call, self._refresh, PoolArguments(host, pool))

    @once
    async def delete(self, call: Call, host: str, pool: str, *, remove_directory: bool) -> Operation | None:
        """Forget it; its volumes stay."""
        record = await self._known(host, pool)
        await self.check_unused(host, pool, also_by_stopped=True)
        if remove_directory and record.state is PoolState.ACTIVE:
            volumes = (await self._storage.list_volumes(host, pool, 1, "")).items
            if volumes:
                raise FailedPreconditionError(
                    POOL_NOT_EMPTY, f"{record.name} has volumes, such as {volumes[0].name}", resource=record.name
                )
        return await self._submit(
            call, self._delete, DeletePoolArguments(host, pool, remove_directory=remove_directory)
        )

    # ------------------------------------------------------------------------------------ checks

    async def check_new(self, arguments: CreatePoolArguments) -> None:
        """Refuse a name, or a place, that another pool has.

        :raises AlreadyExistsError: POOL_EXISTS.
        """
        for pool in await self._storage.all_pools(arguments.host):
            if pool.name == arguments.name:
                raise AlreadyExistsError(
                    POOL_EXISTS, f"host {arguments.host} has a pool {arguments.pool} already", resource=pool.name
                )
            if arguments.path and os.path.normpath(pool.path or "-") == arguments.path:
                raise AlreadyExistsError(
                    POOL_EXISTS,
                    f"{arguments.path} is the place of the pool {pool.name} already",
                    resource=pool.name,
                    metadata={"path": arguments.path},
                )

    async def check_unused(self, host: str, pool: str, *, also_by_stopped: bool, missing_ok: bool = False) -> None:
        """Refuse when guests use volumes of the pool.

        :param also_by_stopped: whether guests that are stopped count.
        :param missing_ok: a pool that is gone is not used.
        :raises NotFoundError: POOL_NOT_FOUND.
        :raises FailedPreconditionError: POOL_IN_USE.
        """
        try:
            record = await self.get(host, pool)
        except NotFoundError as error:
            if missing_ok and error.reason is POOL_NOT_FOUND:
                return
            raise
        users = [
            view.guest
            for view in self._core.inventory.guests(host)
            if _uses(view, record, pool) and (also_by_stopped or view.guest.status.state not in _IDLE)
        ]
        if users:
            names = ",".join(guest.name for guest in users)
            raise FailedPreconditionError(
                POOL_IN_USE,
                f"{record.name} has disks of {names.replace(',', ', ')}",
                resource=record.name,
                metadata={"used_by": names},
            )

    def _allowed(self, arguments: CreatePoolArguments) -> CreatePoolArguments:
        """The arguments with a path that is allowed and has one spelling only."""
        if arguments.kind is PoolKind.LOGICAL:
            return arguments
        field = f"{_FIELD[arguments.kind]}.path"
        local = is_local(self._core.link(arguments.host).config)
        options = self._core.options
        # Not the host's own directory: what virtd keeps there would become volumes, to be deleted by anybody.
        real = check_allowed_path(arguments.path, options.allowed_directories, field, local=local)
        own = os.path.realpath(options.state_directory)
        if local and PurePosixPath(real).is_relative_to(own):
            within = [directory for directory in options.allowed_directories if _inside(directory, own)]
            if not any(PurePosixPath(real).is_relative_to(os.path.realpath(directory)) for directory in within):
                description = f"{shown(arguments.path)} belongs to virtd itself"
                raise InvalidArgumentError(
                    PATH_NOT_ALLOWED,
                    f"{field}: {description}; choose a directory outside {own}",
                    violations=(FieldViolation(field, description),),
                )
        return replace(arguments, path=real)

    async def _known(self, host: str, pool: str) -> Pool:
        """The pool, on a host that can change it."""
        await self._core.settled(host)
        cap.require(self._core.link(host).capabilities, cap.POOL_MANAGE, resource=f"hosts/{host}")
        return await self.get(host, pool)

    async def _submit(self, call: Call, verb: Verb[A], arguments: A) -> Operation | None:
        if call.validate_only:
            return None
        return await self._core.engine.submit(verb, arguments, submission(call, arguments.name, arguments.name))


def _inside(directory: str, own: str) -> bool:
    real = PurePosixPath(os.path.realpath(directory))
    return real.is_relative_to(own) and str(real) != own


def _uses(view: GuestView, record: Pool, pool: str) -> bool:
    if any(owned.partition("/")[0] == pool for owned in view.owned_volumes):
        return True
    return bool(record.path) and any(
        PurePosixPath(disk.path).parent == PurePosixPath(record.path) for disk in view.guest.status.disks if disk.path
    )


def _check_form(arguments: CreatePoolArguments) -> None:
    """Check what no host is needed for.

    :raises InvalidArgumentError: FIELD_INVALID naming every wrong field.
    """
    wrong = Violations()
    field = _FIELD[arguments.kind]
    if arguments.kind is PoolKind.LOGICAL:
        if not _VOLUME_GROUP.fullmatch(arguments.volume_group):
            wrong.add(f"{field}.volume_group", f"{shown(arguments.volume_group)} is not a name of a volume group")
        wrong.check()
        return
    _check_path(wrong, arguments.path, f"{field}.path")
    if arguments.kind is PoolKind.NFS:
        _check_path(wrong, arguments.export, f"{field}.export")
        if not _is_server(arguments.server):
            wrong.add(f"{field}.server", f"{shown(arguments.server)} is neither a host name nor an IP address")
    wrong.check()


def _check_path(wrong: Violations, path: str, field: str) -> None:
    if not path:
        wrong.add(field, "is required")
    elif _CONTROL.search(path) or len(path) > PATH_MAX:
        wrong.add(field, f"must be a path of at most {PATH_MAX} characters without control characters")
    elif not path.startswith("/"):
        wrong.add(field, f"{shown(path)} must be an absolute path")
    elif ".." in PurePosixPath(path).parts:
        wrong.add(field, f"{shown(path)} must not hold '..'")


def _is_server(server: str) -> bool:
    try:
        ipaddress.ip_address(server)
    except ValueError:
        return len(server) <= HOSTNAME_MAX and bool(_HOSTNAME.fullmatch(server))
    return True
