//! The cases, in the order in which they run: each leaves everything as it found it.

mod dma;
mod interrupts;
mod queue;
mod reset;
mod served;
mod takeover;

use alloc::{format, string::String, vec::Vec};

use imsvisor::{
    addr::Bdf,
    event,
    vtd::{Fault, Reason, Request},
};

use crate::{
    bed::{Bed, Seen},
    dsa::Dsa,
};

/// What a case found out.
enum Found {
    /// The unit does what the manual says and what our code counts on.
    Right,
    /// The unit does not look: what it did instead.
    Unchecked(&'static str),
}

type Verdict = Result<Found, String>;
type Case = (&'static str, fn(&mut Bed) -> Verdict);

/// Runs those of QEMU's own devices. Returns whether none failed.
pub fn run(bed: &mut Bed) -> bool {
    let cases = [dma::CASES, interrupts::CASES, queue::CASES, reset::CASES, takeover::CASES].into_iter().flatten();
    cases.fold(true, |right, (name, case)| {
        bed.seen();
        tell(name, case(bed)) && right
    })
}

/// Runs those of a DSA that another process serves.
pub fn run_served(bed: &mut Bed, dsa: &mut Dsa) -> bool {
    if let Err(why) = dsa.bind_marker(bed) {
        return tell("marker", Err(why.into()));
    }
    served::CASES.iter().fold(true, |right, (name, case)| {
        bed.seen();
        tell(name, case(bed, dsa)) && right
    })
}

fn tell(name: &str, verdict: Verdict) -> bool {
    match &verdict {
        Ok(Found::Right) => event!("check name={name} result=passed"),
        Ok(Found::Unchecked(what)) => event!("check name={name} result=unchecked why=\"{what}\""),
        Err(why) => event!("check name={name} result=failed why=\"{why}\""),
    }
    verdict.is_ok()
}

/// Nothing arrived and nothing was refused, but this vector.
fn only_vector(seen: &Seen, vector: u8) -> Verdict {
    let right = seen.vectors == [vector] && seen.faults.is_empty();
    if right { Ok(Found::Right) } else { Err(format!("vector {vector:#x} was expected: {}", told(seen))) }
}

/// Nothing arrived, and this was recorded, once, and the unit said so.
fn only_fault(seen: &Seen, source: Option<Bdf>, reason: u8, request: Request) -> Verdict {
    let is_it = |fault: &Fault| {
        fault.reason == Reason(reason) && fault.request == request && source.is_none_or(|bdf| fault.source == bdf)
    };
    let right = seen.vectors.is_empty() && seen.fault_event && matches!(&seen.faults[..], [fault] if is_it(fault));
    if right { Ok(Found::Right) } else { Err(format!("fault {reason:#x} ({request:?}) was expected: {}", told(seen))) }
}

fn told(seen: &Seen) -> String {
    let faults: Vec<String> = seen.faults.iter().map(|fault| format!("{fault}")).collect();
    format!("vectors {:x?}, faults {faults:?}, event {}, lost {}", seen.vectors, seen.fault_event, seen.lost)
}
