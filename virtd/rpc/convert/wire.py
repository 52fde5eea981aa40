"""Answers put together from parts that are encoded already.

A repeated or nested message is, on the wire, a tag, a length and its bytes; the order of fields
does not matter.  So a list of guests is a join of the guests' cached bytes, an event carries its
payload without decoding it, and ten thousand watchers share one encoding.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.descriptor import Descriptor

_LENGTH_DELIMITED = 2


def tag(descriptor: Descriptor, field: str) -> bytes:
    """The tag of a message or string field."""
    return varint(descriptor.fields_by_name[field].number << 3 | _LENGTH_DELIMITED)


def varint(value: int) -> bytes:
    """``value`` (not negative) in base 128, as protobuf writes lengths."""
    if value < 0x80:  # noqa: PLR2004 - the format's own constant
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - the format's own constant
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def nested(field_tag: bytes, encoded: bytes) -> bytes:
    """One field that holds an encoded message."""
    return b"".join((field_tag, varint(len(encoded)), encoded))


def repeated(field_tag: bytes, parts: Iterable[bytes], rest: bytes = b"") -> bytes:
    """A message that has ``parts`` in one repeated field, and the fields that ``rest`` encodes."""
    pieces: list[bytes] = []
    for part in parts:
        pieces += (field_tag, varint(len(part)), part)
    pieces.append(rest)
    return b"".join(pieces)
