//! As many slots as `slots=` says, all mapped at one time, each fired and counted.

use guests::bare::take_once::TakeOnce;
use guests::bare::{Guest, vector};
use guests::guest_shim::{Interrupt, Request};
use guests::{command_line, println};

use crate::rig::{Rig, here};

/// The most that GENCAP can say: 63 times 256.
const MOST: usize = 63 * 256;

static SLOTS: TakeOnce<[Option<Interrupt>; MOST]> = TakeOnce::new([const { None }; MOST]);

/// Takes them, fires each, frees them.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    let count = command_line::number(guest.command_line, "slots").unwrap_or(4096) as usize;
    let slots = SLOTS.take().get_mut(..count).ok_or("no store has so many slots")?;
    for (n, place) in slots.chunks_mut(1024).enumerate() {
        let first = n * 1024;
        let request = |n: usize| Request {
            target: here(vector::of_slot((first + n) as u16)),
            unmask: true,
            cookie: (first + n) as u64,
        };
        let requests: [Request; 1024] = core::array::from_fn(request);
        rig.domain.request(0, &requests[..place.len()], place).map_err(|_| "not all slots can be mapped")?;
    }
    let live = slots.iter().flatten().count();
    let mut fired = 0;
    for (n, slot) in slots.iter().flatten().enumerate() {
        fired += u32::from(rig.fires(slot.index(), here(vector::of_slot(n as u16))));
    }
    rig.check("each fires once", fired as usize == count);
    let freed = rig.domain.free_all(slots);
    rig.check("all are freed", freed == count);
    println!("@result live={live} fired={fired} freed={freed} errors={}", rig.errors);
    rig.finish()
}
