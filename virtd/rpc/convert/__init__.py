"""Conversion between records and protobuf messages.

``generic`` does nearly all of it; ``operations`` and ``events`` hold the special cases, ``wire``
joins encoded parts, ``encoders`` is what the layers below are given.
"""

from virtd.rpc.convert.encoders import ENCODERS
from virtd.rpc.convert.generic import enum_member, from_message, to_message

__all__ = ["ENCODERS", "enum_member", "from_message", "to_message"]
