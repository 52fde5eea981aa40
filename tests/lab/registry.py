"""The hosts of the lab; a new one is one line here, and a module for its kind."""

from __future__ import annotations

from tests.lab.kind import Host
from tests.lab.kvm import Kvm
from tests.lab.xen import Xen

_KVM = Kvm()
_XEN = Xen()

HOSTS = {
    host.name: host
    for host in (
        Host("kvm1", _KVM, link=1),
        Host("kvm2", _KVM, link=2),
        Host("xen", _XEN, link=3),
        Host("xen2", _XEN, link=4),
    )
}
