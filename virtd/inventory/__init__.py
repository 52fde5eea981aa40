"""What virtd knows of every guest now: in memory, fed by events, checked by resync."""

from virtd.inventory.inventory import Encoders, GuestView, Inventory
from virtd.inventory.link import HostLink, LinkOptions

__all__ = ["Encoders", "GuestView", "HostLink", "Inventory", "LinkOptions"]
