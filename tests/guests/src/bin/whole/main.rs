//! A guest with a whole function whose interrupts are MSI-X and nothing else. It programs the table as on any machine, without a
//! hypercall: an NVMe controller's, or that of a DSA under another device ID.
//!
//! Each vector is raised, held back while it is masked, and moved; each interrupt must come once and where it belongs. At last the function
//! is reset, and works again.
#![no_std]
#![no_main]

mod dsa;
mod level_reset;
mod nvme;
mod table;

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guests::bare::{Guest, config, idle, interrupts};
use guests::pci::{self, ConfigSpace, Function};
use guests::println;
use level_reset::Driver;
use table::Table;

guests::guest!(run);

/// Vectors that are tried.
const VECTORS: u16 = 4;
/// The first vector's interrupts come here, the others' behind.
const FIRST: u8 = 0x40;
/// As far as each vector moves.
const MOVE: u8 = 0x10;
/// How often each vector is raised at each place.
const ROUNDS: u32 = 8;
/// Ticks after which an interrupt is given up, and those for which one that must not come is waited for.
const LIMIT: u64 = 100_000_000;
const QUIET: u64 = 200_000;

/// By vector.
static CAME: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// What a function does.
trait Work: Sized {
    /// Starts the function, which decodes its memory and may send.
    fn start(function: Function) -> Result<Self, &'static str>;

    /// Works once, and raises a vector below [`VECTORS`] at the end.
    fn raise(&mut self, vector: u16) -> Result<(), &'static str>;
}

fn run(_: &Guest) -> Result<(), &'static str> {
    idle::enable_interrupts();
    interrupts::set_handler(|vector| {
        CAME[usize::from(vector)].fetch_add(1, SeqCst);
    });
    if let Some(function) = pci::find(&config::Ports, dsa::VENDOR, &[dsa::DEVICE]) {
        return all::<dsa::Worker>(function, &[Driver::Patient, Driver::Eager]);
    }
    let nvme = |function: &Function| config::Ports.read(*function, 8) >> 8 == nvme::CLASS;
    let function = pci::on_bus_0().find(nvme).ok_or("no function to work with")?;
    all::<nvme::Controller>(function, &[Driver::Patient])
}

fn all<W: Work>(function: Function, resets: &[Driver]) -> Result<(), &'static str> {
    let mut table = Table::enable(function)?;
    let mut work = W::start(function)?;
    println!("whole: {function} works, with {} vectors in its table", table.len());
    let (mut errors, mut held) = (0, 0);
    for vector in 0..VECTORS {
        let place = FIRST + vector as u8;
        // What was raised while it started found its entry masked, and comes now.
        table.program(vector, place);
        idle::linger(QUIET);
        errors += u32::from(!fires(&mut work, vector, place)?);
        table.mask(vector, true);
        let before = total();
        work.raise(vector)?;
        idle::linger(QUIET);
        let waits = total() == before && table.is_pending(vector);
        table.mask(vector, false);
        held += u32::from(waits && comes(before + 1) && !table.is_pending(vector));
        table.program(vector, place + MOVE);
        errors += u32::from(!fires(&mut work, vector, place + MOVE)?);
    }
    errors += u32::from(VECTORS) - held;
    for &driver in resets {
        errors += level_reset::try_out::<W>(function, driver)?;
    }
    println!("@result vectors={VECTORS} handled={} held={held} errors={errors}", total());
    if errors == 0 { Ok(()) } else { Err("not everything was right") }
}

/// Raises a vector some times. Whether all that came were its interrupts, at their place.
fn fires(work: &mut impl Work, vector: u16, place: u8) -> Result<bool, &'static str> {
    let (before, there) = (total(), count(place));
    for round in 1..=ROUNDS {
        work.raise(vector)?;
        if !comes(before + round) {
            return Ok(false);
        }
    }
    idle::linger(QUIET);
    Ok(total() == before + ROUNDS && count(place) == there + ROUNDS)
}

/// Waits until so many interrupts have come.
fn comes(all: u32) -> bool {
    idle::wait_until(LIMIT, || total() >= all)
}

fn count(vector: u8) -> u32 {
    CAME[usize::from(vector)].load(SeqCst)
}

fn total() -> u32 {
    (FIRST..FIRST + MOVE + VECTORS as u8).map(count).sum()
}
