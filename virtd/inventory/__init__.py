"""What virtd knows of every guest now: in memory, fed by events, checked by resync."""

from virtd.inventory.inventory import Inventory
from virtd.inventory.link import HostLink, LinkOptions
from virtd.inventory.missing import MissingBackend
from virtd.inventory.records import Encoders, GuestView

__all__ = ["Encoders", "GuestView", "HostLink", "Inventory", "LinkOptions", "MissingBackend"]
