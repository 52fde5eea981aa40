"""The conformance kit: what every backend must do, ours or a stranger's.

A backend's own test module needs one import and one fixture::

    from virtd.backend.conformance.suite import *  # noqa: F403 - the kit is one import
    import pytest


    @pytest.fixture(scope="module")
    def provision():
        return Provision(backend=MyBackend(), uri="mine:///")

Every check belongs to a capability.  A capability that the host declares must work; one that it does
not declare must be refused, with its reason and without a side effect: nothing is skipped.  One that
is PARTIAL must work or refuse with CAPABILITY_UNSUPPORTED.  What a provision gives no means to check
is NOT_RUN in the report, with the reason, and the capability is then not VERIFIED.

``pytest --virtd-conformance-report=FILE`` (or ``Provision.report``) writes the machine-readable report
of :mod:`virtd.backend.conformance.report`.  The kit needs pytest and nothing else; it runs each
check on an event loop of its own.
"""

from pathlib import Path

import pytest

# The checks are plain asserts in modules that pytest does not collect by itself.
pytest.register_assert_rewrite(
    *(f"{__name__}.{path.stem}" for path in sorted(Path(__file__).parent.glob("checks_*.py"))),
    f"{__name__}.shell",
    f"{__name__}.kit",
)
