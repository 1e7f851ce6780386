//! Everything that a guest can read of its interrupts, in one number: two guests that do the same see the same, though the machine's
//! entries, vectors and messages behind it are others.

use guests::bare::{Guest, apic, config};
use guests::guest_shim::discover::{Cpuid, NativeCpuid};
use guests::guest_shim::hcall_abi::FaultRecord;
use guests::guest_shim::hcall_abi::cpuid::IMSVISOR_BASE;
use guests::guest_shim::store::{Field, Store};
use guests::pci::ConfigSpace;
use guests::println;

use crate::rig::{Rig, here};

/// Slots that are mapped by calls, and as many that are written.
const SLOTS: u16 = 100;

/// FNV-1a.
struct Seen(u64);

impl Seen {
    fn see(&mut self, value: u64) {
        for byte in value.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// Looks at everything.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    let mut seen = Seen(0xcbf2_9ce4_8422_2325);
    (0..5).map(|n| NativeCpuid.cpuid(IMSVISOR_BASE + n)).for_each(|leaf| {
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].into_iter().for_each(|register| seen.see(register.into()));
    });
    for n in 0..SLOTS {
        let slot = rig.mapped(0, here(0x30 + (n % 64) as u8), n.into())?;
        let info = rig.domain.query(&slot).map_err(|_| "the query failed")?;
        info.to_bytes().as_chunks().0.iter().for_each(|word| seen.see(u64::from_le_bytes(*word)));
        let fires = rig.fires(slot.index(), here(0x30 + (n % 64) as u8));
        rig.check("it fires", fires);
    }
    write_slots(&mut rig);
    let store = rig.device.store();
    for slot in 0..(3 * SLOTS) {
        Field::ALL.into_iter().for_each(|field| seen.see(store.read(slot, field).into()));
    }
    (0..0x100).step_by(4).for_each(|at| seen.see(config::Ports.read(rig.device.function, at).into()));
    let info = rig.calls.query(rig.device.id(), &mut rig.page).map_err(|_| "the query failed")?;
    info.to_bytes().as_chunks().0.iter().for_each(|word| seen.see(u64::from_le_bytes(*word)));
    let mut records = [None; 8];
    rig.read_faults(&mut records);
    let words = records.iter().flatten().flat_map(FaultRecord::to_bytes);
    words.for_each(|byte| seen.see(byte.into()));
    println!("@result seen={} errors={}", seen.0 >> 1, rig.errors);
    rig.finish()
}

/// Programs slots as a driver does that knows nothing.
fn write_slots(rig: &mut Rig) {
    let mut store = rig.device.store();
    for slot in SLOTS..2 * SLOTS {
        let message = [apic::message_address(0), 0, 0x30 + u32::from(slot % 64), 0];
        Field::ALL.into_iter().zip(message).for_each(|(field, value)| store.write(slot, field, value));
        let fires = rig.fires(slot, here(0x30 + (slot % 64) as u8));
        rig.check("a slot that was written fires", fires);
    }
}
