"""Who calls (identity), and what a caller may do (authz)."""

from virtd.auth.authz import TABLE, Permission, Policy, Rule, authorize
from virtd.auth.identity import UNKNOWN, Peer, unix_peer

__all__ = ["TABLE", "UNKNOWN", "Peer", "Permission", "Policy", "Rule", "authorize", "unix_peer"]
