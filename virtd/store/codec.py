"""Frozen dataclasses to JSON text and back, for the store.

pydantic's TypeAdapter does the work; it understands stdlib dataclasses, enums, UUIDs, datetimes and
tuples, and refuses text that does not fit, so that a damaged row is found when it is read.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from virtd.errors import JOURNAL_CORRUPT, InternalError

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

        :raises InternalError: JOURNAL_CORRUPT, the text is not an encoding of this type.
        """
        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InternalError(
                JOURNAL_CORRUPT,
                f"a row of the journal is not a {self.type.__name__} ({place}: {first['msg']}); "
                "virtd changed nothing in it",
            ) from None
