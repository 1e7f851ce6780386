// The first instructions of every processor but the first: from the real mode that SIPI leaves it in to Rust in long mode.
//
// The code is copied to a page below 1 MiB, which the final page tables map to itself with all rights. It finds the page's address by
// itself, in EBX. Its last words are filled in for one processor at a time. SDM vol. 3, 10.4.4 (start-up of application processors), 11.8.5
// (long mode).
//
// AT&T syntax: only there may an address be the difference of two symbols.

.set CODE_64, 8
.set CODE_32, 16
.set DATA, 24
.set CR0_PE, 1 << 0
.set CR0_PE_MP_ET_NE_WP_PG, (1 << 0) | (1 << 1) | (1 << 4) | (1 << 5) | (1 << 16) | (1 << 31)
.set CR4_PAE, 1 << 5
.set CR4_MCE, 1 << 6
.set MCE, 7                                 // CPUID 1:EDX
.set MCA, 14
.set MCG_STATUS, 0x17a
.set EFER, 0xc0000080
.set EFER_LME_NXE, (1 << 8) | (1 << 11)
.set MISC_ENABLE, 0x1a0
.set GENU, 0x756e6547                       // the beginning of "GenuineIntel"
.set NO_EXECUTE, 20                         // CPUID 80000001H:EDX
.set EXTENDED_FEATURES, 0x80000001

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
    xorl %ebx, %ebx
    movw %ax, %bx
    shll $4, %ebx
    leal ap_gdt - ap_start(%ebx), %eax      // the same for each that comes here
    movl %eax, ap_gdt_base - ap_start
    leal ap_protected - ap_start(%ebx), %eax
    movl %eax, ap_far_32 - ap_start
    leal ap_long - ap_start(%ebx), %eax
    movl %eax, ap_far_64 - ap_start
    lgdtl ap_gdt_pointer - ap_start
    movl %cr0, %eax
    orl $CR0_PE, %eax
    movl %eax, %cr0
    ljmpl *ap_far_32 - ap_start

.code32
ap_protected:
    movw $DATA, %ax
    movw %ax, %ds
    movw %ax, %ss
    movl %ebx, %ebp                         // the page, because CPUID changes EBX

    // Firmware may have switched no-execute off, which hides it in CPUID: IA32_MISC_ENABLE[34] (SDM vol. 4, table 2-2).
    movl $EXTENDED_FEATURES, %eax
    cpuid
    btl $NO_EXECUTE, %edx
    jc 1f
    xorl %eax, %eax
    cpuid
    cmpl $GENU, %ebx
    jne ap_stop
    movl $MISC_ENABLE, %ecx
    rdmsr
    andl $~(1 << 2), %edx
    wrmsr

    // The words are for the processor whose APIC ID they name, and for as long as they name it. One that comes late finds another ID, or
    // none, and stops for good. The first processor takes the ID back when it waits no longer. Bit 32 tells ID 0 from nothing.
1:  xorl %eax, %eax
    cpuid
    cmpl $0xb, %eax
    jb 2f
    movl $0xb, %eax                         // x2APIC ID: EDX, if EBX says that the leaf is there
    xorl %ecx, %ecx
    cpuid
    testl %ebx, %ebx
    jnz 3f
2:  movl $1, %eax
    cpuid
    movl %ebx, %edx
    shrl $24, %edx
3:  movl %edx, %eax                         // expected: EDX:EAX = 1:ID; new: ECX:EBX = 0
    movl $1, %edx
    xorl %ebx, %ebx
    xorl %ecx, %ecx
    lock cmpxchg8b ap_turn - ap_start(%ebp)
    jne ap_stop

    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl ap_cr3 - ap_start(%ebp), %eax
    movl %eax, %cr3
    movl $EFER, %ecx
    rdmsr
    orl $EFER_LME_NXE, %eax
    wrmsr
    movl $CR0_PE_MP_ET_NE_WP_PG, %eax
    movl %eax, %cr0
    ljmpl *ap_far_64 - ap_start(%ebp)

// A machine check goes to all processors of a package, or of the machine, and shuts the machine down where one of them has CR4.MCE off
// (SDM vol. 3, 7.15, interrupt 18). So a processor without work takes it: the processor logs nothing, since processors with work get the same
// machine check, and clears IA32_MCG_STATUS for the next one. An NMI has no meaning here. All parked processors share one stack, and nobody
// reads what is pushed there: no handler returns, each begins the stack anew and goes back to the HLT. Without IRET NMIs stay blocked after the
// first one, which is as good. A machine check in the NMI's handler, or the other way round, pushes a second frame below the first.
ap_stop:
    leal ap_parked - ap_start(%ebp), %eax
    movw %ax, ap_idt + 2 * 8 - ap_start(%ebp)
    shrl $16, %eax
    movw %ax, ap_idt + 2 * 8 + 6 - ap_start(%ebp)
    leal ap_parked_check - ap_start(%ebp), %eax
    movw %ax, ap_idt + 18 * 8 - ap_start(%ebp)
    shrl $16, %eax
    movw %ax, ap_idt + 18 * 8 + 6 - ap_start(%ebp)
    leal ap_idt - ap_start(%ebp), %eax
    movl %eax, ap_idt_base - ap_start(%ebp)
    leal ap_parked_stack - ap_start(%ebp), %esp
    lidtl ap_idt_pointer - ap_start(%ebp)
    movl $1, %eax
    cpuid
    btl $MCE, %edx
    jnc ap_parked
    movl $CR4_MCE, %eax
    movl %eax, %cr4
ap_parked:
    leal ap_parked_stack - ap_start(%ebp), %esp
    hlt
    jmp ap_parked

ap_parked_check:
    movl $1, %eax
    cpuid
    btl $MCA, %edx
    jnc ap_parked
    movl $MCG_STATUS, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    jmp ap_parked

.code64
ap_long:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movl %ebp, %ebx                         // the upper half is undefined until now
    movq ap_stack - ap_start(%rbx), %rsp
    movq ap_number - ap_start(%rbx), %rdi
    movq ap_entry - ap_start(%rbx), %rax
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
ap_gdt_base:
    .long 0
ap_far_32:
    .long 0
    .short CODE_32
ap_far_64:
    .long 0
    .short CODE_64

// Interrupt gates of 32 bits, whose offsets are filled in (SDM vol. 3, 7.11).
.balign 8
ap_idt:
    .zero 2 * 8
    .short 0, CODE_32, 0x8e00, 0            // 2: NMI
    .zero 15 * 8
    .short 0, CODE_32, 0x8e00, 0            // 18: machine check
ap_idt_pointer:
    .short ap_idt_pointer - ap_idt - 1
ap_idt_base:
    .long 0
    .balign 8
    .zero 32                                // two frames of 12 bytes
ap_parked_stack:

.balign 8
ap_words:
ap_turn:   .quad 0
ap_cr3:    .quad 0
ap_stack:  .quad 0
ap_number: .quad 0
ap_entry:  .quad 0
ap_end:
