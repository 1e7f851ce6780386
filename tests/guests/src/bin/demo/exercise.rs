//! What a driver does to a slot besides raising it. After each step the slot is raised and must come once, where it belongs.

use guests::bare::{apic, vector};
use guests::dsa::Descriptor;
use guests::guest_shim::hcall_abi::{Status, Target};
use guests::println;

use crate::driver::{Driver, TALLY, request_to};

/// Slots that are exercised: half of them by hypercall, half by writing the store.
const SLOTS: u16 = 16;
type Outcome = Result<(), Failure>;

enum Failure {
    Status(&'static str, Status),
    Other(&'static str),
}

/// Exercises some slots.
pub fn all(driver: &mut Driver) {
    let before = TALLY.total();
    for n in 0..SLOTS.min(driver.count()) {
        for step in [mask, affinity, affinity_while_pending, unmap, replace, late] {
            if let Err(failure) = step(driver, n) {
                tell(driver, n, failure);
            }
        }
    }
    println!("demo: masked, re-targeted, unmapped and replaced: {} interrupts more", TALLY.total() - before);
}

fn tell(driver: &mut Driver, n: u16, failure: Failure) {
    match failure {
        Failure::Status(what, status) => {
            println!("demo: {what}: {status}");
            driver.error(n, what);
        }
        Failure::Other(what) => driver.error(n, what),
    }
    driver.settle(n);
}

/// A step of a domain: its name, for the message.
fn step(what: &'static str, result: Result<(), Status>) -> Outcome {
    result.map_err(|status| Failure::Status(what, status))
}

const MISSING: Failure = Failure::Other("not taken");

/// Submits a descriptor that does nothing but raise the slot.
fn fire(driver: &mut Driver, n: u16) {
    driver.submit(n, Descriptor::noop);
}

/// Waits for the interrupt that is under way.
fn arrives(driver: &mut Driver, n: u16, before: u32) -> Outcome {
    if !driver.wait_for(before + 1) {
        return Err(Failure::Other("its interrupt did not come"));
    }
    driver.completion(n);
    driver.verified += 1;
    Ok(())
}

fn fires(driver: &mut Driver, n: u16) -> Outcome {
    let before = TALLY.total();
    fire(driver, n);
    arrives(driver, n, before)
}

/// Descriptors before the one that raises a slot: time enough to fall asleep.
const AHEAD: usize = 40;

/// Raises the slot when the guest sleeps already.
fn late(driver: &mut Driver, n: u16) -> Outcome {
    driver.dawdle(n, AHEAD);
    fires(driver, n)
}

/// Another slot.
fn partner(driver: &Driver, n: u16) -> u16 {
    debug_assert!(driver.count() >= 2, "the command line's slots are at least two");
    if n ^ 1 < driver.count() { n ^ 1 } else { n - 1 }
}

/// Masks the slot and raises it: the descriptor completes, and the interrupt waits. How long a machine takes to deliver is not known, so
/// another slot's interrupt is waited for. It is raised after the masked one's descriptor is complete, by the same engine, and goes to the
/// same processor: if the device had sent the masked one, it would be there as well, and be taken when the other's handler returns.
fn pend(driver: &mut Driver, n: u16) -> Outcome {
    let (domain, slot) = driver.slot(n).ok_or(MISSING)?;
    step("mask", domain.mask(&slot.interrupt))?;
    let before = TALLY.handled(n);
    fire(driver, n);
    if !driver.poll(n) {
        return Err(Failure::Other("its descriptor did not complete while it was masked"));
    }
    let next = partner(driver, n);
    fires(driver, next)?;
    if TALLY.handled(n) != before {
        return Err(Failure::Other("its interrupt came while it was masked"));
    }
    Ok(())
}

fn mask(driver: &mut Driver, n: u16) -> Outcome {
    pend(driver, n)?;
    let before = TALLY.total();
    let (domain, slot) = driver.slot(n).ok_or(MISSING)?;
    step("unmask", domain.unmask(&slot.interrupt))?;
    arrives(driver, n, before)?;
    fires(driver, n)
}

fn retarget(driver: &mut Driver, n: u16, vector: u8) -> Outcome {
    let (domain, slot) = driver.slot(n).ok_or(MISSING)?;
    step("set_affinity", domain.set_affinity(&slot.interrupt, Target { apic_id: apic::id(), vector }))?;
    slot.vector = vector;
    Ok(())
}

fn affinity(driver: &mut Driver, n: u16) -> Outcome {
    retarget(driver, n, vector::of_slot(n + vector::COUNT / 2))?;
    fires(driver, n)
}

/// An interrupt that waits while its slot is sent elsewhere comes there.
fn affinity_while_pending(driver: &mut Driver, n: u16) -> Outcome {
    pend(driver, n)?;
    let before = TALLY.total();
    let (domain, slot) = driver.slot(n).ok_or(MISSING)?;
    // It is expected at the new place only.
    TALLY.forget(slot.vector);
    let vector = vector::of_slot(n);
    step("set_affinity", domain.set_affinity(&slot.interrupt, Target { apic_id: apic::id(), vector }))?;
    slot.vector = vector;
    if !TALLY.expect(vector, n) {
        return Err(Failure::Other("its vector is in use"));
    }
    step("unmask", domain.unmask(&slot.interrupt))?;
    arrives(driver, n, before)
}

fn unmap(driver: &mut Driver, n: u16) -> Outcome {
    let (domain, slot) = driver.slot(n).ok_or(MISSING)?;
    step("unmap", domain.unmap(&slot.interrupt))?;
    step("map", domain.map(&slot.interrupt, &request_to(slot.vector, n)))?;
    fires(driver, n)
}

/// Gives the slot back and takes another in its place.
fn replace(driver: &mut Driver, n: u16) -> Outcome {
    let slot = driver.take(n).ok_or(MISSING)?;
    let raised = slot.raised;
    driver.device.dsa.release_ims_handle(slot.handle).map_err(|_| Failure::Other("its handle is not taken back"))?;
    let domain = driver.domain(n);
    step("free", domain.free(slot.interrupt))?;
    let interrupt = domain.alloc(0).map_err(|status| Failure::Status("alloc", status))?;
    step("map", domain.map(&interrupt, &request_to(vector::of_slot(n), n)))?;
    driver.put(n, interrupt, raised).map_err(Failure::Other)?;
    fires(driver, n)
}
