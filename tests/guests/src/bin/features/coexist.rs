//! MSI-X and the message store of one function in use at once, by two processors.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guests::bare::assigned::{AssignedDsa, Records, batch_page};
use guests::bare::dma::DmaBuffer;
use guests::bare::lock::Lock;
use guests::bare::{Guest, idle, smp};
use guests::dsa::Descriptor;
use guests::guest_shim::hcall_abi::Target;
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{Domain, Hypercalls, Request};
use guests::println;

use crate::msix::Msix;
use crate::rig::{ImsDomain, LIMIT, Rig, came, here};

const ROUNDS: u16 = 100;
/// MSI-X entries that each processor uses.
const ENTRIES: u16 = 8;

static PAGES: [DmaBuffer<4096>; 2] = [const { DmaBuffer::new() }; 2];
static RECORDS: [Records<4096>; 2] = [const { Records::new() }; 2];
static DEVICE: Lock<Option<(AssignedDsa, Hypercalls<Vmcall>)>> = Lock::new(None);
static DONE: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static FINISHED: AtomicU32 = AtomicU32::new(0);

/// Both processors take, fire and free entries and slots, in turns of their own.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let rig = Rig::new(guest)?;
    Msix::enable(rig.device)?;
    *DEVICE.lock() = Some((rig.device, rig.calls));
    if !smp::start(1, work) {
        return Err("the second processor did not come");
    }
    work(0);
    if !idle::wait_until(20 * LIMIT, || FINISHED.load(SeqCst) == 2) {
        return Err("the processors do not finish");
    }
    let [first, second] = [0, 1].map(|n: usize| DONE[n].load(SeqCst));
    println!("@result first={first} second={second} rounds={ROUNDS} errors={}", 2 * u32::from(ROUNDS) - first - second);
    if first + second == 2 * u32::from(ROUNDS) { Ok(()) } else { Err("not everything was right") }
}

fn work(number: usize) {
    idle::enable_interrupts();
    let shared = *DEVICE.lock();
    if let Some((device, calls)) = shared
        && let Ok(mut msix) = Msix::enable(device)
    {
        let mut domain: ImsDomain = Domain::hypercall(calls, device.id(), batch_page(&PAGES[number]));
        let right = (0..ROUNDS).filter(|&n| round(number, n, &mut msix, &mut domain)).count();
        DONE[number].store(right as u32, SeqCst);
    }
    FINISHED.fetch_add(1, SeqCst);
}

/// An entry and a slot, taken in between each other, fired, freed.
fn round(number: usize, n: u16, msix: &mut Msix, domain: &mut ImsDomain) -> bool {
    let entry = number as u16 * ENTRIES + n % ENTRIES;
    let (for_slot, for_entry) = (here(0x40 + (n % 16) as u8), here(0x60 + (n % 16) as u8));
    let Ok(slot) = domain.alloc(0) else { return false };
    msix.program(entry, for_entry);
    let mapped = domain.map(&slot, &Request { target: for_slot, unmask: true, cookie: n.into() });
    let mut right = mapped.is_ok() && fires(number, slot.index(), for_slot);
    right &= msix.fires(entry, number, for_entry);
    msix.clear(entry);
    right &= fires(number, slot.index(), for_slot);
    right & domain.free(slot).is_ok()
}

/// Raises a slot by the processor's own queue. Whether one interrupt came.
fn fires(number: usize, index: u16, target: Target) -> bool {
    // Commands are the device's: one at a time.
    let Some((mut device, _)) = *DEVICE.lock() else { return false };
    let handle = {
        let _alone = DEVICE.lock();
        device.dsa.request_ims_handle(index)
    };
    let (Ok(handle), before, records) = (handle, came(target), &RECORDS[number]) else { return false };
    records.clear(0);
    device.portals[number].submit(&Descriptor::noop(records.address(0), handle));
    idle::poll_until(LIMIT, || records.complete(0) && came(target) != before) && came(target) == before + 1
}
