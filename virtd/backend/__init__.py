"""The public SPI: all that a backend may import, together with :mod:`virtd.model` and :mod:`virtd.errors`.

Start with :mod:`virtd.backend.hookspecs` (how a backend is found), then
:mod:`virtd.backend.api` (what it implements), then :mod:`virtd.backend.conformance` (how it is proven).
"""

from virtd.backend.hookspecs import hookimpl

__all__ = ["hookimpl"]
