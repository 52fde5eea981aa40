"""Fixtures of the tests with real libvirt and QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.qemu.fixtures import demo, lab, libvirt_host, test_driver

__all__ = ["demo", "lab", "libvirt_host", "test_driver"]

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them need a real libvirt."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.qemu)
