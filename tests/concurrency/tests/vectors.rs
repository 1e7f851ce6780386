//! Host vectors: a device that raises, a processor that takes its route away and gives another guest one, and the processor that has the
//! vectors and sweeps them.

use std::sync::Arc;

use concurrency::{
    atomic::{AtomicU64, Ordering},
    check::{check, must_fail},
    cpu::interrupts,
    ims::{GuestId, ports::HostRoute},
    irq::host_vectors::Vectors,
    machine::{apic, become_processor},
};
use hcall_abi::Target;
use loom::{sync::Mutex, thread};

/// The guest that has the vector at first, and the one that may get it.
const FIRST: GuestId = GuestId(0);
const SECOND: GuestId = GuestId(1);
const TARGET: Target = Target { apic_id: 0, vector: 0x41 };

/// A remapping unit with one entry, which holds a host vector or 0. A flush waits for requests in flight (VT-d specification, 6.5.2.7).
struct Unit {
    entry: AtomicU64,
    in_flight: Mutex<()>,
}

impl Unit {
    /// The device's interrupt.
    fn raise(&self) {
        let _in_flight = self.in_flight.lock().unwrap();
        match self.entry.load(Ordering::Relaxed) {
            0 => {}
            vector => apic::notify(0, vector as u8),
        }
    }

    fn flush(&self) {
        drop(self.in_flight.lock().unwrap());
    }
}

/// How a processor departs from its part, to have the checker find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A sweep does not take the interrupts that wait in the local APIC.
    NoPoll,
    /// The route ends before the unit has forgotten the entry.
    NoFlush,
    /// The sweep ends before the interrupts are delivered.
    FinishesFirst,
}

/// `Scheduler::deliver`, as far as it touches the vectors.
fn deliver(vectors: &Vectors, host: u8, fault: Fault) {
    let sweeps = vectors.begin_sweep();
    if sweeps && fault != Fault::NoPoll {
        interrupts::poll();
    }
    if sweeps && fault == Fault::FinishesFirst {
        vectors.finish_sweep();
    }
    if interrupts::take(host) {
        let owner = vectors.owner(host).map(|owner| owner.guest);
        assert_eq!(owner, Some(FIRST), "an interrupt that the first guest's device raised");
    }
    if sweeps && fault != Fault::FinishesFirst {
        vectors.finish_sweep();
    }
}

fn retire(fault: Fault) {
    become_processor(0);
    let vectors = Arc::new(Vectors::new(0));
    [FIRST, SECOND].into_iter().for_each(|guest| vectors.admit(guest, 0));
    let route = vectors.route(FIRST, TARGET).expect("all are free");
    let HostRoute::Remapped { vector: host, .. } = route else { unreachable!() };
    // Another vector is retiring already, so the first look sweeps.
    let retiring = Target { vector: 0x42, ..TARGET };
    let its_route = vectors.route(FIRST, retiring).expect("all are free");
    vectors.unroute(FIRST, retiring, its_route);
    let unit = Arc::new(Unit { entry: AtomicU64::new(host.into()), in_flight: Mutex::new(()) });
    let device = {
        let unit = Arc::clone(&unit);
        thread::spawn(move || unit.raise())
    };
    let other = {
        let vectors = Arc::clone(&vectors);
        thread::spawn(move || {
            become_processor(1);
            unit.entry.store(0, Ordering::SeqCst);
            if fault != Fault::NoFlush {
                unit.flush();
            }
            vectors.unroute(FIRST, TARGET, route);
            vectors.route(SECOND, TARGET).expect("there are others");
        })
    };
    deliver(&vectors, host, fault);
    interrupts::poll();
    deliver(&vectors, host, fault);
    device.join().unwrap();
    interrupts::poll();
    deliver(&vectors, host, fault);
    other.join().unwrap();
}

/// The first guest takes the vector again while it is swept, and has it as long as it uses it.
fn use_again() {
    become_processor(0);
    let vectors = Arc::new(Vectors::new(0));
    [FIRST, SECOND].into_iter().for_each(|guest| vectors.admit(guest, 0));
    let route = vectors.route(FIRST, TARGET).expect("all are free");
    vectors.unroute(FIRST, TARGET, route);
    let other = {
        let vectors = Arc::clone(&vectors);
        thread::spawn(move || {
            become_processor(1);
            assert_eq!(vectors.route(FIRST, TARGET), Ok(route));
            assert_ne!(vectors.route(SECOND, TARGET), Ok(route), "two have one vector");
        })
    };
    let HostRoute::Remapped { vector: host, .. } = route else { unreachable!() };
    deliver(&vectors, host, Fault::None);
    deliver(&vectors, host, Fault::None);
    other.join().unwrap();
    assert_eq!(vectors.owner(host).map(|owner| owner.guest), Some(FIRST));
}

#[test]
fn a_vector_that_is_used_again_during_a_sweep_stays_its_owners() {
    check(3, use_again);
}

#[test]
fn no_interrupt_reaches_the_next_owner_of_its_vector() {
    check(2, || retire(Fault::None));
}

#[test]
fn the_checker_finds_a_sweep_that_leaves_interrupts_behind() {
    must_fail(2, || retire(Fault::NoPoll));
}

#[test]
fn the_checker_finds_a_route_that_ends_before_the_flush() {
    must_fail(2, || retire(Fault::NoFlush));
}

#[test]
fn the_checker_finds_a_sweep_that_ends_before_the_delivery() {
    must_fail(2, || retire(Fault::FinishesFirst));
}
