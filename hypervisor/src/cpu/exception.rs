//! Exceptions and interrupts in the hypervisor itself.

use super::{
    interrupts,
    machine_check::{self, Interrupted, Severity},
};

/// The registers that the entry stubs leave on the stack: SDM vol. 3, 7.14.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    /// Caller-saved registers: R11 to R8, RDI, RSI, RDX, RCX, RAX.
    pub scratch: [u64; 9],
    /// The vector.
    pub vector: u64,
    /// The error code, or 0.
    pub error_code: u64,
    /// The interrupted instruction's RIP.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

const NMI: u64 = 2;
const MACHINE_CHECK: u64 = 18;

core::arch::global_asm!(
    ".section .text.exceptions, \"ax\"",
    ".global exception_stubs",
    ".balign 16",
    "exception_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    // SDM vol. 3, table 7-1: vectors whose error code the processor pushes.
    ".if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp exception_common",
    ".set vector, vector + 1",
    ".endr",
    "exception_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "mov rdi, rsp",
    "cld",
    "sub rsp, 8",
    "call {handler}",
    "add rsp, 8",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    handler = sym handle,
);

/// Bytes between two entry stubs.
pub const STUB_SIZE: u64 = 16;

/// Address of the entry stub of vector 0.
pub fn stubs() -> u64 {
    unsafe extern "C" {
        static exception_stubs: u8;
    }
    (&raw const exception_stubs) as u64
}

extern "C" fn handle(frame: &Frame) {
    match frame.vector {
        NMI => interrupts::count_nmi(),
        MACHINE_CHECK => {
            // The interrupted code may hold the console. If it goes on, the count is told at the end of the run.
            let report = machine_check::take(Interrupted::Hypervisor);
            if report.severity != Severity::GoesOn {
                panic!("{report}, at {:#x}", frame.rip);
            }
        }
        0..=31 => panic!(
            "exception {} (error {:#x}) at {:#x}, cr2 {:#x}, rsp {:#x}, rflags {:#x}",
            frame.vector,
            frame.error_code,
            frame.rip,
            super::cr2(),
            frame.rsp,
            frame.rflags
        ),
        vector => interrupts::arrived(vector as u8),
    }
}
