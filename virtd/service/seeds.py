"""Cloud-init seeds on their way: made when a guest is asked for, gone when it has its volume.

The seed holds secrets (a password's hash, contents of files).  So it is made before the operation is
journalled, in a file that only the daemon's user can read, and the journal holds none of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from virtd.service.cloud_seed import build_seed, seed_name

if TYPE_CHECKING:
    from virtd.inventory import HostLink
    from virtd.model.guest import GuestSpec
    from virtd.service.core import Core


def staged_seed(link: HostLink, uid: UUID) -> Path:
    """Where the seed of a guest waits for its operation."""
    return _directory(link) / seed_name(uid)


@contextlib.contextmanager
def staging(link: HostLink, guest_id: str, uid: UUID, spec: GuestSpec) -> Iterator[None]:
    """Make the seed of a guest, if it has one; what is raised in the block removes it again."""
    if spec.cloud_init is None:
        yield
        return
    path = staged_seed(link, uid)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    macs = {interface.name: interface.mac for interface in spec.interfaces}
    data = build_seed(spec.cloud_init, guest_id, uid, macs)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def tidy_seeds(core: Core) -> None:
    """Remove seeds that no operation waits for: a daemon that was killed before the journal left them."""
    making = {operation.target.split("/")[1] for operation in core.engine.live() if operation.verb == "create"}
    for link in core.links.values():
        if link.id not in making:
            for path in _directory(link).glob("cloud-init-*.iso"):
                path.unlink(missing_ok=True)


def _directory(link: HostLink) -> Path:
    return Path(link.config.directory) / "seeds"
