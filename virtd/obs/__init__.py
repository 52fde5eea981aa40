"""Part of virtd."""
