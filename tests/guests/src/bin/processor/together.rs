//! Several processors at one slot of a store at a time: what one instruction reads and writes is one step.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use guests::bare::assigned::AssignedDsa;
use guests::bare::{idle, smp};

use crate::Checks;

/// The slot, masked.
const SLOT: u64 = 280;
/// Steps of each processor.
const STEPS: u32 = 2_000;
/// Ticks after which a processor is given up.
const LIMIT: u64 = 400_000_000;

static AT: AtomicU64 = AtomicU64::new(0);
static READY: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);
static CPUS: AtomicUsize = AtomicUsize::new(0);

/// All of them, on so many processors.
pub fn all(checks: &mut Checks, device: &AssignedDsa, cpus: usize) {
    let at = device.ims_address() + SLOT * 16;
    for n in [0, 4, 8] {
        write(at + n, 0);
    }
    AT.store(at, SeqCst);
    CPUS.store(cpus, SeqCst);
    smp::install();
    idle::enable_interrupts();
    for n in 1..cpus {
        checks.check("a processor starts", smp::start(n, step));
    }
    step(0);
    let done = idle::poll_until(LIMIT, || DONE.load(SeqCst) == cpus);
    checks.check("all processors come to their end", done);
    let sum = STEPS * cpus as u32;
    checks.check("no LOCK INC is lost", read(at) == sum);
    checks.check("no LOCK XADD is lost", read(at + 4) == sum);
    checks.check("no LOCK CMPXCHG is lost", read(at + 8) == sum);
}

fn step(_: usize) {
    let at = AT.load(SeqCst);
    READY.fetch_add(1, SeqCst);
    while READY.load(SeqCst) != CPUS.load(SeqCst) {
        core::hint::spin_loop();
    }
    for _ in 0..STEPS {
        // SAFETY: a slot of the device's store.
        unsafe {
            core::arch::asm!(
                "lock inc dword ptr [{at}]",
                "mov {one:e}, 1",
                "lock xadd [{at} + 4], {one:e}",
                "2:",
                "mov eax, [{at} + 8]",
                "lea {one:e}, [eax + 1]",
                "lock cmpxchg [{at} + 8], {one:e}",
                "jne 2b",
                at = in(reg) at,
                one = out(reg) _,
                out("eax") _,
            );
        }
    }
    DONE.fetch_add(1, SeqCst);
}

fn write(at: u64, value: u32) {
    // SAFETY: a slot of the device's store.
    unsafe { (at as *mut u32).write_volatile(value) }
}

fn read(at: u64) -> u32 {
    // SAFETY: a slot of the device's store.
    unsafe { (at as *const u32).read_volatile() }
}
