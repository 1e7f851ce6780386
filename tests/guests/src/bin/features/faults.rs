//! A victim whose remapping entries another guest's device tries to use: the unit refuses, and the victim reads the fault records.

use guests::bare::assigned::{Records, submit_and_poll};
use guests::bare::dma::DmaBuffer;
use guests::bare::{Guest, apic, idle};
use guests::dsa::Descriptor;
use guests::guest_shim::Interrupt;
use guests::guest_shim::hcall_abi::{FaultKind, FaultStore};
use guests::println;

use crate::rig::{LIMIT, Rig, all_that_came, here};

/// Slots of the victim.
const SLOTS: usize = 8;
/// The victim's cookies begin here.
const COOKIE: u64 = 0x0bad_cafe_0000_0000;
/// Remapping entries that the thief tries.
const ENTRIES: u64 = 24;
/// How often it tries them.
const ROUNDS: u64 = 12;
/// Ticks between two tries: the unit has few records.
const PAUSE: u64 = 60_000;
/// VT-d 5.1.4.1: the source-id check failed.
const SOURCE: u8 = 0x26;

static RECORDS: Records<4096> = Records::new();
static BUFFER: DmaBuffer<4096> = DmaBuffer::new();

/// Has slots, and reads of their faults until each has one.
pub fn be_victim(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    let mut slots = [const { None::<Interrupt> }; SLOTS];
    for (n, place) in slots.iter_mut().enumerate() {
        *place = Some(rig.mapped(0, here(0x40 + n as u8), COOKIE + n as u64)?);
    }
    let mut seen = [false; SLOTS];
    let end = apic::tsc() + 4 * LIMIT;
    while apic::tsc() < end && seen.contains(&false) {
        look(&mut rig, &slots, &mut seen);
        idle::linger(PAUSE);
    }
    let told = seen.iter().filter(|seen| **seen).count();
    rig.check("each slot's fault is told", told == SLOTS);
    let came = all_that_came();
    rig.check("nothing came of them", came == 0);
    for (n, slot) in slots.iter().flatten().enumerate() {
        let fires = rig.fires(slot.index(), here(0x40 + n as u8));
        rig.check("the slots fire for their own device", fires);
    }
    println!("@result told={told} stolen={came} errors={}", rig.errors);
    rig.finish()
}

fn look(rig: &mut Rig, slots: &[Option<Interrupt>; SLOTS], seen: &mut [bool; SLOTS]) {
    let mut records = [None; 16];
    rig.read_faults(&mut records);
    for record in records.into_iter().flatten() {
        let n = record.cookie.wrapping_sub(COOKIE) as usize;
        let right = record.kind == FaultKind::Remapping(SOURCE) && record.foreign && record.store == FaultStore::Array;
        match slots.get(n).and_then(Option::as_ref) {
            Some(slot) if right && slot.index() == record.slot && rig.device.id() == record.device => seen[n] = true,
            _ => rig.wrong("a fault that is not of ours"),
        }
    }
}

/// Tries all entries with messages that its device writes by DMA. Nothing of the victim's shows in its own faults.
pub fn be_thief(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    let mut tries = 0;
    for _ in 0..ROUNDS {
        for entry in 0..ENTRIES {
            let descriptor = Descriptor::memmove(BUFFER.address(), 0xfee0_0010 | entry << 5, 4, RECORDS.address(0), 0);
            let portal = rig.device.portals[0];
            submit_and_poll(&portal, &descriptor.without_interrupt(), &RECORDS, 0, PAUSE);
            idle::linger(PAUSE);
            tries += 1;
        }
    }
    let mut records = [None; 16];
    let told = rig.read_faults(&mut records);
    rig.check("others' faults are not told", told == 0);
    println!("@result tries={tries} told={told} errors={}", rig.errors);
    rig.finish()
}
