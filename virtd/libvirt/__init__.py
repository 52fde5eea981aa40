"""What the libvirt-based backends share: connections, the event thread, errors, XML per device.

Nothing here is specific to one hypervisor; policy lives in the backends.
"""
