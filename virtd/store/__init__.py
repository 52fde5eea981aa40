"""virtd's memory: SQLite (WAL, synchronous=FULL) behind a small interface.

One writer thread groups what is waiting into one commit; readers have a connection of their own.
"""

from virtd.store.codec import Codec
from virtd.store.database import Database, open_database

__all__ = ["Codec", "Database", "open_database"]
