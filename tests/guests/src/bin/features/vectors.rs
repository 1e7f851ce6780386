//! All vectors of a virtual processor in use at one time, each by a slot that the guest writes.

use guests::bare::{Guest, apic};
use guests::guest_shim::hcall_abi::{FaultKind, Status};
use guests::guest_shim::store::{CONTROL_MASK, Field, Store};
use guests::println;

use crate::rig::{Rig, here};

/// Faults that are read at one time.
const TOGETHER: usize = 32;

/// Writes a slot for each vector, and has all of them fire that do not read as masked: these are told of as faults.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    let own = |vector: &u8| !matches!(*vector, apic::TIMER_VECTOR | apic::SPURIOUS_VECTOR);
    let vectors = || (0..).zip((0x20..=0xff_u8).filter(own));
    for (slot, vector) in vectors() {
        let message = [apic::message_address(apic::id()), 0, vector.into(), 0];
        let mut store = rig.device.store();
        Field::ALL.into_iter().zip(message).for_each(|(field, value)| store.write(slot, field, value));
    }
    let (mut fired, mut masked) = (0, 0);
    for (slot, vector) in vectors() {
        if rig.device.store().read(slot, Field::Control) & CONTROL_MASK != 0 {
            masked += 1;
            continue;
        }
        let fires = rig.fires(slot, here(vector));
        rig.check("a slot that reads as unmasked fires", fires);
        fired += u32::from(fires);
    }
    let told = refusals_told(&mut rig);
    println!("@result fired={fired} masked={masked} told={told} errors={}", rig.errors);
    rig.finish()
}

/// How many faults say that there was no vector for a slot, those that were lost included.
fn refusals_told(rig: &mut Rig) -> u32 {
    let mut told = 0;
    loop {
        let mut records = [None; TOGETHER];
        if rig.read_faults(&mut records) == 0 {
            return told;
        }
        for record in records.into_iter().flatten() {
            rig.check("a fault for want of a vector", record.kind == FaultKind::Refused(Status::NoFreeVector));
            told += 1 + record.lost;
        }
    }
}
