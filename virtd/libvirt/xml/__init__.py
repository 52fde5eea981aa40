"""libvirt's XML as small objects: one file per device, each parsing and building.

No policy lives here: what a guest gets is decided by a backend's designer.  XML is never put
together from strings, so that no name or path can break out of its place.
"""
