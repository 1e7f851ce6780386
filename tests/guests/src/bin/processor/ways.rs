//! What the hypervisor does not carry out: each ends the guest.
//!
//! | `way=` | what |
//! |---|---|
//! | `task` | a hardware task switch, in 32-bit code without paging |
//! | `descriptors` | MOV DS with the descriptor table in a message store |

use core::arch::asm;

use guests::bare::assigned::AssignedDsa;
use guests::bare::{Guest, exit};

/// Exit code of a guest that is still there.
const STILL_HERE: u8 = 1;

/// Goes this way.
pub fn go(guest: &Guest, way: &str) -> ! {
    match way {
        "task" => task_switch(),
        "descriptors" => descriptors(guest),
        _ => exit(STILL_HERE),
    }
}

// The way to 32-bit protected mode without paging: a 32-bit code segment, CR0.PG and EFER.LME off. There LTR takes a TSS and a far jump
// leads to another one. Addresses are below 4 GiB, and code and data mapped to themselves.
core::arch::global_asm!(
    ".pushsection .text.switch_tasks, \"ax\"",
    ".globl switch_tasks",
    "switch_tasks:",
    "cli",
    // Base addresses of both TSS descriptors: bits 31:16 at byte 4 of the descriptor are split.
    "lea rdi, [rip + 4f]",
    "lea rax, [rip + 6f]",
    "mov [rdi + 0x28 + 2], ax",
    "mov [rdi + 0x30 + 2], ax",
    "shr eax, 16",
    "mov [rdi + 0x28 + 4], al",
    "mov [rdi + 0x28 + 7], ah",
    "mov [rdi + 0x30 + 4], al",
    "mov [rdi + 0x30 + 7], ah",
    "lea rax, [rip + 5f]",
    "mov [rax + 2], rdi",
    "lgdt [rax]",
    "lea rcx, [rip + 2f]",
    "push 0x20",
    "push rcx",
    "retfq",
    ".code32",
    "2:",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "and eax, 0xfffffeff",
    "wrmsr",
    "mov eax, 0x18",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov eax, 0x28",
    "ltr ax",
    "ljmp 0x30, 0",
    "3: hlt",
    "jmp 3b",
    ".code64",
    ".popsection",
    ".pushsection .data.switch_tasks, \"aw\"",
    ".balign 8",
    "4: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff, 0x0000890000000067, 0x0000890000000067",
    "5: .word 55",
    ".quad 0",
    ".balign 128",
    "6: .fill 128, 1, 0",
    ".popsection",
);

unsafe extern "sysv64" {
    fn switch_tasks() -> !;
}

fn task_switch() -> ! {
    // SAFETY: the guest ends there.
    unsafe { switch_tasks() }
}

/// The descriptor of a data segment that nobody has loaded yet: to load it, the processor writes its accessed bit. A store keeps all bits of
/// a slot's first half.
fn descriptors(guest: &Guest) -> ! {
    const SLOT: u64 = 256;
    const DATA: u64 = 0x20;
    if let Ok(device) = AssignedDsa::start(guest) {
        let table = device.ims_address() + SLOT * 16;
        let mut pointer = [0u8; 10];
        pointer[0] = 0x7f;
        pointer[2..].copy_from_slice(&table.to_le_bytes());
        // SAFETY: a slot of the device's store. Interrupts stay off, so that nobody reads the code segment's descriptor; the guest ends here.
        unsafe {
            ((table + DATA) as *mut u64).write_volatile(0x00cf_9200_0000_ffff);
            asm!("cli", "lgdt [{}]", "mov ds, {:e}", in(reg) &pointer, in(reg) DATA as u32, options(nostack));
        }
    }
    exit(STILL_HERE)
}
