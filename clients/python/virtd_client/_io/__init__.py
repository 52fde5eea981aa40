"""What differs between the flavours and cannot be generated: two modules with the same names."""

from typing import Final

CLOSED: Final = "this client is closed"
