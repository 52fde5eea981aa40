"""The types that guestctl shows: their words on the command line, and their columns.

A column knows the value (for CSV) and how people read it (for tables).  Values come from protobuf
messages, taken by duck typing: this module imports none of them, so that ``--help`` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from virtd.cli.ctl import text


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    ``title`` heads tables, ``key`` heads CSV; ``value`` takes the message and gives a text, a
    number or None; ``show`` makes it readable; ``wide`` columns appear in ``-o wide`` and CSV only.
    """

    title: str
    key: str
    value: Callable[[Any], object]
    show: Callable[[Any], str] = lambda value: "-" if value is None or value == "" else str(value)
    wide: bool = False
    state: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of resource.

    ``plural`` is the word in the grammar; ``kind`` the word in documents (``Guest``); ``message``
    says where the protobuf message is (``module:Message``); ``pattern`` is the form of its names.
    """

    plural: str
    kind: str
    message: str
    pattern: str
    columns: tuple[Column, ...]
    aliases: tuple[str, ...] = ()

    def load(self) -> type[Any]:
        """The protobuf message class."""
        from importlib import import_module

        module, name = self.message.split(":")
        cls: type[Any] = getattr(import_module(f"virtd.v1.{module}_pb2"), name)
        return cls


def last(name: str) -> str:
    """The id: the last part of a resource name."""
    return name.rpartition("/")[2]


def part(name: str, collection: str) -> str:
    """The id that follows ``collection`` in a resource name, or ``""``."""
    parts = name.split("/")
    return next((parts[i + 1] for i in range(0, len(parts) - 1, 2) if parts[i] == collection), "")


def enum(message: Any, field: str) -> str:
    """The short name of an enum field's value: ``RUNNING`` for ``GUEST_STATE_RUNNING``."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    number = getattr(message, field)
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)  # a newer server's
    return short(descriptor, value.name)


def short(descriptor: Any, name: str) -> str:
    """A value's name without the prefix of its enum."""
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(name).removeprefix(prefix)


def optional(field: str) -> Callable[[Any], object]:
    """The value of a field with presence; None where it is not set (never zero)."""
    return lambda message: getattr(message, field) if message.HasField(field) else None


def _attribute(field: str) -> Callable[[Any], object]:
    return lambda message: getattr(message, field)


def _time(field: str) -> Callable[[Any], object]:
    return lambda message: text.moment(getattr(message, field)) if message.HasField(field) else None


def _age(title: str, field: str, *, wide: bool = False) -> Column:
    return Column(title, field, lambda m: getattr(m, field) if m.HasField(field) else None, _show_age, wide=wide)


def _show_age(value: Any) -> str:
    return text.age(value)


def _labels(message: Any) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(message.labels.items()))


def _join(values: Iterable[str]) -> str:
    return ",".join(values)


def _name(title: str = "NAME") -> Column:
    return Column(title, "name", _attribute("name"), last)


def _host() -> Column:
    return Column("HOST", "host", lambda m: part(m.name, "hosts"))


def _bytes(title: str, field: str, *, wide: bool = False) -> Column:
    return Column(title, field, optional(field), text.size, wide=wide)


def _guest_state(guest: Any) -> str:
    state = enum(guest.status, "state")
    if enum(guest.status, "presence") == "ABSENT":
        return "GONE"
    return f"{state} (stale)" if guest.status.HasField("stale_since") else state


def _ready(guest: Any) -> str:
    holds = [enum(c, "type") for c in guest.status.conditions if enum(c, "status") == "TRUE"]
    return _join(word.lower().replace("_", "-") for word in holds)


def _accelerators(host: Any) -> str:
    return _join(a.accelerator for a in host.facts.accelerators if a.usable)


def _percent(operation: Any) -> object:
    return round(operation.fraction * 100) if operation.HasField("fraction") else None


def _elapsed(operation: Any) -> str:
    if not operation.HasField("start_time"):
        return "-"
    if not operation.HasField("end_time"):
        return text.age(operation.start_time)
    seconds = operation.end_time.seconds - operation.start_time.seconds
    return text.duration(seconds + (operation.end_time.nanos - operation.start_time.nanos) / 1e9)


def _total(metrics: Any, group: str, field: str) -> int | None:
    known = [getattr(m, field) for m in getattr(metrics, group) if m.HasField(field)]
    return sum(known) if known else None


GUESTS: Final = Kind(
    "guests", "Guest", "guest:Guest", "hosts/{host}/guests/{guest}",
    (
        _name(), _host(),
        Column("STATE", "state", _guest_state, state=True),
        Column("VCPUS", "vcpus", lambda g: g.spec.vcpus if g.spec.HasField("vcpus") else None),
        Column("MEMORY", "memory_bytes",
               lambda g: g.spec.memory_bytes if g.spec.HasField("memory_bytes") else None, text.size),
        Column("ADDRESS", "address", lambda g: g.status.addresses[0].address if g.status.addresses else ""),
        _age("AGE", "create_time"),
        Column("READY", "ready", _ready, wide=True),
        Column("REASON", "state_reason", lambda g: g.status.state_reason, wide=True),
        Column("ACCEL", "accelerator", lambda g: enum(g.status, "accelerator").replace("UNSPECIFIED", ""), wide=True),
        Column("ORIGIN", "origin", lambda g: enum(g.status, "origin"), wide=True),
        Column("OPERATIONS", "operations", lambda g: _join(last(n) for n in g.status.current_operations), wide=True),
        Column("LABELS", "labels", _labels, wide=True),
        Column("UID", "uid", _attribute("uid"), wide=True),
    ),
    ("guest", "g"),
)  # fmt: skip
HOSTS: Final = Kind(
    "hosts", "Host", "host:Host", "hosts/{host}",
    (
        _name(),
        Column("STATE", "state", lambda h: enum(h, "state"), state=True),
        Column("BACKEND", "backend", _attribute("backend")),
        Column("HYPERVISOR", "hypervisor",
               lambda h: f"{h.facts.hypervisor} {h.facts.hypervisor_version}".strip()),
        Column("ACCEL", "accelerators", _accelerators),
        Column("CPUS", "cpus", lambda h: h.facts.cpus if h.facts.HasField("cpus") else None),
        Column("MEMORY", "memory_bytes",
               lambda h: h.facts.memory_bytes if h.facts.HasField("memory_bytes") else None, text.size),
        Column("GUESTS", "guest_count", optional("guest_count")),
        Column("URI", "uri", _attribute("uri"), wide=True),
        Column("ORIGIN", "origin", _attribute("origin"), wide=True),
        _age("CONTACT", "last_contact_time", wide=True),
        Column("ERROR", "error", lambda h: h.last_error.message if h.HasField("last_error") else "", wide=True),
        Column("LABELS", "labels", _labels, wide=True),
    ),
    ("host", "h"),
)  # fmt: skip
SNAPSHOTS: Final = Kind(
    "snapshots", "Snapshot", "snapshot:Snapshot", "hosts/{host}/guests/{guest}/snapshots/{snapshot}",
    (
        _name(),
        Column("GUEST", "guest", lambda s: part(s.name, "guests")),
        _host(),
        Column("KIND", "kind", lambda s: enum(s, "kind").replace("_AND_", "+")),
        Column("GUEST STATE", "guest_state", _attribute("guest_state"), state=True),
        Column("PARENT", "parent", _attribute("parent")),
        Column("CURRENT", "current", _attribute("current"), lambda value: "*" if value else ""),
        _age("AGE", "create_time"),
        Column("LOCATION", "location", _attribute("location"), wide=True),
        Column("DESCRIPTION", "description", _attribute("description"), wide=True),
    ),
    ("snapshot", "snap", "snaps"),
)  # fmt: skip
POOLS: Final = Kind(
    "pools", "Pool", "storage:Pool", "hosts/{host}/pools/{pool}",
    (
        _name(), _host(),
        Column("KIND", "kind", _attribute("kind")),
        Column("STATE", "state", lambda p: enum(p, "state"), state=True),
        _bytes("CAPACITY", "capacity_bytes"),
        _bytes("AVAILABLE", "available_bytes"),
        _bytes("USED", "allocation_bytes", wide=True),
        Column("PATH", "path", _attribute("path"), wide=True),
    ),
    ("pool",),
)  # fmt: skip
VOLUMES: Final = Kind(
    "volumes", "Volume", "storage:Volume", "hosts/{host}/pools/{pool}/volumes/{volume}",
    (
        _name(),
        Column("POOL", "pool", lambda v: part(v.name, "pools")),
        _host(),
        Column("FORMAT", "format", _attribute("format")),
        _bytes("CAPACITY", "capacity_bytes"),
        _bytes("ALLOCATION", "allocation_bytes"),
        Column("USED BY", "used_by", lambda v: _join(v.used_by), lambda v: _join(last(n) for n in v.split(",")) or "-"),
        Column("PATH", "path", _attribute("path"), wide=True),
        Column("BACKING", "backing_path", _attribute("backing_path"), wide=True),
    ),
    ("volume", "vol", "vols"),
)  # fmt: skip
NETWORKS: Final = Kind(
    "networks", "Network", "network:Network", "hosts/{host}/networks/{network}",
    (
        _name(), _host(),
        Column("ACTIVE", "active", optional("active"), lambda v: "-" if v is None else "yes" if v else "no"),
        Column("MODE", "mode", _attribute("mode")),
        Column("BRIDGE", "bridge", _attribute("bridge")),
        Column("CIDRS", "cidrs", lambda n: _join(n.cidrs)),
        Column("AUTOSTART", "autostart", optional("autostart"),
               lambda v: "-" if v is None else "yes" if v else "no", wide=True),
    ),
    ("network", "net", "nets"),
)  # fmt: skip
IMAGES: Final = Kind(
    "images", "Image", "image:Image", "images/{image}",
    (
        _name(),
        Column("FORMAT", "format", _attribute("format")),
        Column("SIZE", "size_bytes", _attribute("size_bytes"), text.size),
        _bytes("CAPACITY", "capacity_bytes"),
        _age("AGE", "create_time"),
        Column("SOURCE", "source", _attribute("source"), wide=True),
        Column("DIGEST", "digest", _attribute("digest"), wide=True),
    ),
    ("image", "img"),
)  # fmt: skip
OPERATIONS: Final = Kind(
    "operations", "Operation", "operation:OperationMetadata", "operations/{operation}",
    (
        _name(),
        Column("VERB", "verb", _attribute("verb")),
        Column("TARGET", "target", _attribute("target")),
        Column("STATE", "state", lambda o: enum(o, "state"), state=True),
        Column("STAGE", "stage", _attribute("stage")),
        Column("DONE", "percent", _percent, lambda v: "-" if v is None else f"{v}%"),
        Column("TOOK", "elapsed", _elapsed),
        _age("AGE", "create_time"),
        Column("CALLER", "caller", _attribute("caller"), wide=True),
        Column("ERROR", "error", lambda o: o.error.reason if o.HasField("error") else "", wide=True),
        Column("RESULT", "result", _attribute("result"), wide=True),
        Column("REQUEST", "request_id", _attribute("request_id"), wide=True),
    ),
    ("operation", "op", "ops"),
)  # fmt: skip
METRICS: Final = Kind(
    "metrics", "GuestMetrics", "metrics:GuestMetrics", "hosts/{host}/guests/{guest}",
    (
        _name(), _host(),
        Column("CPU TIME", "cpu_time_s", optional("cpu_time_s"), lambda v: "-" if v is None else f"{v:.1f}s"),
        Column("VCPUS", "vcpus", optional("vcpus")),
        _bytes("MEMORY", "memory_assigned_bytes"),
        _bytes("USED", "memory_used_bytes"),
        _bytes("RSS", "memory_rss_bytes"),
        Column("READ", "read_bytes", lambda m: _total(m, "blocks", "read_bytes"), text.size),
        Column("WRITTEN", "written_bytes", lambda m: _total(m, "blocks", "written_bytes"), text.size),
        Column("RECEIVED", "received_bytes", lambda m: _total(m, "interfaces", "received_bytes"), text.size),
        Column("SENT", "sent_bytes", lambda m: _total(m, "interfaces", "sent_bytes"), text.size),
        _age("SAMPLED", "sample_time"),
        Column("UID", "uid", _attribute("uid"), wide=True),
    ),
    ("metric",),
)  # fmt: skip
AUDIT: Final = Kind(
    "audit", "AuditRecord", "audit:AuditRecord", "",
    (
        Column("SEQUENCE", "sequence", _attribute("sequence")),
        Column("TIME", "time", _time("time")),
        Column("CALLER", "caller", _attribute("caller")),
        Column("METHOD", "method", _attribute("method"), last),
        Column("RESOURCE", "resource", _attribute("resource")),
        Column("OUTCOME", "outcome", _attribute("outcome")),
        Column("OPERATION", "operation", _attribute("operation"), lambda v: last(v) or "-"),
        Column("REQUEST", "request_id", _attribute("request_id"), wide=True),
    ),
    ("audits",),
)  # fmt: skip
EVENTS: Final = Kind(
    "events", "Event", "event:Event", "",
    (
        Column("TIME", "time", _time("time")),
        Column("TYPE", "type", lambda e: enum(e, "type")),
        Column("RESOURCE", "resource", _attribute("resource")),
        Column("DETAILS", "attributes", lambda e: " ".join(f"{k}={v}" for k, v in sorted(e.attributes.items()) if v)),
        Column("REVISION", "revision", _attribute("revision"), wide=True),
        Column("UID", "uid", _attribute("uid"), wide=True),
    ),
)  # fmt: skip
CAPABILITIES: Final = Kind(
    "capabilities", "Capability", "capability:Capability", "",
    (
        Column("CAPABILITY", "id", _attribute("id")),
        Column("LEVEL", "level", lambda c: enum(c, "level"), state=True),
        Column("PROVENANCE", "provenance", lambda c: enum(c, "provenance")),
        Column("REASON", "reason", _attribute("reason"), lambda v: v),
    ),
    ("capability", "caps"),
)  # fmt: skip
PLANS: Final = Kind(
    "plans", "HostPlan", "guest_service:HostPlan", "",
    (  # of pairs: a plan, and one of its verdicts
        Column("HOST", "host", lambda pair: pair[0].host, last),
        Column("FIELD", "field", lambda pair: pair[1].field),
        Column("FIDELITY", "fidelity", lambda pair: enum(pair[1], "fidelity"), state=True),
        Column("REASON", "reason", lambda pair: pair[1].reason),
        Column("ALTERNATIVES", "alternatives", lambda pair: _join(pair[1].alternatives)),
    ),
)  # fmt: skip

GETTABLE: Final = (GUESTS, HOSTS, SNAPSHOTS, POOLS, VOLUMES, NETWORKS, IMAGES, OPERATIONS, METRICS, AUDIT)
ALL: Final = (*GETTABLE, EVENTS, CAPABILITIES, PLANS)

_WORDS: Final = {word: kind for kind in GETTABLE for word in (kind.plural, *kind.aliases)}


def find(word: str) -> Kind | None:
    """The gettable kind of that plural, singular or short name, in any case."""
    return _WORDS.get(word.lower())


def words() -> list[str]:
    """Every word that :func:`find` knows."""
    return list(_WORDS)


_GREEN, _RED, _YELLOW, _CYAN = "32", "31", "33", "36"
COLOURS: Final = {
    **dict.fromkeys(("RUNNING", "CONNECTED", "ACTIVE", "SUCCEEDED", "NATIVE"), _GREEN),
    **dict.fromkeys(("CRASHED", "UNREACHABLE", "FAILED", "UNSUPPORTED", "REJECTED", "GONE"), _RED),
    **dict.fromkeys(("PAUSED", "SUSPENDED", "UNKNOWN", "PARTIAL", "EMULATED", "DEGRADED", "IGNORED"), _YELLOW),
    **dict.fromkeys(("STARTING", "STOPPING", "PENDING", "CONNECTING"), _CYAN),
}
"""ANSI colours of states; the word always stands there as well."""

__all__ = ["ALL", "COLOURS", "GETTABLE", "Column", "Kind", "enum", "find", "last", "part", "words"]
