"""A clone's cloud-init seed, made of the seed of the guest that is cloned.

virtd keeps no secrets of a seed, so the user-data is taken from the image itself, as it is.  What makes
a first boot one's own is new: instance id, host name (where it was the guest's id), MAC addresses.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

import yaml

from virtd.backend import capabilities as cap
from virtd.errors import IMAGE_INVALID, InvalidArgumentError, unsupported
from virtd.model.cloud_init import CloudInitSpec
from virtd.service.cloud_seed import host_name_of, image, meta_data, network_config

if TYPE_CHECKING:
    from virtd.inventory import HostLink

_SEED_MAX: Final = 32 * 2**20
_CHUNK: Final = 2**20
_HEAD: Final = "#cloud-config\n"


async def read_seed(link: HostLink, pool: str, name: str) -> bytes:
    """The bytes of a seed's volume.

    :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
    :raises UnsupportedError: CAPABILITY_UNSUPPORTED, the host does not give volumes' contents.
    """
    transfer = link.facets.volume_transfer
    if transfer is None:
        raise unsupported(cap.VOLUMES, "the host does not give the content of volumes", resource=f"hosts/{link.id}")
    size = (await link.call(transfer.volume_content(pool, name))).size_bytes
    if size > _SEED_MAX:
        raise InvalidArgumentError(IMAGE_INVALID, f"{pool}/{name} is too large for a cloud-init seed: {size} bytes")
    data = bytearray()
    while len(data) < size:
        extents = await link.call(transfer.read_volume(pool, name, len(data), min(_CHUNK, size - len(data))))
        part = b"".join(extent if isinstance(extent, bytes) else bytes(extent.length) for extent in extents)
        if not part:
            break
        data += part
    return bytes(data)


def respin(seed: bytes, spec: CloudInitSpec, old_id: str, guest_id: str, uid: UUID, macs: Mapping[str, str]) -> bytes:
    """The image of the clone.

    :raises InvalidArgumentError: IMAGE_INVALID, the old one cannot be read.
    """
    documents = {"meta-data": meta_data(spec, guest_id, uid), "user-data": _user_data(seed, spec, old_id, guest_id)}
    if spec.interfaces:
        documents["network-config"] = network_config(spec.interfaces, macs)
    return image({name: text.encode() for name, text in documents.items()})


def _user_data(seed: bytes, spec: CloudInitSpec, old_id: str, guest_id: str) -> str:
    text = _read(seed, "user-data")
    if spec.hostname or not text.startswith(_HEAD):
        return text
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if not isinstance(config, dict) or config.get("hostname") != host_name_of(old_id):
        return text
    config["hostname"] = host_name_of(guest_id)
    return _HEAD + str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000))


def _read(seed: bytes, name: str) -> str:
    import pycdlib  # only daemons that make seeds need it, and it takes time to import
    from pycdlib.pycdlibexception import PyCdlibException

    disc = pycdlib.PyCdlib()
    target = io.BytesIO()
    try:
        disc.open_fp(io.BytesIO(seed))
        disc.get_file_from_iso_fp(target, rr_path=f"/{name}")
        disc.close()
        return target.getvalue().decode()
    except (PyCdlibException, UnicodeDecodeError, ValueError) as error:
        raise InvalidArgumentError(IMAGE_INVALID, f"the cloud-init seed cannot be read: {error}") from error
