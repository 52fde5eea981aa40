"""Measurements.  They print; they assert nothing."""
