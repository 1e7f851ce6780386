//! The invalidation queue: errors, and more descriptors than it has room for.

use alloc::{format, string::ToString};

use imsvisor::vtd::{Error, QUEUE_CAPACITY, QueueError};

use super::{Case, Found, Verdict};
use crate::bed::Bed;

pub const CASES: &[Case] =
    &[("the-queue-goes-on-after-a-refused-descriptor", refused), ("the-queue-wraps-around", wraps)];

/// The unit halts at a descriptor that is none (IQE). The flush that meets the halted queue says so, and the next one works.
fn refused(bed: &mut Bed) -> Verdict {
    let index = bed.unit.reserve(bed.edu.bdf).map_err(|error| error.to_string())?;
    let flush = || bed.unit.flush_entries([index].into_iter());
    flush().map_err(|error| format!("before: {error}"))?;
    bed.raw.queue_nonsense();
    match flush() {
        Err(Error::Queue(QueueError::Refused(_))) => {}
        other => return Err(format!("the flush behind the nonsense: {other:?}")),
    }
    for number in 0..3 {
        flush().map_err(|error| format!("flush {number} after it: {error}"))?;
    }
    bed.retire(index)?;
    Ok(Found::Right)
}

fn wraps(bed: &mut Bed) -> Verdict {
    let index = bed.unit.reserve(bed.edu.bdf).map_err(|error| error.to_string())?;
    for number in 0..=QUEUE_CAPACITY {
        bed.unit.flush_entries([index].into_iter()).map_err(|error| format!("flush {number}: {error}"))?;
    }
    bed.retire(index)?;
    Ok(Found::Right)
}
