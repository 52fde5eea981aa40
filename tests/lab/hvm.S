# The guest on hvm.img: 512 bytes that a BIOS boots, for full virtualization, where reading a Linux kernel from an
# emulated disk takes minutes under emulation.
#
# Prints "GUEST-READY tiny HVM" on the first serial port and on the screen, then "tick N" about every five seconds.
# Echoes what it reads from the serial port; 'q' turns it off, 'r' resets it.  The power button turns it off.
.code16
.globl _start

.set COM1, 0x3f8
.set COM1_STATUS, 0x3fd
.set PM1_STATUS, 0              # of the ACPI registers: a button was pressed (bit 8)
.set PM1_ENABLE, 2
.set PM1_CONTROL, 4
.set TICKS, 91                  # of the BIOS clock, 18.2 a second

_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    sti
    ljmp $0, $begin

begin:
    # Where the ACPI registers are: the PCI device 00:01.3 of the chipset PIIX4, or 00:1f.0 of ICH9.
    mov $0x80000b40, %eax
    call read_pci
    cmp $0xffc0, %ax
    jne found
    mov $0x8000f840, %eax
    call read_pci
found:
    mov %ax, acpi
    mov %ax, %dx
    add $PM1_ENABLE, %dx
    mov $0x100, %ax
    out %ax, %dx
    mov $ready, %si
    call print

wait:
    hlt                         # until the next tick of the clock, at the latest
    mov acpi, %dx
    in %dx, %ax
    test $1, %ah
    jnz power_off
    mov $COM1_STATUS, %dx
    in %dx, %al
    test $1, %al
    jz count
    mov $COM1, %dx
    in %dx, %al
    cmp $'q', %al
    je power_off
    cmp $'r', %al
    je reset
    out %al, %dx
count:
    incw ticks
    cmpw $TICKS, ticks
    jb wait
    movw $0, ticks
    mov $digits + 4, %di
carry:
    incb (%di)
    cmpb $'9', (%di)
    jbe show
    movb $'0', (%di)
    dec %di
    cmp $digits, %di
    jae carry
show:
    mov $tick, %si
    call print
    jmp wait

power_off:
    mov $bye, %si
    call print
    mov acpi, %dx
    add $PM1_CONTROL, %dx
    mov $0x2000, %ax            # SLP_EN, with the sleep type of S5 on both chipsets
    out %ax, %dx
stopped:
    hlt
    jmp stopped

reset:
    mov $0x64, %dx              # the keyboard controller
    mov $0xfe, %al
    out %al, %dx
    hlt
    jmp reset

# In: the address of a register of PCI configuration space in eax. Out: a base of I/O ports in ax.
read_pci:
    mov $0xcf8, %dx
    out %eax, %dx
    mov $0xcfc, %dx
    in %dx, %ax
    and $0xffc0, %ax
    ret

# In: a text that ends with a zero byte, in si.
print:
    lodsb
    test %al, %al
    jz printed
    mov %al, %bl
busy:
    mov $COM1_STATUS, %dx
    in %dx, %al
    test $0x20, %al
    jz busy
    mov $COM1, %dx
    mov %bl, %al
    out %al, %dx
    mov $0x0e, %ah              # the BIOS puts a character on the screen
    mov $7, %bx
    int $0x10
    jmp print
printed:
    ret

ready:  .asciz "\r\nGUEST-READY tiny HVM\r\n"
tick:   .ascii "tick "
digits: .asciz "00000\r\n"
bye:    .asciz "GUEST-POWEROFF\r\n"
ticks:  .word 0
acpi:   .word 0

    .org 510
    .word 0xaa55
