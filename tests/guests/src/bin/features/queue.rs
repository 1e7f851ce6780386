//! A store in the guest's own memory, beside a work queue.

use guests::bare::assigned::{Records, batch_page, hypercalls};
use guests::bare::dma::DmaBuffer;
use guests::bare::{Guest, config, idle};
use guests::dsa::{Descriptor, Registers, spec};
use guests::guest_shim::domain::QueueDomain;
use guests::guest_shim::hcall_abi::{DeviceId, Status, StoreId};
use guests::guest_shim::store::{CONTROL_PENDING, Field, Store};
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{MmioStore, Request};
use guests::{pci, println};

use crate::rig::{LIMIT, QUIET, Rig, all_that_came, came, here};

const SLOTS: u32 = 64;
/// Slots that are tried.
const TRIED: u16 = 16;
/// The work queue that has the store.
const QUEUE: usize = 1;
/// Our model's registers of that queue's store: address, slots, look again.
const REGISTERS: u64 = 0x7000 + QUEUE as u64 * 0x10;

static MEMORY: DmaBuffer<4096> = DmaBuffer::new();
static PAGE: DmaBuffer<4096> = DmaBuffer::new();
static RECORDS: Records<4096> = Records::new();

type Queue = QueueDomain<'static, Vmcall, MmioStore>;

/// All of it.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    // SAFETY: a page of memory that nothing else uses; the device reads it.
    let memory = unsafe { MmioStore::new(MEMORY.pointer().cast(), SLOTS) };
    let queue = QueueDomain::open(rig.calls, rig.device.id(), batch_page(&PAGE), memory);
    let mut queue = queue.map_err(|_| "the queue store cannot be opened")?;
    for (offset, value) in [(0, MEMORY.address() as u32), (4, (MEMORY.address() >> 32) as u32), (8, SLOTS)] {
        rig.device.bar0.write(REGISTERS + offset, value);
    }
    let (mut fired, mut freed) = (0, 0);
    for n in 0..TRIED {
        let (index, right) = live(&mut rig, &mut queue, n)?;
        fired += u32::from(right);
        freed += u32::from(leads_nowhere(&rig, index));
    }
    let again = rig.calls.open_queue(rig.device.id(), 1);
    rig.check("it is open once", again == Err(Status::Exists));
    let info = rig.calls.query(StoreId::queue(rig.device.id()), &mut rig.page);
    rig.check("all slots came back", info.is_ok_and(|info| (info.slots, info.free) == (SLOTS, SLOTS)));
    println!("@result fired={fired} freed={freed} errors={}", rig.errors);
    rig.finish()
}

/// For a function whose requester ID others have as well: nobody would watch whose entries its messages name.
pub fn be_refused() -> Result<(), &'static str> {
    let calls = hypercalls().ok_or("no hypercall domain")?;
    let mut functions = pci::find_all(&config::Ports, spec::VENDOR, &spec::DEVICES);
    let function = functions.next().ok_or("no function")?;
    let opened = calls.open_queue(DeviceId(function.0), 1);
    println!("@result refused={} errors=0", u8::from(opened == Err(Status::NotIsolated)));
    Ok(())
}

/// Raises a slot. Whether the device has done it.
fn raise(rig: &Rig, slot: u16) -> bool {
    RECORDS.clear(0);
    rig.device.portals[QUEUE].submit(&Descriptor::noop(RECORDS.address(0), slot));
    idle::poll_until(LIMIT, || RECORDS.complete(0)) && RECORDS.get(0).succeeded()
}

/// Maps a slot, fires it, sends it elsewhere, has one pend, and frees it: its message stays in the memory, unmasked. The slot's index,
/// and whether all went right.
fn live(rig: &mut Rig, queue: &mut Queue, n: u16) -> Result<(u16, bool), &'static str> {
    let targets = [here(0x40 + n as u8), here(0x80 + n as u8)];
    let slot = queue.alloc(0).map_err(|_| "no slot")?;
    let index = slot.index();
    let request = Request { target: targets[0], unmask: true, cookie: n.into() };
    let mapped = queue.map(&slot, &request);
    rig.need("mapping", mapped);
    let comes = |target, count| idle::poll_until(LIMIT, || came(target) == count);
    let mut right = raise(rig, index) && comes(targets[0], 1);
    let moved = queue.set_affinity(&slot, targets[1]);
    rig.need("affinity", moved);
    right &= raise(rig, index) && comes(targets[1], 1);
    queue.mask(&slot);
    right &= raise(rig, index);
    idle::linger(QUIET);
    right &= came(targets[1]) == 1 && queue.memory().read(index, Field::Control) & CONTROL_PENDING != 0;
    if queue.unmask(&slot) {
        rig.device.bar0.write(REGISTERS + 12, index.into());
    }
    right &= comes(targets[1], 2);
    let freed = queue.free(slot);
    rig.need("freeing", freed);
    // Whatever the guest leaves there.
    queue.memory().write(index, Field::Control, 0);
    Ok((index, right))
}

/// Fires what was freed: the unit refuses the message.
fn leads_nowhere(rig: &Rig, index: u16) -> bool {
    let before = all_that_came();
    let raised = raise(rig, index);
    idle::linger(QUIET);
    raised && all_that_came() == before
}
