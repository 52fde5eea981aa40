"""Tests with a real libvirtd and real QEMU guests (marker ``qemu``)."""
