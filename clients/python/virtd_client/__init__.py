"""The Python client of virtd."""
