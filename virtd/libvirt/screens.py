"""Screenshots."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.backend.capabilities import SCREENSHOT
from virtd.backend.pictures import to_png
from virtd.errors import unsupported
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.guests import require_active
from virtd.libvirt.xml.domain import Domain
from virtd.model.console import Screenshot


class Screens:
    """Pictures of a guest's first display."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections: Final = connections

    async def screenshot(self, uuid: UUID) -> Screenshot:
        """PNG, whatever the hypervisor gives.

        :raises FailedPreconditionError: INVALID_STATE, the guest does not run.
        :raises UnsupportedError: it has no display.
        """

        def run(connection: Any) -> tuple[str, bytes]:
            domain = connection.lookupByUUID(uuid.bytes)
            require_active(domain, "take a screenshot")
            if not Domain.parse(domain.XMLDesc(0)).videos:
                raise unsupported(SCREENSHOT, "the guest has no display")
            stream = connection.newStream(0)
            try:
                mime_type = domain.screenshot(stream, 0)
                parts: list[bytes] = []
                stream.recvAll(lambda _stream, data, _opaque: parts.append(data), None)
            except BaseException:
                _abort(stream)
                raise
            stream.finish()
            return mime_type, b"".join(parts)

        mime_type, data = await self._connections.call("virDomainScreenshot", run)
        return Screenshot(to_png(data, mime_type), "image/png")


def _abort(stream: Any) -> None:
    try:
        stream.abort()
    except libvirt.libvirtError:
        return  # it has ended by itself
