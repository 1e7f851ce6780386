//! A slot that fires without end, beside others that behave: one with a vector of its own, one that shares the storm's. And a device that
//! writes the slot's message by DMA.

use guests::bare::assigned::{Records, submit_and_poll};
use guests::bare::dma::DmaBuffer;
use guests::bare::{Guest, apic, idle};
use guests::dsa::Descriptor;
use guests::guest_shim::Interrupt;
use guests::guest_shim::hcall_abi::{FaultKind, Target};
use guests::println;

use crate::rig::{LIMIT, QUIET, Rig, came, here};

/// Ticks that the storm lasts.
const LASTS: u64 = 2_000_000;
/// Ticks between two of its interrupts.
const EVERY: u64 = 2_500;
/// Interrupts of the storm between two of another slot.
const BETWEEN: u32 = 100;

/// Remapping entries that are tried.
const ENTRIES: u64 = 64;

static RECORDS: Records<4096> = Records::new();
static BUFFER: DmaBuffer<4096> = DmaBuffer::new();

/// Storms until the slot is masked, and lets it fire again.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    let (shared, own) = (here(0x40), here(0x50));
    let storm = rig.mapped(0, shared, 1)?;
    let beside = rig.mapped(0, shared, 2)?;
    let apart = rig.mapped(0, own, 3)?;
    let (before_own, before_shared) = (came(own), came(shared));
    let raised = rage(&mut rig, &storm, &beside, &apart)?;
    let all_apart = idle::poll_until(LIMIT, || came(own) - before_own == raised.apart);
    rig.check("the slot with a vector of its own loses nothing", all_apart);
    let info = rig.domain.query(&storm).map_err(|_| "the query failed")?;
    rig.check("the storm is masked", info.masked && info.limited);
    let others = rig.domain.query(&beside).is_ok_and(|info| !info.masked && !info.limited);
    rig.check("the slot beside it is not", others);
    let came_by_storm = came(shared) - before_shared;
    rig.check("most of the storm does not come", came_by_storm < raised.storm / 2);
    told(&mut rig, &storm);
    let fires = rig.fires(beside.index(), shared);
    rig.check("the slot beside it fires", fires);
    again(&mut rig, &storm)?;
    println!(
        "@result storm={} came={came_by_storm} apart={} beside={} errors={}",
        raised.storm, raised.apart, raised.beside, rig.errors
    );
    rig.finish()
}

/// How often slots were raised.
#[derive(Default)]
struct Raised {
    storm: u32,
    apart: u32,
    beside: u32,
}

/// Floods one of its own entries with messages that the device writes by DMA, past the slot and its mask, until none comes any more; then
/// lets the slot fire again.
pub fn run_past(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    let (shared, own) = (here(0x40), here(0x50));
    let slot = rig.mapped(0, shared, 1)?;
    let apart = rig.mapped(0, own, 3)?;
    let entry = own_entry(&mut rig, shared).ok_or("none of the entries is its slot's")?;
    let (before, mut sent) = (came(shared), 0);
    let end = apic::tsc() + LASTS;
    while apic::tsc() < end {
        by_dma(&rig, entry);
        sent += 1;
    }
    let came_by_dma = came(shared) - before;
    rig.check("most of them do not come", came_by_dma < sent / 2);
    let quiet = came(shared);
    (0..100).for_each(|_| by_dma(&rig, entry));
    idle::linger(QUIET);
    rig.check("none comes any more", came(shared) == quiet);
    let limited = rig.domain.query(&slot).is_ok_and(|info| info.masked && info.limited);
    rig.check("the slot is masked", limited);
    told(&mut rig, &slot);
    let fires = rig.fires(apart.index(), own);
    rig.check("another vector's slot fires", fires);
    rig.domain.unmask(&slot).map_err(|_| "it cannot be unmasked")?;
    let fires = rig.fires(slot.index(), shared);
    rig.check("it fires again", fires);
    println!("@result sent={sent} came={came_by_dma} errors={}", rig.errors);
    rig.finish()
}

/// Has the device write the message that selects a remapping entry, by a copy of 4 bytes.
fn by_dma(rig: &Rig, entry: u64) {
    let descriptor = Descriptor::memmove(BUFFER.address(), 0xfee0_0010 | entry << 5, 4, RECORDS.address(0), 0);
    submit_and_poll(&rig.device.portals[0], &descriptor.without_interrupt(), &RECORDS, 0, QUIET);
}

/// The index of the entry that leads to a target: a guest can find it out by trying.
fn own_entry(rig: &mut Rig, target: Target) -> Option<u64> {
    (0..ENTRIES).find(|&entry| {
        let before = came(target);
        by_dma(rig, entry);
        idle::linger(QUIET);
        came(target) != before
    })
}

fn rage(rig: &mut Rig, storm: &Interrupt, beside: &Interrupt, apart: &Interrupt) -> Result<Raised, &'static str> {
    let mut handle = |slot: &Interrupt| rig.device.dsa.request_ims_handle(slot.index()).map_err(|_| "no handle");
    let (storm, beside, apart) = (handle(storm)?, handle(beside)?, handle(apart)?);
    let portal = rig.device.portals[0];
    let submit = |handle| portal.submit(&Descriptor::noop(RECORDS.address(0), handle));
    let mut raised = Raised::default();
    let end = apic::tsc() + LASTS;
    while apic::tsc() < end {
        submit(storm);
        raised.storm += 1;
        if raised.storm.is_multiple_of(BETWEEN) {
            submit(apart);
            raised.apart += 1;
        }
        if raised.storm.is_multiple_of(2 * BETWEEN) {
            submit(beside);
            raised.beside += 1;
        }
        idle::linger(EVERY);
    }
    Ok(raised)
}

/// The guest can read of the storm.
fn told(rig: &mut Rig, storm: &Interrupt) {
    let mut records = [None; 8];
    let count = rig.read_faults(&mut records);
    let right = records
        .iter()
        .flatten()
        .all(|record| record.kind == FaultKind::Storm && record.slot == storm.index() && record.cookie == 1);
    rig.check("the storm is told of", count >= 1 && right);
}

/// The storm's slot fires again when it is unmasked: what was pending comes at once.
fn again(rig: &mut Rig, storm: &Interrupt) -> Result<(), &'static str> {
    let before = came(here(0x40));
    rig.domain.unmask(storm).map_err(|_| "it cannot be unmasked")?;
    let sent = idle::poll_until(LIMIT, || came(here(0x40)) != before);
    rig.check("what was pending is sent", sent);
    let fires = rig.fires(storm.index(), here(0x40));
    rig.check("it fires again", fires);
    let info = rig.domain.query(storm).map_err(|_| "the query failed")?;
    rig.check("it is not limited any more", !info.limited && !info.masked);
    Ok(())
}
