//! The interrupt descriptor table and the handlers of its vectors.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering::SeqCst};

use super::{EXIT_EXCEPTION, apic, exit, faults, profile};
use crate::println;

/// The vector of non-maskable interrupts, which get no EOI.
pub const NMI: u8 = 2;
/// Vectors below this are exceptions.
const EXCEPTIONS: u64 = 32;
/// The code segment of the boot protocol.
const CODE_SEGMENT: u64 = 0x10;
/// Type and rights of a 64-bit interrupt gate, present, for CPL 0 (SDM vol. 3, 7.14.1).
const INTERRUPT_GATE: u64 = 0x8e00;
/// A trap gate: it leaves IF as it is.
const TRAP_GATE: u64 = 0x8f00;

// Each vector's stub pushes a zero where the processor pushes no error code, and then its number: 16 bytes each.
global_asm!(
    ".pushsection .text.interrupt_stubs, \"ax\"",
    ".balign 16",
    ".globl interrupt_stubs",
    "interrupt_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30",
    "push 0",
    ".endif",
    "push vector",
    "jmp 2f",
    ".set vector, vector + 1",
    ".endr",
    "2:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {dispatch}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    ".popsection",
    dispatch = sym dispatch,
);

/// What the stubs push, and before them the processor.
#[repr(C)]
struct Frame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

#[repr(C, align(16))]
struct Table(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: written once, before interrupts are on; afterwards only the processor reads it.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; 256]));
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// A gate of a kind to `stub` (SDM vol. 3, 7.14.1).
const fn gate(stub: u64, kind: u64) -> [u64; 2] {
    [stub & 0xffff | CODE_SEGMENT << 16 | kind << 32 | (stub & 0xffff_0000) << 32, stub >> 32]
}

/// Fills the table in and loads it.
pub(super) fn load() {
    unsafe extern "C" {
        static interrupt_stubs: [[u8; 16]; 256];
    }
    let kind = if profile::is_posted() { TRAP_GATE } else { INTERRUPT_GATE };
    // SAFETY: the only write, before interrupts are on.
    let table = unsafe { &mut *TABLE.0.get() };
    for (n, entry) in table.iter_mut().enumerate() {
        // SAFETY: the address of a stub; nothing is read.
        *entry = gate(unsafe { &raw const interrupt_stubs[n] } as u64, kind);
    }
    use_table();
}

/// Points this processor to the table, which is filled in.
pub(super) fn use_table() {
    load_table(TABLE.0.get() as u64, size_of::<Table>() as u16 - 1);
}

/// Points the processor to a table.
fn load_table(base: u64, limit: u16) {
    let mut pointer = [0u8; 10];
    pointer[..2].copy_from_slice(&limit.to_le_bytes());
    pointer[2..].copy_from_slice(&base.to_le_bytes());
    // SAFETY: the table is complete, or the caller wants the next interrupt to be the last.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags)) }
}

/// Takes the table away, and lets an exception come: the guest shuts down.
pub fn triple_fault() -> ! {
    load_table(0, 0);
    // SAFETY: nothing runs after this.
    unsafe { asm!("int3", "ud2", options(noreturn)) }
}

/// Calls `handler` with the vector of each interrupt that is neither the timer's nor spurious.
pub fn set_handler(handler: fn(u8)) {
    HANDLER.store(handler as *mut (), SeqCst);
}

/// How many interrupts came on `vector`.
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(SeqCst)
}

extern "C" fn dispatch(frame: &mut Frame) {
    let vector = frame.vector as u8;
    if vector == NMI {
        COUNTS[usize::from(vector)].fetch_add(1, SeqCst);
        return;
    }
    if frame.vector < EXCEPTIONS {
        return exception(frame, vector);
    }
    COUNTS[usize::from(vector)].fetch_add(1, SeqCst);
    let handler = HANDLER.load(SeqCst);
    if !matches!(vector, apic::TIMER_VECTOR | apic::SPURIOUS_VECTOR) && !handler.is_null() {
        // SAFETY: `set_handler` stored a function of this type.
        let handler = unsafe { core::mem::transmute::<*mut (), fn(u8)>(handler) };
        handler(vector);
    }
    if vector != apic::SPURIOUS_VECTOR || profile::is_posted() {
        apic::end_of_interrupt();
    }
    profile::came(&mut frame.rip);
}

fn exception(frame: &mut Frame, vector: u8) {
    if let Some(resume) = faults::catch(vector, frame.rflags) {
        // A single step ends with its first trap.
        const TF: u64 = 1 << 8;
        (frame.rip, frame.rflags) = (resume, frame.rflags & !TF);
        return;
    }
    let address: u64;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    println!(
        "exception {vector} error {:#x} at {:#x} rsp {:#x} rflags {:#x} cr2 {address:#x}",
        frame.error, frame.rip, frame.rsp, frame.rflags
    );
    exit(EXIT_EXCEPTION + vector)
}
