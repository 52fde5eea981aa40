"""The event log with revisions, and its fan-out to watchers."""

from virtd.events.log import EventLog, Subscription

__all__ = ["EventLog", "Subscription"]
