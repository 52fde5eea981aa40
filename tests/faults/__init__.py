"""Faults on purpose: the daemon is killed, disks fill up, hosts fall silent.

``killing.py`` is the harness of the kill tests: it runs real ``virtd serve`` processes, kills them with SIGKILL at
seeded moments of an operation, starts them again, and then asks three witnesses whether they agree: the operation,
a watcher that was there all the time, and the hypervisor itself.  The hypervisor is a parameter
(:class:`killing.Witness`): ``test_kill.py`` uses the fake one, ``test_kill_qemu.py`` libvirt and QEMU.

``test_faults.py`` works with a daemon in the test's own process, on the fake hypervisor.
"""
