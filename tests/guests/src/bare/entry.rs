//! The first instructions, as Linux's 64-bit boot protocol leaves the machine (Documentation/arch/x86/boot.rst, "64-bit Boot
//! Protocol"): RSI = `boot_params`, interrupts off, no stack.

use core::cell::UnsafeCell;

use super::physical::PhysicalMemory;
use super::take_once::TakeOnce;
use super::{Guest, apic, console, exit, interrupts, profile};
use crate::boot_params::BootParams;

const STACK_SIZE: usize = 64 * 1024;
/// Linux's COMMAND_LINE_SIZE.
const COMMAND_LINE_SIZE: usize = 2048;

#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: only the processor uses it, through RSP.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));

// The descriptor table holds code at 0x10 and data at 0x18, where the boot protocol has them. It is loaded because interrupts
// read the code segment's descriptor again, and nobody says that the table before is still in memory.
core::arch::global_asm!(
    ".pushsection .text._start, \"ax\"",
    ".globl _start",
    "_start:",
    "cli",
    "cld",
    "lea rsp, [rip + {stack} + {stack_size}]",
    "lgdt [rip + 2f]",
    "push 0x10",
    "lea rax, [rip + 1f]",
    "push rax",
    "retfq",
    "1:",
    "mov eax, 0x18",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "xor ebp, ebp",
    "mov rdi, rsi",
    "call {enter}",
    "ud2",
    ".popsection",
    ".pushsection .rodata.gdt, \"a\"",
    ".balign 8",
    "3: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "2: .word 31",
    ".quad 3b",
    ".popsection",
    stack = sym STACK,
    stack_size = const STACK_SIZE,
    enter = sym enter,
);

unsafe extern "Rust" {
    /// The guest's program, from [`guest!`](crate::guest).
    safe fn guest_main(guest: &Guest) -> u8;
}

extern "C" fn enter(boot_params: u64) -> ! {
    static COMMAND_LINE: TakeOnce<[u8; COMMAND_LINE_SIZE]> = TakeOnce::new([0; COMMAND_LINE_SIZE]);
    console::load();
    let boot = BootParams::new(PhysicalMemory, boot_params);
    let command_line = boot.command_line(COMMAND_LINE.take());
    profile::choose(command_line);
    interrupts::load();
    apic::enable();
    exit(guest_main(&Guest { boot, command_line }))
}
