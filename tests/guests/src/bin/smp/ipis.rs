//! Starting processors, and every kind of interrupt between them. Each is counted, on the processor where it came.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use guests::bare::assigned::hypercalls;
use guests::bare::{apic, idle, interrupts, smp};
use guests::guest_shim::hcall_abi::cpuid::Features;
use guests::println;

/// Ticks after which an interrupt is given up.
const LIMIT: u64 = 100_000_000;
/// Ticks in which one that must not come would have come.
const LINGER: u64 = 200_000;
const VECTOR: u8 = 0x51;
/// Interrupts sent one after another to a processor that sleeps between them.
const ROUNDS: u32 = 200;

/// Ticks of a nap, and how many there are.
const NAP: u64 = 50_000;
const NAPS: u32 = 20;

/// The most ticks that a nap took too long, and the naps that are over.
static LATEST: AtomicU64 = AtomicU64::new(0);
static NAPPED: AtomicU32 = AtomicU32::new(0);
static CAME: [AtomicU32; smp::MOST] = [const { AtomicU32::new(0) }; smp::MOST];

fn handler(vector: u8) {
    if vector == VECTOR {
        CAME[smp::number()].fetch_add(1, SeqCst);
    }
}

/// What another processor does: it sleeps, and takes what comes.
fn sleeper(_number: usize) {
    idle::enable_interrupts();
}

/// What a processor does that sleeps by its timer.
fn napper(_number: usize) {
    idle::enable_interrupts();
    for _ in 0..NAPS {
        let began = apic::tsc();
        idle::wait_until(NAP, || false);
        LATEST.fetch_max(apic::tsc() - began - NAP, SeqCst);
        NAPPED.fetch_add(1, SeqCst);
    }
}

/// What a processor does that nothing but an NMI or INIT can wake.
fn deaf(_number: usize) {
    idle::disable_interrupts();
    loop {
        // SAFETY: it sleeps; NMIs come and go.
        unsafe { core::arch::asm!("hlt") }
    }
}

fn came(cpus: usize) -> [u32; smp::MOST] {
    core::array::from_fn(|n| if n < cpus { CAME[n].load(SeqCst) } else { 0 })
}

/// Sends a command, and expects one interrupt at each processor of `expected` and none elsewhere.
fn expect(cpus: usize, what: &str, destination: u32, command: u64, expected: u32) -> Result<(), &'static str> {
    let before = came(cpus);
    apic::send(destination, command | u64::from(VECTOR));
    let wanted: [u32; smp::MOST] = core::array::from_fn(|n| before[n] + (expected >> n & 1));
    let in_time = idle::poll_until(LIMIT, || (0..cpus).all(|n| came(cpus)[n] >= wanted[n]));
    idle::linger(LINGER);
    if in_time && came(cpus)[..cpus] == wanted[..cpus] {
        return Ok(());
    }
    println!("smp: {what}: {:?} instead of {:?}", &came(cpus)[..cpus], &wanted[..cpus]);
    Err("an interrupt between processors went wrong")
}

/// All of it. At the end the other processors sleep. Returns how many interrupts came, and the most ticks that a sleeping
/// processor took to handle one, and by which its timer was late.
pub fn all(cpus: usize) -> Result<(u32, u64, u64), &'static str> {
    interrupts::set_handler(handler);
    for n in 1..cpus {
        if !smp::start(n, sleeper) {
            println!("smp: processor {n} does not start");
            return Err("a processor does not start");
        }
    }
    let everyone = (1u32 << cpus) - 1;
    let last = cpus as u32 - 1;
    for n in 0..cpus as u32 {
        expect(cpus, "physical", n, apic::FIXED, 1 << n)?;
        expect(cpus, "logical", 1 << n, apic::FIXED | apic::LOGICAL, 1 << n)?;
    }
    expect(cpus, "cluster", everyone, apic::FIXED | apic::LOGICAL, everyone)?;
    expect(cpus, "another cluster", 1 << 16 | everyone, apic::FIXED | apic::LOGICAL, 0)?;
    expect(cpus, "broadcast", u32::MAX, apic::FIXED, everyone)?;
    expect(cpus, "all", 0, apic::FIXED | apic::TO_ALL, everyone)?;
    expect(cpus, "others", 0, apic::FIXED | apic::TO_OTHERS, everyone & !1)?;
    expect(cpus, "self", last, apic::FIXED | apic::TO_SELF, 1)?;
    expect(cpus, "nobody", 77, apic::FIXED, 0)?;
    one_of_all(cpus)?;
    without_exits(cpus)?;
    let mut slowest = 0;
    for _ in 0..ROUNDS {
        let before = CAME[last as usize].load(SeqCst);
        let sent = apic::tsc();
        apic::send(last, apic::FIXED | u64::from(VECTOR));
        if !idle::poll_until(LIMIT, || CAME[last as usize].load(SeqCst) == before + 1) {
            return Err("an interrupt to a sleeping processor is lost");
        }
        slowest = slowest.max(apic::tsc() - sent);
    }
    if cpus > 1 {
        commands(last)?;
        nap(last as usize)?;
    }
    Ok((came(cpus).iter().sum(), slowest, LATEST.load(SeqCst)))
}

/// Interrupts that end without an exit, and then with exits again: what they were ended by is no concern of the hypervisor's any more.
fn without_exits(cpus: usize) -> Result<(), &'static str> {
    let Some(calls) = hypercalls().filter(|calls| calls.interface().features.contains(Features::PV_EOI)) else {
        return Ok(());
    };
    apic::use_pv_eoi(&calls).map_err(|_| "interrupts cannot be ended without exits")?;
    let own = |what| expect(cpus, what, 0, apic::FIXED | apic::TO_SELF, 1);
    own("ended without an exit")?;
    let mut result = Ok(());
    let kept = apic::give_up_pv_eoi(&calls, || result = own("ended by an exit again").and_then(|()| own("and again")));
    result?;
    if kept == Ok(true) { Ok(()) } else { Err("the bytes that interrupts were ended by are not the guest's again") }
}

fn one_of_all(cpus: usize) -> Result<(), &'static str> {
    let sum = || came(cpus).iter().sum::<u32>();
    let before = sum();
    apic::send((1 << cpus) - 1, apic::LOWEST_PRIORITY | apic::LOGICAL | u64::from(VECTOR));
    let in_time = idle::poll_until(LIMIT, || sum() != before);
    idle::linger(LINGER);
    if in_time && sum() == before + 1 { Ok(()) } else { Err("a lowest-priority interrupt did not come once") }
}

/// A processor sleeps by its timer while this one spins.
fn nap(number: usize) -> Result<(), &'static str> {
    let napped = smp::start(number, napper) && idle::poll_until(LIMIT, || NAPPED.load(SeqCst) == NAPS);
    if napped { Ok(()) } else { Err("a timer does not fire") }
}

/// NMI, INIT and start-up, to a processor that runs and to one that has halted with interrupts off.
fn commands(to: u32) -> Result<(), &'static str> {
    let n = to as usize;
    let starts = smp::starts(n);
    apic::send(to, apic::START_UP | 0x10);
    idle::linger(LINGER);
    if smp::starts(n) != starts {
        return Err("a start-up command restarted a processor that runs");
    }
    if !smp::start(n, deaf) || smp::starts(n) != starts + 1 {
        return Err("a processor does not start again");
    }
    for _ in 0..3 {
        let before = interrupts::count(interrupts::NMI);
        apic::send(to, apic::NMI);
        if !idle::poll_until(LIMIT, || interrupts::count(interrupts::NMI) == before + 1) {
            return Err("an NMI is lost");
        }
    }
    let before = CAME[n].load(SeqCst);
    apic::send(to, apic::FIXED | u64::from(VECTOR));
    idle::linger(LINGER);
    if CAME[n].load(SeqCst) != before {
        return Err("an interrupt came to a processor that has them off");
    }
    if !smp::start(n, sleeper) || smp::starts(n) != starts + 2 {
        return Err("a deaf processor does not start again");
    }
    expect(n + 1, "after a restart", to, apic::FIXED, 1 << to)
}
