# The accelerator probe's guest: a boot sector that switches to 64-bit mode with paging, counts, and
# leaves its result at 0x500.  Assemble: as -o probe.o probe.S && ld -Ttext 0x7c00 --oformat binary -o probe.bin probe.o
.set ROUNDS, 50000000
.set RESULT, 0x500
.code16
.globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    movl %eax, RESULT
    # Page tables: PML4, PDPT and PD at 0x1000, 0x2000, 0x3000; one 2 MiB page, identity.
    movl $0x1000, %edi
    movl %edi, %cr3
    xorl %eax, %eax
    movw $3072, %cx
    cld
    rep stosl
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    movl $0x0083, 0x3000
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    lgdtl gdtr
    ljmpl $8, $long
.code64
long:
    movl $ROUNDS, %ecx
    xorl %eax, %eax
1:  addq %rcx, %rax
    movq %rax, RESULT + 8
    decq %rcx
    jnz 1b
    movl $0x64747276, RESULT
2:  hlt
    jmp 2b
gdt:
    .quad 0
    .quad 0x00af9a000000ffff
gdtr:
    .word 15
    .long gdt
    .org 510
    .word 0xaa55
