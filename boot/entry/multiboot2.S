// The first instructions: multiboot2 header, and the way from GRUB's 32-bit protected mode to Rust in long mode.
//
// Multiboot2 specification, 3.1 (header) and 3.3 (machine state): EAX = magic, EBX = physical address of the information
// structure, flat 32-bit segments, paging off, interrupts off, no stack.

.set HEADER_MAGIC, 0xe85250d6
.set ARCHITECTURE_I386, 0

.section .multiboot2, "a"
.balign 8
header:
    .long HEADER_MAGIC
    .long ARCHITECTURE_I386
    .long header_end - header
    .long -(HEADER_MAGIC + ARCHITECTURE_I386 + (header_end - header))
    // Modules on page boundaries.
    .short 6, 0
    .long 8
    // Where to begin: not everywhere where the ELF header says.
    .short 3, 0
    .long 12
    .long multiboot2_entry
    .balign 8
    // A screen of pixels, if there is one: 1024 by 768, or any. Text will do.
    .short 5, 1
    .long 20
    .long 1024, 768, 32
    .balign 8
    // End of tags.
    .short 0, 0
    .long 8
header_end:

.set EFER, 0xc0000080
.set EFER_LME, 1 << 8
.set EFER_NXE, 11
.set MISC_ENABLE, 0x1a0
.set GENU, 0x756e6547               // the beginning of "GenuineIntel"
.set NO_EXECUTE, 20                 // CPUID 80000001H:EDX
.set CR4_PAE, 1 << 5
.set CR0_PE_MP_ET_NE_WP_PG, (1 << 0) | (1 << 1) | (1 << 4) | (1 << 5) | (1 << 16) | (1 << 31)
.set PRESENT_WRITABLE, 3
.set PRESENT_WRITABLE_LARGE, 0x83

.section .text.entry, "ax"
.code32
.global multiboot2_entry
multiboot2_entry:
    cli
    cld
    mov ebp, eax                    // magic
    mov esi, ebx                    // information
    rdtsc                           // "entry" of the report: instructions are counted from here
    mov edi, eax
    mov esp, edx

    // A processor without long mode cannot run us; there is no console yet, so just stop.
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb unsupported
    mov eax, 0x80000001
    cpuid
    bt edx, 29
    jnc unsupported

    // Identity map of the first 4 GiB by 2 MiB pages. The Rust side replaces it.
    mov eax, offset boot_pdpt + PRESENT_WRITABLE
    mov [boot_pml4], eax
    mov eax, offset boot_pd + PRESENT_WRITABLE
    xor ecx, ecx
1:  mov [boot_pdpt + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jne 1b
    mov eax, PRESENT_WRITABLE_LARGE
    xor ecx, ecx
2:  mov [boot_pd + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 2b

    // Firmware may have switched no-execute off, which hides it in CPUID: IA32_MISC_ENABLE[34] (SDM vol. 4, table 2-2). The Rust side
    // refuses a processor that has none even so.
    mov eax, 0x80000001
    cpuid
    bt edx, NO_EXECUTE
    jc 3f
    xor eax, eax
    cpuid
    cmp ebx, GENU
    jne 3f
    mov ecx, MISC_ENABLE
    rdmsr
    and edx, ~(1 << 2)
    wrmsr

    // What firmware has left on (5-level paging, PCIDE, CET, protection keys) is none of ours.
3:  mov eax, CR4_PAE
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, 0x80000001
    cpuid
    and edx, 1 << NO_EXECUTE
    mov ebx, edx
    shr ebx, NO_EXECUTE - EFER_NXE
    mov ecx, EFER
    rdmsr
    or eax, EFER_LME
    or eax, ebx
    wrmsr
    mov ebx, esp                    // entry time, high half: EDX was needed for WRMSR
    mov eax, CR0_PE_MP_ET_NE_WP_PG
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    // Far jump, written out: Intel syntax for it differs among assemblers.
    .byte 0xea
    .long long_mode
    .short 8

unsupported:
    hlt
    jmp unsupported

.code64
long_mode:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [rip + boot_stack_top]
    shl rbx, 32
    mov edx, edi
    or rdx, rbx                     // third argument: TSC at entry
    mov edi, ebp                    // first: magic
    mov esi, esi                    // second: information
    xor ebp, ebp
    call {entry}
3:  cli
    hlt
    jmp 3b

.section .rodata.entry, "a"
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        // 64-bit code
boot_gdt_pointer:
    .short boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt

.section .bss.entry, "aw", @nobits
.balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 4 * 4096
// A guard page is unmapped below the stack once the final page tables are in place.
.global boot_stack_guard
boot_stack_guard: .skip 4096
.skip 256 * 1024
boot_stack_top:
