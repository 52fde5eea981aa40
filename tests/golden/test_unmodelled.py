"""What a spec cannot express is named; what libvirt adds by itself is not."""

from __future__ import annotations

import pytest
from virtd_kvm.dialect import DIALECT

from virtd.libvirt.unmodelled import unmodelled_of

BASE = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name>
<memory unit='KiB'>65536</memory><currentMemory unit='KiB'>65536</currentMemory><vcpu placement='static'>1</vcpu>
{top}<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/>{os}</os>
<features><acpi/><apic/>{features}</features><cpu mode='host-passthrough' check='none'>{cpu}</cpu>
<clock offset='utc'>{clock}</clock><on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>
<on_crash>destroy</on_crash><devices><emulator>/usr/bin/qemu</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a'/><backingStore/>
<target dev='vda' bus='virtio'/><alias name='virtio-disk0'/><address type='pci'/>{disk}</disk>
<controller type='usb' index='0' model='qemu-xhci'/><input type='mouse' bus='ps2'/><input type='keyboard' bus='ps2'/>
<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/>{interface}</interface>
<audio id='1' type='none'/><memballoon model='virtio'/>{devices}</devices>{after}</domain>"""

PARTS = dict.fromkeys(("top", "os", "features", "cpu", "clock", "disk", "interface", "devices", "after"), "")

CASES: list[tuple[str, str, str]] = [
    ("top", "<iothreads>2</iothreads>", "iothreads"),
    ("top", "<memtune><hard_limit unit='KiB'>1</hard_limit></memtune>", "memtune"),
    ("top", "<cputune><shares>10</shares></cputune>", "cputune/shares"),
    ("top", "<memoryBacking><nosharepages/></memoryBacking>", "memoryBacking/nosharepages"),
    ("top", "<numatune><memory mode='strict' nodeset='0'/></numatune>", "numatune/memory"),
    ("os", "<smbios mode='host'/>", "os/smbios"),
    ("features", "<hyperv><relaxed state='on'/></hyperv>", "features/hyperv"),
    ("cpu", "<cache mode='passthrough'/>", "cpu/cache"),
    ("cpu", "<feature policy='force' name='aes'/>", "cpu/feature[aes]"),
    ("clock", "<timer name='rtc'/>", "clock/timer"),
    ("disk", "<encryption format='luks'/>", "devices/disk[vda]/encryption"),
    ("disk", "<iotune><size_iops_sec>1</size_iops_sec></iotune>", "devices/disk[vda]/iotune/size_iops_sec"),
    ("interface", "<bandwidth/>", "devices/interface[52:54:00:00:00:01]/bandwidth"),
    ("devices", "<disk type='block' device='disk'><target dev='vdb' bus='virtio'/></disk>", "devices/disk[vdb]"),
    ("devices", "<panic model='isa'/>", "devices/panic[isa]"),
    ("devices", "<graphics type='spice'/>", "devices/graphics[spice]"),
    ("devices", "<graphics type='vnc' passwd='x'/>", "devices/graphics[vnc]"),
    ("devices", "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
     "devices/channel[com.redhat.spice.0]"),
    ("devices", "<hostdev mode='subsystem' type='mdev'/>", "devices/hostdev[mdev]"),
    ("devices", "<tpm model='tpm-tis'><backend type='passthrough'/></tpm>", "devices/tpm[tpm-tis]"),
    ("after", "<qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>", "qemu:commandline"),
    ("after", "<qemu:capabilities/>", "qemu:capabilities"),
]  # fmt: skip


def test_what_libvirt_adds_is_no_such_part() -> None:
    assert unmodelled_of(BASE.format(**PARTS), DIALECT) == ()


@pytest.mark.parametrize(("place", "part", "path"), CASES, ids=[row[2] for row in CASES])
def test_what_the_spec_cannot_say_is_named(place: str, part: str, path: str) -> None:
    assert unmodelled_of(BASE.format(**{**PARTS, place: part}), DIALECT) == (path,)
