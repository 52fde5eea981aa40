"""KVM and QEMU guests for virtd, through libvirt."""
