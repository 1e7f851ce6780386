//! Work that accesses memory outside of the guest, and an end without stopping the device.

use guests::bare::interrupts;
use guests::dsa::{Descriptor, spec};
use guests::println;

use crate::function::{Vf, errors, expect};

/// Beyond the guest's memory: where nothing of its is, where its message window is, and where the machine has memory.
const FOREIGN: [u64; 3] = [0x9000_0000, 0xfee0_0000, 0x1200_0000];
/// Bytes that are moved.
const SIZE: u32 = 64;

/// Nothing comes of it; then the guest is gone, with interrupts that wait and others on their way.
pub fn run(vf: &mut Vf) -> Result<(), &'static str> {
    let mut refused = 0;
    for foreign in FOREIGN {
        let own = vf.record(3);
        for (source, destination) in [(own, foreign), (foreign, own)] {
            vf.submit_with(1, |record| Descriptor::memmove(source, destination, SIZE, record, 0).without_interrupt());
            let fault = vf.status(1) & spec::STATUS_MASK == spec::STATUS_PAGE_FAULT;
            expect(fault, "foreign memory was reached");
            refused += u32::from(fault);
        }
    }
    let errors = errors();
    println!("@result refused={refused} errors={errors}");
    if errors != 0 {
        return Err("not everything was right");
    }
    vf.set_mask(1, true);
    vf.raise_held(1);
    let handle = vf.handle(2);
    (0..8).for_each(|_| vf.submit(2, handle));
    interrupts::triple_fault()
}
