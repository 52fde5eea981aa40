"""guestctl, one module for each part; :mod:`virtd.cli.guestctl` is the entry point.

Imports are the start-up time of a command, so modules of this package import only what every
command needs; ``rich``, ``yaml``, ``json_format`` and the commands themselves are imported where
they are used.
"""
