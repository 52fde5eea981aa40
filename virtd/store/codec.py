"""Frozen dataclasses to JSON text and back, for the store.

pydantic's TypeAdapter does the work; it understands stdlib dataclasses, enums, UUIDs, datetimes and
tuples, and refuses text that does not fit, so that a damaged row is found when it is read.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


class Codec(Generic[T]):
    """Encodes and decodes one dataclass type.  Building it is slow (milliseconds): keep it."""

    def __init__(self, type_: type[T]) -> None:
        self.type = type_
        self._adapter: TypeAdapter[T] = TypeAdapter(type_)

    def encode(self, value: T) -> str:
        """JSON text.  Fields at their default are left out: rows stay small and old rows readable."""
        return self._adapter.dump_json(value, exclude_defaults=True).decode()

    def decode(self, text: str) -> T:
        """The value.

        :raises pydantic.ValidationError: the text is not an encoding of this type.
        """
        return self._adapter.validate_json(text)
