//! The guest's other processors: started by INIT and SIPI (SDM vol. 3, 10.4.4), and commanded by interrupts.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

pub use super::this::{MOST, number};
use super::{apic, idle, interrupts, this::set_number};

/// The page below 1 MiB where they begin. Nothing else is there.
const PAGE: u64 = 0x1_0000;
const STACK_SIZE: usize = 32 * 1024;
/// Ticks after which a processor that does not show up is given up.
const LIMIT: u64 = 100_000_000;

#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STACK_SIZE]; MOST]>);

// SAFETY: each processor uses its own, through RSP.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_SIZE]; MOST]));

/// What processors do that have started.
static MAIN: AtomicU64 = AtomicU64::new(0);
static STARTS: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];

// From real mode straight into 64-bit mode: with EFER.LME set, PE and PG may rise together (SDM vol. 3, 11.8.5). The words at the end are
// filled in for one processor at a time.
global_asm!(
    ".pushsection .rodata.smp, \"a\"",
    ".balign 16",
    ".globl smp_begin, smp_words, smp_end",
    ".code16",
    "smp_begin:",
    "cli",
    "cld",
    "movw %cs, %ax",
    "movw %ax, %ds",
    "lgdtl 5f - smp_begin",
    "movl smp_words - smp_begin, %eax",
    "movl %eax, %cr3",
    "movl $0x20, %eax",
    "movl %eax, %cr4",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x100, %eax",
    "wrmsr",
    "movl $0x80010031, %eax",
    "movl %eax, %cr0",
    "ljmpl $0x10, ${page} + 3f - smp_begin",
    ".code64",
    "3:",
    "movl $0x18, %eax",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl %eax, %ss",
    "xorl %eax, %eax",
    "movl %eax, %fs",
    "movl %eax, %gs",
    "xorl %ebp, %ebp",
    "movq {page} + smp_words - smp_begin + 8, %rsp",
    "movq {page} + smp_words - smp_begin + 16, %rdi",
    "movq {page} + smp_words - smp_begin + 24, %rax",
    "call *%rax",
    "ud2",
    ".balign 8",
    "4: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "5: .word 31",
    ".long {page} + 4b - smp_begin",
    ".balign 8",
    "smp_words: .quad 0, 0, 0, 0",
    "smp_end:",
    ".popsection",
    page = const PAGE,
    options(att_syntax),
);

/// Makes the processor that runs number 0. To be called before the others start.
pub fn install() {
    set_number(0);
}

/// How often a processor has been started.
pub fn starts(number: usize) -> u32 {
    STARTS[number].load(SeqCst)
}

/// Starts processor `number` and waits until it is there; `main` is called with its number, and sleeps for good when it returns.
/// Returns whether it came.
pub fn start(number: usize, main: fn(usize)) -> bool {
    let before = starts(number);
    MAIN.store(main as usize as u64, SeqCst);
    // SAFETY: nothing else is at the page, and only one processor starts at a time. The stack is the processor's own.
    unsafe { place(number) };
    let id = number as u32;
    apic::send(id, apic::INIT);
    idle::linger(10_000);
    apic::send(id, apic::START_UP | PAGE >> 12);
    idle::poll_until(LIMIT, || starts(number) != before)
}

/// Copies the first instructions to their page.
///
/// # Safety
/// The page is mapped, and no processor runs there.
unsafe fn place(number: usize) {
    unsafe extern "C" {
        static smp_begin: u8;
        static smp_words: u8;
        static smp_end: u8;
    }
    let begin = &raw const smp_begin;
    let (len, words) =
        ((&raw const smp_end) as usize - begin as usize, (&raw const smp_words) as usize - begin as usize);
    let cr3: u64;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    let stack = STACKS.0.get() as u64 + ((number + 1) * STACK_SIZE) as u64;
    let values = [cr3, stack, number as u64, enter as *const () as u64];
    // SAFETY: the caller's promise; the code is shorter than a page, and the words lie in it.
    unsafe {
        core::ptr::copy_nonoverlapping(begin, PAGE as *mut u8, len);
        core::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), (PAGE as usize + words) as *mut u8, 32);
    }
}

extern "C" fn enter(number: usize) -> ! {
    set_number(number);
    interrupts::use_table();
    apic::forget_pv_eoi();
    apic::enable();
    // SAFETY: `start` stored a function of this type.
    let main = unsafe { core::mem::transmute::<u64, fn(usize)>(MAIN.load(SeqCst)) };
    STARTS[number].fetch_add(1, SeqCst);
    main(number);
    idle::sleep_until(|| false);
    unreachable!("it sleeps for good")
}
