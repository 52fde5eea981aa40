"""Policy by area: what each part of a resolved guest becomes in libvirt's words.  Pure throughout."""
