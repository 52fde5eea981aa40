"""Builds the demo guest, a tiny real guest, from this machine's Debian or Ubuntu packages.

It is a kernel, BusyBox and the QEMU guest agent: boots in seconds under plain emulation, prints
``demo: ready`` on its first serial port, takes an address on every ``eth*``, answers the agent,
serves a page on port 80, gives a root shell on the serial port, and powers off when told to.

``build_demo()`` builds it once and afterwards finds it in a cache outside the repository;
``python -m tests.guests`` does the same from a shell and prints where it is.
"""

from __future__ import annotations

from tests.guests.demo import CMDLINE, DemoGuest, build_demo
from tests.guests.tools import GuestBuildError

__all__ = ["CMDLINE", "DemoGuest", "GuestBuildError", "build_demo"]
