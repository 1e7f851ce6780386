//! Users with PASIDs: their completions come by slots that are theirs, and no other user can raise them.

use guests::bare::assigned::{QUEUE_SIZE, Records};
use guests::bare::{Guest, idle, portal};
use guests::dsa::{Descriptor, WorkQueue, spec};
use guests::guest_shim::Interrupt;
use guests::guest_shim::hcall_abi::{Pasid, Status};
use guests::guest_shim::store::{CONTROL_PASID_ENABLE, CONTROL_PASID_SHIFT, Field, Store};
use guests::println;

use crate::rig::{LIMIT, QUIET, Rig, all_that_came, came, here};

/// PASIDs that the module's command line gives to the guest: `pasids=100-1ff`.
const OWNED: [u32; 2] = [0x100, 0x1ff];
/// The users.
const USERS: [u32; 3] = [0x100, 0x155, 0x1ff];

static RECORDS: Records<4096> = Records::new();

/// All of it.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    let queue = WorkQueue { index: 0, size: QUEUE_SIZE, pasids: true };
    portal::tell_of_shared();
    rig.device.dsa.start(&[queue]).map_err(|_| "no queue for users with PASIDs")?;
    let info = rig.calls.query(rig.device.id(), &mut rig.page).map_err(|_| "the query failed")?;
    rig.check("the PASIDs are told", info.pasids == Pasid::new(OWNED[0]).zip(Pasid::new(OWNED[1])));
    let (mut notified, mut refused) = (0, 0);
    for (n, &user) in (0..).zip(&USERS) {
        let slot = rig.mapped(0, here(0x40 + n), user.into())?;
        let set = rig.domain.set_pasid(&slot, Pasid::new(user));
        rig.need("a PASID that is the guest's", set);
        notified += u32::from(notify(&mut rig, &slot, user) == Some(spec::STATUS_SUCCESS));
        for other in USERS.into_iter().filter(|other| *other != user) {
            refused += u32::from(notify(&mut rig, &slot, other) == Some(spec::STATUS_INT_HANDLE_INVAL));
        }
        foreign(&mut rig, &slot, user);
        let freed = rig.domain.free(slot);
        rig.need("freeing", freed);
    }
    let unheard = u32::from(stranger(&mut rig, OWNED[1] + 1));
    println!("@result notified={notified} refused={refused} unheard={unheard} errors={}", rig.errors);
    rig.finish()
}

/// A user's descriptor that is to raise a slot: its status. An interrupt has to come if it succeeds, and only then.
fn notify(rig: &mut Rig, slot: &Interrupt, user: u32) -> Option<u8> {
    let before = all_that_came();
    RECORDS.clear(0);
    let descriptor = Descriptor { pasid: user, ..Descriptor::noop(RECORDS.address(0), slot.index()) };
    rig.device.portals[0].submit_shared(&descriptor);
    if !idle::poll_until(LIMIT, || RECORDS.complete(0)) {
        return None;
    }
    let status = RECORDS.get(0).status;
    idle::linger(QUIET);
    let came = all_that_came() - before;
    if came == u32::from(status == spec::STATUS_SUCCESS) { Some(status) } else { None }
}

/// A user whose PASID is not the guest's reaches no memory, not even to say that its work is done.
fn stranger(rig: &mut Rig, user: u32) -> bool {
    RECORDS.clear(0);
    let descriptor = Descriptor { pasid: user, ..Descriptor::noop(RECORDS.address(0), 0) };
    rig.device.portals[0].submit_shared(&descriptor);
    idle::linger(QUIET);
    !RECORDS.complete(0)
}

/// A PASID of somebody else's is had neither by a call nor by writing it, and the slot stays its user's.
fn foreign(rig: &mut Rig, slot: &Interrupt, user: u32) {
    for pasid in [OWNED[0] - 1, OWNED[1] + 1, 0, 0xf_ffff] {
        let refused = rig.domain.set_pasid(slot, Pasid::new(pasid));
        rig.check("a PASID that is not the guest's", refused == Err(Status::BadPasid));
        let mut store = rig.device.store();
        let control = |pasid| pasid << CONTROL_PASID_SHIFT | CONTROL_PASID_ENABLE;
        store.write(slot.index(), Field::Control, control(pasid));
        rig.check("a forged PASID is replaced", store.read(slot.index(), Field::Control) == control(user));
    }
    let before = came(here(0x40));
    let done = notify(rig, slot, user);
    rig.check("the slot is its user's", done == Some(spec::STATUS_SUCCESS) && came(here(0x40)) >= before);
}
