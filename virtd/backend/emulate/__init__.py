"""What virtd can do itself where a hypervisor cannot: made of other parts of the SPI, so that any backend can use it.

A backend puts these objects into its :class:`virtd.backend.api.Facets` and states the capability as EMULATED, with
the way in the reason.  Reboot and reset need no facet at all: the core emulates them where they are EMULATED.
"""
