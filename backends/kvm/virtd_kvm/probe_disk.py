"""The disk of the accelerator probe's guest: ``probe.S`` beside this file, assembled.

It switches to 64-bit mode with paging, adds up the numbers from ROUNDS to 1, storing each sum, and
then writes a mark.  Firmware alone proves too little: there are hosts whose KVM runs firmware but
emulates every instruction of a 64-bit kernel, thousands of times too slowly.
"""

from __future__ import annotations

from typing import Final

ROUNDS: Final = 50_000_000
MARK: Final = 0x64747276
SUM: Final = ROUNDS * (ROUNDS + 1) // 2
RESULT_ADDRESS: Final = 0x500
RESULT_LENGTH: Final = 16
"""The mark (4 bytes), 4 bytes of nothing, the sum so far (8 bytes), little endian."""

_CODE: Final = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007c66a3000566bf001000000f22df6631c0b9000cfc66f3ab66c70600100320000066c706002003"
    "30000066c7060030830000000f20e06683c8200f22e066b9800000c00f32660d000100000f300f20c0660d010000800f22c0"
    "660f0116a77c66ea727c00000800b980f0fa0231c04801c8488904250805000048ffc975f0c704250005000076727464f4eb"
    "fd0000000000000000ffff0000009aaf000f00977c00000000"
)
_SECTOR: Final = 512
# SeaBIOS does not boot from a disk of a single sector.
_SIZE: Final = 1024 * 1024


def image() -> bytes:
    """The raw disk image."""
    sector = _CODE.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"
    return sector.ljust(_SIZE, b"\0")
