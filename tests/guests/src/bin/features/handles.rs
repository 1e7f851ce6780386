//! Interrupt handles: asked for, given back, and taken away by the device.

use guests::bare::assigned::Records;
use guests::bare::{Guest, idle};
use guests::dsa::{Descriptor, Error, Registers, spec};
use guests::println;

use crate::msix::Msix;
use crate::rig::{LIMIT, Rig, came, here};

static RECORDS: Records<4096> = Records::new();

/// Slots whose handles are tried.
const SLOTS: u16 = 8;
/// The vector of MSI-X entry 0, by which the device tells what it did.
const CAUSE: u8 = 0x60;
/// `IDXD_CMDSTS_INVAL_INT_IDX`.
const INVALID_INDEX: u8 = 0x41;

/// All of it.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    Msix::enable(rig.device)?.program(0, here(CAUSE));
    let (mut indexes, mut revoked) = (0, 0);
    for n in 0..SLOTS {
        let target = here(0x40 + n as u8);
        let slot = rig.mapped(0, target, n.into())?;
        let handle = rig.device.dsa.request_ims_handle(slot.index()).map_err(|_| "no handle")?;
        // The handle is the index in the store: what the shim says of a slot and what the device says of it agree.
        indexes += u32::from(handle == slot.index() && rig.fires(slot.index(), target));
        revoked += u32::from(revoke(&mut rig, handle)? && rig.fires(slot.index(), target));
        let released = rig.device.dsa.release_ims_handle(handle).is_ok();
        let again = rig.device.dsa.release_ims_handle(handle);
        rig.check("a handle is given back once", released && matches!(again, Err(Error::Command(_, INVALID_INDEX))));
        let freed = rig.domain.free(slot);
        rig.need("freeing", freed);
    }
    rig.check("each index is the handle", indexes == u32::from(SLOTS));
    rig.check("each handle was revoked and came back", revoked == u32::from(SLOTS));
    println!("@result indexes={indexes} revoked={revoked} errors={}", rig.errors);
    rig.finish()
}

/// Has the device take a handle away. Whether it says so, and refuses the handle from then on.
fn revoke(rig: &mut Rig, handle: u16) -> Result<bool, &'static str> {
    let before = came(here(CAUSE));
    let operand = spec::HANDLE_IMS | u32::from(handle);
    rig.device.dsa.command(spec::COMMAND_REVOKE_INT_HANDLE, operand).map_err(|_| "it cannot be revoked")?;
    let told = idle::poll_until(LIMIT, || came(here(CAUSE)) == before + 1);
    let registers = rig.device.dsa.registers();
    let cause = registers.read(spec::INTCAUSE);
    registers.write(spec::INTCAUSE, cause);
    RECORDS.clear(0);
    rig.device.portals[0].submit(&Descriptor::noop(RECORDS.address(0), handle));
    let done = idle::poll_until(LIMIT, || RECORDS.complete(0));
    let refused = RECORDS.get(0).status == spec::STATUS_INT_HANDLE_INVAL;
    let cleared = rig.device.dsa.registers().read(spec::INTCAUSE) & spec::INTCAUSE_HANDLE_REVOKED == 0;
    Ok(told && cause & spec::INTCAUSE_HANDLE_REVOKED != 0 && cleared && done && refused)
}
