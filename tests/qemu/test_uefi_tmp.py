from tests.qemu.fixtures import *
from tests.qemu.fixtures import demo, libvirt_host, lab
from virtd.model.guest import Firmware
async def test_u(lab):
    disk = await lab.volume("u.qcow2", capacity_bytes=None, source_path=str(lab.demo.disk), source_format=DiskFormat.QCOW2, overlay=True)
    g=lab.resolved("u", direct_kernel_boot=None, disks=(disk,), firmware=Firmware.UEFI, graphics=None, interfaces=())
    uuid=await lab.running(g)
    s=await lab.session.facets.serial_console.open_console(uuid)
    buf=b""
    try:
        async with asyncio.timeout(60):
            while b"demo: ready" not in buf and b"grub>" not in buf: buf+=await s.read()
    except TimeoutError: pass
    print(buf.decode(errors="replace")[-3000:])
    if b"grub>" in buf:
        await s.write(b"set\rls\rls (hd0)/\r"); await asyncio.sleep(3)
        print((await s.read()).decode(errors="replace"))
