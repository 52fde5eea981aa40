# Generated from _async/__init__.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""The sync flavour."""
