"""The types that guestctl shows: their words on the command line, and their columns."""

from __future__ import annotations

from typing import Any, Final

from virtd.cli.ctl import text
from virtd.cli.ctl.columns import (
    Column,
    Kind,
    age_of,
    attribute,
    bytes_column,
    enum,
    host_column,
    join,
    labels_of,
    last,
    name_column,
    optional,
    part,
    short,
    time_of,
    total,
)


def _guest_state(guest: Any) -> str:
    state = enum(guest.status, "state")
    if enum(guest.status, "presence") == "ABSENT":
        return "GONE"
    return f"{state} (stale)" if guest.status.HasField("stale_since") else state


def _ready(guest: Any) -> str:
    holds = [enum(c, "type") for c in guest.status.conditions if enum(c, "status") == "TRUE"]
    return join(word.lower().replace("_", "-") for word in holds)


def _accelerators(host: Any) -> str:
    return join(a.accelerator for a in host.facts.accelerators if a.usable)


def _percent(operation: Any) -> object:
    return round(operation.fraction * 100) if operation.HasField("fraction") else None


def _elapsed(operation: Any) -> str:
    if not operation.HasField("start_time"):
        return "-"
    if not operation.HasField("end_time"):
        return text.age(operation.start_time)
    seconds = operation.end_time.seconds - operation.start_time.seconds
    return text.duration(seconds + (operation.end_time.nanos - operation.start_time.nanos) / 1e9)


GUESTS: Final = Kind(
    "guests", "Guest", "guest:Guest", "hosts/{host}/guests/{guest}",
    (
        name_column(), host_column(),
        Column("STATE", "state", _guest_state, state=True),
        Column("VCPUS", "vcpus", lambda g: g.spec.vcpus if g.spec.HasField("vcpus") else None),
        Column("MEMORY", "memory_bytes",
               lambda g: g.spec.memory_bytes if g.spec.HasField("memory_bytes") else None, text.size),
        Column("ADDRESS", "address", lambda g: g.status.addresses[0].address if g.status.addresses else ""),
        age_of("AGE", "create_time"),
        Column("READY", "ready", _ready, wide=True),
        Column("REASON", "state_reason", lambda g: g.status.state_reason, wide=True),
        Column("ACCEL", "accelerator", lambda g: enum(g.status, "accelerator").replace("UNSPECIFIED", ""), wide=True),
        Column("ORIGIN", "origin", lambda g: enum(g.status, "origin"), wide=True),
        Column("OPERATIONS", "operations", lambda g: join(last(n) for n in g.status.current_operations), wide=True),
        Column("LABELS", "labels", labels_of, wide=True),
        Column("UID", "uid", attribute("uid"), wide=True),
    ),
    ("guest", "g"),
)  # fmt: skip
HOSTS: Final = Kind(
    "hosts", "Host", "host:Host", "hosts/{host}",
    (
        name_column(),
        Column("STATE", "state", lambda h: enum(h, "state"), state=True),
        Column("BACKEND", "backend", attribute("backend")),
        Column("HYPERVISOR", "hypervisor",
               lambda h: f"{h.facts.hypervisor} {h.facts.hypervisor_version}".strip()),
        Column("ACCEL", "accelerators", _accelerators),
        Column("CPUS", "cpus", lambda h: h.facts.cpus if h.facts.HasField("cpus") else None),
        Column("MEMORY", "memory_bytes",
               lambda h: h.facts.memory_bytes if h.facts.HasField("memory_bytes") else None, text.size),
        Column("GUESTS", "guest_count", optional("guest_count")),
        Column("URI", "uri", attribute("uri"), wide=True),
        Column("ORIGIN", "origin", attribute("origin"), wide=True),
        age_of("CONTACT", "last_contact_time", wide=True),
        Column("ERROR", "error", lambda h: h.last_error.message if h.HasField("last_error") else "", wide=True),
        Column("LABELS", "labels", labels_of, wide=True),
    ),
    ("host", "h"),
)  # fmt: skip
SNAPSHOTS: Final = Kind(
    "snapshots", "Snapshot", "snapshot:Snapshot", "hosts/{host}/guests/{guest}/snapshots/{snapshot}",
    (
        name_column(),
        Column("GUEST", "guest", lambda s: part(s.name, "guests")),
        host_column(),
        Column("KIND", "kind", lambda s: enum(s, "kind").replace("_AND_", "+")),
        Column("GUEST STATE", "guest_state", attribute("guest_state"), state=True),
        Column("PARENT", "parent", attribute("parent")),
        Column("CURRENT", "current", attribute("current"), lambda value: "*" if value else ""),
        age_of("AGE", "create_time"),
        Column("LOCATION", "location", attribute("location"), wide=True),
        Column("DESCRIPTION", "description", attribute("description"), wide=True),
    ),
    ("snapshot", "snap", "snaps"),
)  # fmt: skip
POOLS: Final = Kind(
    "pools", "Pool", "storage:Pool", "hosts/{host}/pools/{pool}",
    (
        name_column(), host_column(),
        Column("KIND", "kind", attribute("kind")),
        Column("STATE", "state", lambda p: enum(p, "state"), state=True),
        bytes_column("CAPACITY", "capacity_bytes"),
        bytes_column("AVAILABLE", "available_bytes"),
        bytes_column("USED", "allocation_bytes", wide=True),
        Column("PATH", "path", attribute("path"), wide=True),
    ),
    ("pool",),
)  # fmt: skip
VOLUMES: Final = Kind(
    "volumes", "Volume", "storage:Volume", "hosts/{host}/pools/{pool}/volumes/{volume}",
    (
        name_column(),
        Column("POOL", "pool", lambda v: part(v.name, "pools")),
        host_column(),
        Column("FORMAT", "format", attribute("format")),
        bytes_column("CAPACITY", "capacity_bytes"),
        bytes_column("ALLOCATION", "allocation_bytes"),
        Column("USED BY", "used_by", lambda v: join(v.used_by), lambda v: join(last(n) for n in v.split(",")) or "-"),
        Column("PATH", "path", attribute("path"), wide=True),
        Column("BACKING", "backing_path", attribute("backing_path"), wide=True),
    ),
    ("volume", "vol", "vols"),
)  # fmt: skip
NETWORKS: Final = Kind(
    "networks", "Network", "network:Network", "hosts/{host}/networks/{network}",
    (
        name_column(), host_column(),
        Column("ACTIVE", "active", optional("active"), lambda v: "-" if v is None else "yes" if v else "no"),
        Column("MODE", "mode", attribute("mode")),
        Column("BRIDGE", "bridge", attribute("bridge")),
        Column("CIDRS", "cidrs", lambda n: join(n.cidrs)),
        Column("AUTOSTART", "autostart", optional("autostart"),
               lambda v: "-" if v is None else "yes" if v else "no", wide=True),
    ),
    ("network", "net", "nets"),
)  # fmt: skip
IMAGES: Final = Kind(
    "images", "Image", "image:Image", "images/{image}",
    (
        name_column(),
        Column("FORMAT", "format", attribute("format")),
        Column("SIZE", "size_bytes", attribute("size_bytes"), text.size),
        bytes_column("CAPACITY", "capacity_bytes"),
        age_of("AGE", "create_time"),
        Column("SOURCE", "source", attribute("source"), wide=True),
        Column("DIGEST", "digest", attribute("digest"), wide=True),
    ),
    ("image", "img"),
)  # fmt: skip
OPERATIONS: Final = Kind(
    "operations", "Operation", "operation:OperationMetadata", "operations/{operation}",
    (
        name_column(),
        Column("VERB", "verb", attribute("verb")),
        Column("TARGET", "target", attribute("target")),
        Column("STATE", "state", lambda o: enum(o, "state"), state=True),
        Column("STAGE", "stage", attribute("stage")),
        Column("DONE", "percent", _percent, lambda v: "-" if v is None else f"{v}%"),
        Column("TOOK", "elapsed", _elapsed),
        age_of("AGE", "create_time"),
        Column("CALLER", "caller", attribute("caller"), wide=True),
        Column("ERROR", "error", lambda o: o.error.reason if o.HasField("error") else "", wide=True),
        Column("RESULT", "result", attribute("result"), wide=True),
        Column("REQUEST", "request_id", attribute("request_id"), wide=True),
    ),
    ("operation", "op", "ops"),
)  # fmt: skip
METRICS: Final = Kind(
    "metrics", "GuestMetrics", "metrics:GuestMetrics", "hosts/{host}/guests/{guest}",
    (
        name_column(), host_column(),
        Column("CPU TIME", "cpu_time_s", optional("cpu_time_s"), lambda v: "-" if v is None else f"{v:.1f}s"),
        Column("VCPUS", "vcpus", optional("vcpus")),
        bytes_column("MEMORY", "memory_assigned_bytes"),
        bytes_column("USED", "memory_used_bytes"),
        bytes_column("RSS", "memory_rss_bytes"),
        Column("READ", "read_bytes", lambda m: total(m, "blocks", "read_bytes"), text.size),
        Column("WRITTEN", "written_bytes", lambda m: total(m, "blocks", "written_bytes"), text.size),
        Column("RECEIVED", "received_bytes", lambda m: total(m, "interfaces", "received_bytes"), text.size),
        Column("SENT", "sent_bytes", lambda m: total(m, "interfaces", "sent_bytes"), text.size),
        age_of("SAMPLED", "sample_time"),
        Column("UID", "uid", attribute("uid"), wide=True),
    ),
    ("metric",),
)  # fmt: skip
AUDIT: Final = Kind(
    "audit", "AuditRecord", "audit:AuditRecord", "",
    (
        Column("SEQUENCE", "sequence", attribute("sequence")),
        Column("TIME", "time", time_of("time")),
        Column("CALLER", "caller", attribute("caller")),
        Column("METHOD", "method", attribute("method"), last),
        Column("RESOURCE", "resource", attribute("resource")),
        Column("OUTCOME", "outcome", attribute("outcome")),
        Column("OPERATION", "operation", attribute("operation"), lambda v: last(v) or "-"),
        Column("REQUEST", "request_id", attribute("request_id"), wide=True),
    ),
    ("audits",),
)  # fmt: skip
EVENTS: Final = Kind(
    "events", "Event", "event:Event", "",
    (
        Column("TIME", "time", time_of("time")),
        Column("TYPE", "type", lambda e: enum(e, "type")),
        Column("RESOURCE", "resource", attribute("resource")),
        Column("DETAILS", "attributes", lambda e: " ".join(f"{k}={v}" for k, v in sorted(e.attributes.items()) if v)),
        Column("REVISION", "revision", attribute("revision"), wide=True),
        Column("UID", "uid", attribute("uid"), wide=True),
    ),
)  # fmt: skip
CAPABILITIES: Final = Kind(
    "capabilities", "Capability", "capability:Capability", "",
    (
        Column("CAPABILITY", "id", attribute("id")),
        Column("LEVEL", "level", lambda c: enum(c, "level"), state=True),
        Column("PROVENANCE", "provenance", lambda c: enum(c, "provenance")),
        Column("VERIFIED WITH", "verified_with", attribute("verified_with"), lambda v: v or "-"),
        Column("VERIFIED", "verified_time", time_of("verified_time"), wide=True),
        Column("REASON", "reason", attribute("reason"), lambda v: v),
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
        Column("ALTERNATIVES", "alternatives", lambda pair: join(pair[1].alternatives)),
    ),
)  # fmt: skip

CHANGES: Final = Kind(
    "changes", "FieldChange", "guest_service:FieldChange", "",
    (  # of pairs: a guest's name, and one change
        Column("GUEST", "guest", lambda pair: pair[0], last),
        Column("FIELD", "field", lambda pair: pair[1].field),
        Column("OLD", "old", lambda pair: pair[1].old),
        Column("NEW", "new", lambda pair: pair[1].new),
        Column("EFFECT", "effect", lambda pair: enum(pair[1], "effect").replace("UNSPECIFIED", "CREATE"), state=True),
        Column("REASON", "reason", lambda pair: pair[1].reason),
    ),
)  # fmt: skip
CHECKS: Final = Kind(
    "checks", "HostCheck", "host:HostCheck", "",
    (  # of pairs: a host's name, and one of its checks
        Column("HOST", "host", lambda pair: pair[0], last),
        Column("CHECK", "id", lambda pair: pair[1].id),
        Column("STATUS", "status", lambda pair: enum(pair[1], "status"), state=True),
        Column("FOUND", "summary", lambda pair: pair[1].summary),
        Column("WHAT TO DO", "remedy", lambda pair: pair[1].remedy),
    ),
)  # fmt: skip
FINDINGS: Final = Kind(
    "findings", "MigrationFinding", "transfer:MigrationFinding", "",
    (
        Column("SEVERITY", "severity", lambda finding: enum(finding, "severity"), state=True),
        Column("REASON", "reason", attribute("reason")),
        Column("FOUND", "message", attribute("message")),
        Column("WHAT TO DO", "remedy", attribute("remedy")),
    ),
)  # fmt: skip


def _rate(title: str, field: str) -> Column:
    def show(value: Any) -> str:
        return "-" if value is None else f"{text.size(int(value))}/s"

    return Column(title, f"{field}_bytes_per_s", attribute(field), show)


TOP: Final = Kind(
    "usage", "GuestMetrics", "metrics:GuestMetrics", "hosts/{host}/guests/{guest}",
    (  # of rows that `top` makes of two samples
        name_column(), host_column(),
        Column("CPU", "cpu_cores", attribute("cpu"), lambda v: "-" if v is None else f"{v:.2f}"),
        Column("VCPUS", "vcpus", attribute("vcpus")),
        Column("MEMORY", "memory_bytes", attribute("memory"), text.size),
        Column("RSS", "memory_rss_bytes", attribute("rss"), text.size, wide=True),
        _rate("READ", "read"), _rate("WRITTEN", "written"), _rate("RECEIVED", "received"), _rate("SENT", "sent"),
    ),
)  # fmt: skip


def _yes(value: Any) -> str:
    return "-" if value is None else "yes" if value else "no"


BACKUPS: Final = Kind(
    "backups", "Backup", "backup:Backup", "backups/{backup}",
    (
        name_column(),
        Column("GUEST", "guest", attribute("guest"), lambda v: last(v) or "-"),
        Column("KIND", "kind", lambda b: enum(b, "kind")),
        Column("PARENT", "parent", attribute("parent"), lambda v: last(v) or "-"),
        Column("STORED", "stored_bytes", attribute("stored_bytes"), text.size),
        age_of("AGE", "create_time"),
        Column("QUIESCED", "quiesced", attribute("quiesced"), _yes, wide=True),
        Column("STATE", "guest_state", attribute("guest_state"), wide=True),
        Column("REPOSITORY", "repository", attribute("repository"), wide=True),
        Column("DESCRIPTION", "description", attribute("description"), wide=True),
    ),
    ("backup",),
)  # fmt: skip
TRASH: Final = Kind(
    "trash", "TrashEntry", "trash:TrashEntry", "trash/{entry}",
    (
        name_column(),
        Column("GUEST", "guest", lambda t: last(t.guest.name)),
        Column("HOST", "host", lambda t: part(t.guest.name, "hosts")),
        Column("VOLUMES", "volumes", lambda t: len(t.volumes)),
        age_of("DELETED", "trash_time"),
        Column("PURGED AT", "purge_time", time_of("purge_time")),
        Column("CALLER", "caller", attribute("caller"), wide=True),
        Column("LOST", "lost", lambda t: "; ".join(t.lost), wide=True),
    ),
    (),
)  # fmt: skip
UPLOADS: Final = Kind(
    "uploads", "Upload", "upload:Upload", "uploads/{upload}",
    (
        name_column(),
        Column("TARGET", "target", attribute("target")),
        Column("RECEIVED", "received_bytes", attribute("received_bytes"), text.size),
        Column("SIZE", "size_bytes", attribute("size_bytes"), text.size),
    ),
    ("upload",),
)  # fmt: skip
SCHEDULES: Final = Kind(
    "schedules", "Schedule", "schedule:Schedule", "schedules/{schedule}",
    (
        name_column(),
        Column("FOR", "for", lambda s: last(s.guest) if s.guest else s.filter),
        Column("WHEN", "when", lambda s: s.cron or f"every {text.duration(s.every_s)}"),
        Column("NEXT", "next_run_time",
               lambda s: text.moment(s.status.next_run_time) if s.status.HasField("next_run_time") else None),
        Column("LAST", "last_run_time",
               lambda s: text.moment(s.status.last_run_time) if s.status.HasField("last_run_time") else None),
        Column("FAILURES", "failures", lambda s: s.status.failures),
        Column("PAUSED", "paused", attribute("paused"), _yes),
        Column("ERROR", "error", lambda s: s.status.last_error.message if s.status.HasField("last_error") else "",
               wide=True),
        Column("DESCRIPTION", "description", attribute("description"), wide=True),
    ),
    ("schedule",),
)  # fmt: skip
LEASES: Final = Kind(
    "leases", "DhcpLease", "network:DhcpLease", "",
    (
        Column("ADDRESS", "address", attribute("address")),
        Column("MAC", "mac", attribute("mac")),
        Column("HOSTNAME", "hostname", attribute("hostname")),
        Column("GUEST", "guest", attribute("guest"), lambda v: last(v) or "-"),
        Column("UNTIL", "expire_time", time_of("expire_time")),
    ),
)  # fmt: skip
VERIFICATIONS: Final = Kind(
    "verifications", "BackupProblem", "backup:BackupProblem", "",
    (
        Column("BACKUP", "backup", attribute("backup"), last),
        Column("FILE", "file", attribute("file")),
        Column("PROBLEM", "description", attribute("description")),
    ),
)  # fmt: skip

GETTABLE: Final = (
    GUESTS,
    HOSTS,
    SNAPSHOTS,
    POOLS,
    VOLUMES,
    NETWORKS,
    IMAGES,
    OPERATIONS,
    METRICS,
    AUDIT,
    BACKUPS,
    TRASH,
    SCHEDULES,
    UPLOADS,
)
ALL: Final = (*GETTABLE, EVENTS, CAPABILITIES, PLANS, CHECKS, FINDINGS, CHANGES, LEASES, VERIFICATIONS)

_WORDS: Final = {word: kind for kind in GETTABLE for word in (kind.plural, *kind.aliases)}


def find(word: str) -> Kind | None:
    """The gettable kind of that plural, singular or short name, in any case."""
    return _WORDS.get(word.lower())


def words() -> list[str]:
    """Every word that :func:`find` knows."""
    return list(_WORDS)


_GREEN, _RED, _YELLOW, _CYAN = "32", "31", "33", "36"
COLOURS: Final = {
    **dict.fromkeys(("RUNNING", "CONNECTED", "ACTIVE", "SUCCEEDED", "NATIVE", "OK"), _GREEN),
    **dict.fromkeys(("CRASHED", "UNREACHABLE", "FAILED", "UNSUPPORTED", "REJECTED", "GONE", "PROBLEM"), _RED),
    **dict.fromkeys(
        ("PAUSED", "SUSPENDED", "UNKNOWN", "PARTIAL", "EMULATED", "DEGRADED", "IGNORED", "WARNING"), _YELLOW
    ),
    **dict.fromkeys(("STARTING", "STOPPING", "PENDING", "CONNECTING"), _CYAN),
}
"""ANSI colours of states; the word always stands there as well."""

__all__ = ["ALL", "COLOURS", "GETTABLE", "Column", "Kind", "enum", "find", "last", "part", "short", "total", "words"]
