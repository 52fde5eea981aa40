"""What is kept, with a guest's definition, of snapshots that virtd makes by copying disks."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.libvirt.connections import LaneName
from virtd.libvirt.guests import Guests
from virtd.libvirt.xml import records as xml_records

_ELEMENT: Final = libvirt.VIR_DOMAIN_METADATA_ELEMENT
_CONFIG: Final = libvirt.VIR_DOMAIN_AFFECT_CONFIG


class Records:
    """See :class:`virtd.backend.emulate.records.RecordKeeper`: an element of the domain's ``<metadata>``.

    libvirt writes a definition to a new file, which then takes the old one's place: it is never half of one.
    """

    def __init__(self, guests: Guests) -> None:
        self._guests: Final = guests

    async def read_records(self, uuid: UUID) -> str:
        """See there."""

        def run(domain: Any) -> str:
            try:
                return xml_records.text_of(domain.metadata(_ELEMENT, xml_records.NAMESPACE, _CONFIG))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                    return ""
                raise

        return await self._guests.on_domain(uuid, "virDomainGetMetadata", run)

    async def write_records(self, uuid: UUID, text: str) -> None:
        """See there."""

        def run(domain: Any) -> None:
            element = xml_records.build(text) if text else None
            domain.setMetadata(_ELEMENT, element, xml_records.PREFIX, xml_records.NAMESPACE, _CONFIG)

        await self._guests.on_domain(uuid, "virDomainSetMetadata", run, lane=LaneName.CHANGE)
