"""Xen guests through libvirt."""
