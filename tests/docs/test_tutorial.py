"""The tutorial and the README's tour, run against a real daemon with a real guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.tour import PAGES, differences, play

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.qemu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PAGES)
def test_page(name: str) -> None:
    outputs = play((ROOT / name).read_text())
    assert len(outputs) >= 10
    # The README shows one run in full, which the next one does not repeat; its commands have to work.
    wrong = differences(outputs) if name != "README.md" else []
    assert not wrong, "\n\n".join(wrong)
