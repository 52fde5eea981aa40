"""The nouns of virtd: frozen, slotted dataclasses with no behaviour and no I/O.

Field names equal those of the protobuf messages in ``proto/virtd/v1``, so that one generic
converter (:mod:`virtd.rpc.convert`) serves them all and a test can prove that none is missing.

Conventions: sizes in bytes (``_bytes``), times of day as aware UTC ``datetime`` (``_time``),
spans in seconds as float (``_s``).  ``None`` means *unknown or not set*; zero is a measured zero.
"""
