//! Slots: taken and freed at any time, in groups, as many as there are; masked, pending, sent elsewhere, asked for.

use guests::bare::{Guest, apic, idle, smp};
use guests::guest_shim::hcall_abi::{Pasid, Status, Target};
use guests::guest_shim::store::{CONTROL_MASK, CONTROL_PENDING, Field, Store};
use guests::guest_shim::{Interrupt, MmioStore, Request};
use guests::println;

use crate::rig::{LIMIT, QUIET, Rig, came, here};

/// Rounds of taking and freeing.
const ROUNDS: u32 = 32;
/// Slots that are taken together.
const TOGETHER: usize = 7;
/// The slot that lives all the time.
const LIVING: u8 = 0xc0;
/// Slots that are written.
const WRITTEN: core::ops::Range<u16> = 3000..3016;
/// Reads of a control dword that are counted.
const READ_BACKS: u32 = 200;

/// All of it, on two processors.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let mut rig = Rig::new(guest)?;
    if !smp::start(1, |_| ()) {
        return Err("the second processor did not come");
    }
    let taken = any_time(&mut rig)?;
    let group = groups(&mut rig)?;
    let granted = grants(&mut rig)?;
    let moved = affinity(&mut rig)?;
    let pending = pending(&mut rig)?;
    let written = written(&mut rig);
    read_backs(&mut rig)?;
    cookies(&mut rig)?;
    foreign_pasids(&mut rig)?;
    println!(
        "@result taken={taken} group={group} granted={granted} moved={moved} pending={pending} written={written} errors={}",
        rig.errors
    );
    rig.finish()
}

/// Writes slots that no call has taken, as on bare metal: each fires at its vector, then at another one, and not while it is masked or
/// its message is no guest's. How many were right in all.
fn written(rig: &mut Rig) -> u32 {
    let mut right = 0;
    for slot in WRITTEN {
        let mut store = rig.device.store();
        let mut write = |address, vector: u8, control| {
            let message = [address, 0, vector.into(), control];
            Field::ALL.into_iter().zip(message).for_each(|(field, value)| store.write(slot, field, value));
            Field::ALL.into_iter().zip(message).all(|(field, value)| store.read(slot, field) == value)
        };
        let (first, second) = (0x40 + (slot % 16) as u8, 0x60 + (slot % 16) as u8);
        let own = apic::message_address(apic::id());
        let mut all = write(own, first, 0) && rig.fires(slot, here(first));
        all &= write(own, second, 0) && rig.fires(slot, here(second));
        all &= write(own, second, CONTROL_MASK);
        // A processor that the guest does not have.
        all &= write(apic::message_address(0x80), second, 0) && rig.is_quiet(slot);
        write(0, 0, CONTROL_MASK);
        right += u32::from(all);
    }
    right
}

fn requests<const N: usize>(first: u8) -> [Request; N] {
    core::array::from_fn(|n| Request { target: here(first + n as u8), unmask: true, cookie: n as u64 })
}

/// Takes, maps, fires and frees slots by one, by many and by group, while another one fires. How many were taken.
fn any_time(rig: &mut Rig) -> Result<u32, &'static str> {
    let living = rig.mapped(0, here(LIVING), 1)?;
    let (free, mut taken) = (rig.free_slots()?, 0);
    for round in 0..ROUNDS {
        let one = rig.mapped(0, here(0x40), 2)?;
        let mut many = [const { None }; TOGETHER];
        let result = rig.domain.request(1, &requests::<TOGETHER>(0x41), &mut many);
        rig.need("a batch", result);
        taken += 1 + TOGETHER as u32;
        let fires = rig.fires(one.index(), here(0x40)) && rig.fires(living.index(), here(LIVING));
        rig.check("one among many", fires);
        for (n, interrupt) in many.iter().flatten().enumerate() {
            let fires = rig.fires(interrupt.index(), here(0x41 + n as u8));
            rig.check("many", fires);
        }
        let freed = rig.domain.free(one);
        rig.need("freeing one", freed);
        free_many(rig, round, &mut many);
        let fires = rig.fires(living.index(), here(LIVING));
        rig.check("the slot that lives", fires);
    }
    let left = rig.free_slots()?;
    rig.check("all came back", left == free);
    let freed = rig.domain.free(living);
    rig.need("freeing the last", freed);
    Ok(taken)
}

fn free_many(rig: &mut Rig, round: u32, many: &mut [Option<Interrupt>; TOGETHER]) {
    let freed = match round % 3 {
        0 => rig.domain.free_all(many),
        1 => rig.domain.free_group(1).unwrap_or(0),
        _ => many.iter_mut().filter_map(Option::take).filter_map(|one| rig.domain.free(one).ok()).count(),
    };
    rig.check("freeing many", freed == TOGETHER);
}

/// Frees a group, and no other one. How many it had.
fn groups(rig: &mut Rig) -> Result<usize, &'static str> {
    let mut of_five = [const { None }; TOGETHER];
    let result = rig.domain.request(5, &requests::<TOGETHER>(0x50), &mut of_five);
    rig.need("a group", result);
    let six = rig.mapped(6, here(0x60), 6)?;
    let freed = rig.domain.free_group(5).map_err(|_| "the group is not freed")?;
    rig.check("the group's size", freed == TOGETHER);
    for interrupt in of_five.iter().flatten() {
        let stale = rig.domain.query(interrupt) == Err(Status::StaleHandle);
        let quiet = rig.is_quiet(interrupt.index());
        rig.check("a slot of a group that was freed", stale && quiet);
    }
    let fires = rig.fires(six.index(), here(0x60));
    rig.check("a slot of another group", fires);
    let freed = rig.domain.free_group(6);
    rig.check("the other group", freed == Ok(1));
    Ok(TOGETHER)
}

/// Asks for more than there is. How many were granted.
fn grants(rig: &mut Rig) -> Result<u32, &'static str> {
    const MOST: usize = 1024;
    let (device, free) = (rig.device.id(), rig.free_slots()?);
    // All but a few, in calls of as many as one takes.
    let mut left = free;
    while left > MOST as u32 / 2 {
        let count = (left - MOST as u32 / 2).min(MOST as u32);
        let taken = rig.calls.alloc_many(device, [count, count], 9, &mut rig.page, &mut |_| ());
        if rig.need("taking nearly all", taken).is_none() {
            return Err("slots cannot be taken");
        }
        left -= count;
    }
    let refused = rig.calls.alloc_many(device, [left + 1, MOST as u32], 9, &mut rig.page, &mut |_| ());
    rig.check("a grant that is too large", refused == Err(Status::NoFreeSlot));
    let still = rig.free_slots()?;
    rig.check("what was refused changed nothing", still == left);
    let granted = rig.calls.alloc_many(device, [1, MOST as u32], 9, &mut rig.page, &mut |_| ());
    rig.check("as many as there are", granted == Ok(left as usize));
    let none = rig.calls.alloc(device, 9);
    rig.check("none is left", none == Err(Status::NoFreeSlot));
    let freed = rig.domain.free_group(9);
    rig.check("all are freed by their group", freed == Ok(free as usize));
    Ok(free)
}

/// Sends a slot to the other processor and back; its store stays as it is. How often.
fn affinity(rig: &mut Rig) -> Result<u32, &'static str> {
    let slot = rig.mapped(0, here(0x70), 7)?;
    let store = rig.device.store();
    let image = |store: &MmioStore| Field::ALL.map(|field| store.read(slot.index(), field));
    let before = image(&store);
    let mut moved = 0;
    for round in 0..16 {
        let target = Target { apic_id: 1 - round % 2, vector: 0x71 + (round % 3) as u8 };
        let result = rig.domain.set_affinity(&slot, target);
        rig.need("affinity", result);
        let fires = rig.fires(slot.index(), target);
        rig.check("it comes where it was sent", fires);
        rig.check("the store stays as it is", image(&store) == before);
        moved += 1;
    }
    let freed = rig.domain.free(slot);
    rig.need("freeing", freed);
    Ok(moved)
}

/// What comes to a masked slot waits, can be seen to wait, and comes once.
fn pending(rig: &mut Rig) -> Result<u32, &'static str> {
    let (slot, target) = (rig.mapped(0, here(0x78), 8)?, here(0x78));
    let store = rig.device.store();
    for _ in 0..4 {
        let masked = rig.domain.mask(&slot);
        rig.need("mask", masked);
        let quiet = rig.is_quiet(slot.index());
        rig.check("masked", quiet);
        let seen = rig.domain.query(&slot);
        rig.check("the query says that it waits", seen.is_ok_and(|info| info.masked && info.pending));
        let before = came(target);
        let unmasked = rig.domain.unmask(&slot);
        rig.need("unmask", unmasked);
        let sent = idle::poll_until(LIMIT, || came(target) != before);
        idle::linger(QUIET);
        rig.check("it comes once", sent && came(target) == before + 1);
        rig.check("the store is unmasked", store.read(slot.index(), Field::Control) == 0);
    }
    by_the_store(rig, &slot)?;
    let freed = rig.domain.free(slot);
    rig.need("freeing", freed);
    Ok(4)
}

/// The same by writing the mask into the store, as a driver does that knows nothing.
fn by_the_store(rig: &mut Rig, slot: &Interrupt) -> Result<(), &'static str> {
    let (mut store, target) = (rig.device.store(), here(0x78));
    store.write(slot.index(), Field::Control, CONTROL_MASK);
    let quiet = rig.is_quiet(slot.index());
    rig.check("masked by the store", quiet);
    // Writing the mask again looks for what waits.
    store.write(slot.index(), Field::Control, CONTROL_MASK);
    let control = store.read(slot.index(), Field::Control);
    rig.check("the pending bit", control == CONTROL_MASK | CONTROL_PENDING);
    let before = came(target);
    store.write(slot.index(), Field::Control, 0);
    let sent = idle::poll_until(LIMIT, || came(target) != before);
    rig.check("it is sent", sent);
    Ok(())
}

/// Reads a slot back as drivers do to flush their writes: the launcher counts the exits between the marks.
fn read_backs(rig: &mut Rig) -> Result<(), &'static str> {
    let slot = rig.mapped(0, here(0x79), 9)?;
    let store = rig.device.store();
    println!("@mark read-backs begin");
    let ones = (0..READ_BACKS).filter(|_| store.read(slot.index(), Field::Control) != 0).count();
    println!("@mark read-backs end");
    rig.check("the slot is unmasked", ones == 0);
    let freed = rig.domain.free(slot);
    rig.need("freeing", freed);
    Ok(())
}

fn cookies(rig: &mut Rig) -> Result<(), &'static str> {
    let slot = rig.mapped(3, here(0x7a), 0xfeed_f00d_cafe_0001)?;
    let info = rig.domain.query(&slot).map_err(|_| "the query failed")?;
    let right = info.mapping.is_some_and(|mapping| mapping.cookie == 0xfeed_f00d_cafe_0001);
    rig.check("the cookie comes back", right && info.group == 3);
    let freed = rig.domain.free(slot);
    rig.need("freeing", freed);
    Ok(())
}

/// This guest owns no PASID: it gets none by a call, nor by writing one.
fn foreign_pasids(rig: &mut Rig) -> Result<(), &'static str> {
    let slot = rig.mapped(0, here(0x7b), 11)?;
    let refused = rig.domain.set_pasid(&slot, Pasid::new(0x42));
    rig.check("a PASID of somebody else's", refused == Err(Status::BadPasid));
    let mut store = rig.device.store();
    store.write(slot.index(), Field::Control, 0x42 << 12 | 1 << 3);
    rig.check("a forged PASID", store.read(slot.index(), Field::Control) == 0);
    let fires = rig.fires(slot.index(), here(0x7b));
    rig.check("the device has not got it", fires);
    let freed = rig.domain.free(slot);
    rig.need("freeing", freed);
    Ok(())
}
