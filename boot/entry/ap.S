// The first instructions of every processor but the first: from the real mode that SIPI leaves it in to Rust in long mode.
//
// The code is copied to a page below 1 MiB (`{page}`), which the final page tables map to itself with all rights, and its last words
// are filled in for one processor at a time. SDM vol. 3, 10.4.4 (start-up of application processors), 11.8.5 (long mode).
//
// AT&T syntax: only there may an address be the difference of two symbols.

.set CODE_64, 8
.set CODE_32, 16
.set DATA, 24
.set CR0_PE, 1 << 0
.set CR0_PE_MP_ET_NE_WP_PG, (1 << 0) | (1 << 1) | (1 << 4) | (1 << 5) | (1 << 16) | (1 << 31)
.set CR4_PAE, 1 << 5
.set EFER, 0xc0000080
.set EFER_LME_NXE, (1 << 8) | (1 << 11)

.section .rodata.ap, "a"
.balign 16
.global ap_start
.global ap_end
.global ap_words

.code16
ap_start:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_start
    movl %cr0, %eax
    orl $CR0_PE, %eax
    movl %eax, %cr0
    ljmpl $CODE_32, ${page} + ap_protected - ap_start

.code32
ap_protected:
    movw $DATA, %ax
    movw %ax, %ds
    movw %ax, %ss
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl {page} + ap_cr3 - ap_start, %eax
    movl %eax, %cr3
    movl $EFER, %ecx
    rdmsr
    orl $EFER_LME_NXE, %eax
    wrmsr
    movl $CR0_PE_MP_ET_NE_WP_PG, %eax
    movl %eax, %cr0
    ljmpl $CODE_64, ${page} + ap_long - ap_start

.code64
ap_long:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq {page} + ap_stack - ap_start, %rsp
    movq {page} + ap_number - ap_start, %rdi
    movq {page} + ap_entry - ap_start, %rax
    xorl %ebp, %ebp
    call *%rax
1:  cli
    hlt
    jmp 1b

.balign 8
ap_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                // CODE_64
    .quad 0x00cf9b000000ffff                // CODE_32
    .quad 0x00cf93000000ffff                // DATA
ap_gdt_pointer:
    .short ap_gdt_pointer - ap_gdt - 1
    .long {page} + ap_gdt - ap_start

.balign 8
ap_words:
ap_cr3:    .quad 0
ap_stack:  .quad 0
ap_number: .quad 0
ap_entry:  .quad 0
ap_end:
