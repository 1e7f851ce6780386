//! Many slots at a time, by as few hypercalls as can be.

use guest_shim::Interrupt;
use guest_shim::hcall_abi::{MapRequest, SlotHandle, Status, Target};

use crate::domain::{ImsDomain, ImsRequest, Open, opened};
use crate::status::{self, code};

/// Slots that are taken by one call of the library: so much room is on the stack.
const CHUNK: usize = 256;

/// Takes free slots, in a group: as many as there are, from `min` to `max`. Their handles are written to `handles`, and their number is
/// returned. `-IMS_NO_FREE_SLOT` with fewer than `min`; nothing is taken then, and `handles` holds nothing of use.
///
/// # Safety
/// `domain` is open and used by one processor at a time; `handles` points to room for `max`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_alloc_many(
    domain: *mut ImsDomain,
    group: u32,
    min: usize,
    max: usize,
    handles: *mut u32,
) -> i32 {
    if min > max || max > i32::MAX as usize {
        return code(Status::InvalidArgument);
    }
    // SAFETY: the caller's promise.
    let domain = unsafe { opened(domain) };
    let mut taken = 0;
    let result = alloc_chunks(domain, group, [min, max], &mut |handle| {
        // SAFETY: the caller's promise: there is room for `max`, and no more are taken.
        unsafe { handles.add(taken).write(handle.bits()) };
        taken += 1;
    });
    match result {
        Ok(()) => taken as i32,
        Err(status) => {
            // SAFETY: so many were written.
            domain.free_each(&mut (0..taken).filter_map(|n| SlotHandle::from_bits(unsafe { *handles.add(n) }).ok()));
            code(status)
        }
    }
}

/// Takes slots in chunks, each of which `take` gets. On error `take` has had those of the chunks before.
fn alloc_chunks(
    domain: &mut Open,
    group: u32,
    [min, max]: [usize; 2],
    take: &mut dyn FnMut(SlotHandle),
) -> Result<(), Status> {
    let mut chunk = [const { None::<Interrupt> }; CHUNK];
    let mut taken = 0;
    while taken < max {
        let places = &mut chunk[..CHUNK.min(max - taken)];
        let count = domain.alloc_many(group, min.saturating_sub(taken).min(places.len()), places)?;
        places.iter_mut().filter_map(Option::take).for_each(|interrupt| take(interrupt.handle()));
        taken += count;
        if count < CHUNK {
            break;
        }
    }
    if taken < min { Err(Status::NoFreeSlot) } else { Ok(()) }
}

/// Gives `count` slots back: masked and unmapped. Returns how many of them were given back; the others are lost to the driver, because
/// their handles are stale or were never handles.
///
/// # Safety
/// `domain` is open and used by one processor at a time; `handles` points to `count` of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_free_many(domain: *mut ImsDomain, handles: *const u32, count: usize) -> i32 {
    // SAFETY: the caller's promise: `n` is less than `count`.
    let handle = |n| SlotHandle::from_bits(unsafe { *handles.add(n) }).ok();
    // SAFETY: the caller's promise.
    let freed = unsafe { opened(domain) }.free_each(&mut (0..count).filter_map(handle));
    i32::try_from(freed).unwrap_or(i32::MAX)
}

/// Sends the interrupts of `count` slots to processors: slot `handles[n]` as `requests[n]` says. What became of each is written to
/// `results[n]`: 0, or minus a status. Returns how many were mapped, or minus the status of a batch that was refused as a whole; its
/// results and those behind it are that status then, and those before it stand.
///
/// # Safety
/// `domain` is open and used by one processor at a time; `handles` and `requests` point to `count` of them, and `results` to room for as
/// many.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_map_many(
    domain: *mut ImsDomain,
    handles: *const u32,
    requests: *const ImsRequest,
    count: usize,
    results: *mut i32,
) -> i32 {
    // SAFETY: the caller's promise: `n` is less than `count`, here and below.
    let put = |n: usize, result: i32| unsafe { results.add(n).write(result) };
    // SAFETY: as above.
    let handle = |n: usize| SlotHandle::from_bits(unsafe { *handles.add(n) }).ok();
    // SAFETY: as above.
    let request = |n: usize| unsafe { *requests.add(n) };
    let mut items = (0..count).filter_map(|n| {
        let (handle, ImsRequest { apic_id, vector, unmask, cookie }) = (handle(n)?, request(n));
        Some(MapRequest { handle, target: Target { apic_id, vector }, unmask, cookie })
    });
    // The service answers the items in their order. A value that is no handle makes no item, so it has no answer.
    let mut positions = (0..count).filter(|n| handle(*n).is_some());
    (0..count).for_each(|n| put(n, code(Status::InvalidArgument)));
    let mut mapped = 0;
    // SAFETY: the caller's promise.
    let whole = unsafe { opened(domain) }.map_each(&mut items, &mut |_, result| {
        let Some(n) = positions.next() else { return };
        mapped += i32::from(result.is_ok());
        put(n, status::result(result));
    });
    match whole {
        Ok(()) => mapped,
        Err(status) => {
            positions.for_each(|n| put(n, code(status)));
            code(status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Native;

    const NO_FREE_SLOT: i32 = -(Status::NoFreeSlot as i32);
    const INVALID_ARGUMENT: i32 = -(Status::InvalidArgument as i32);

    #[test]
    fn as_many_slots_are_taken_as_there_are_from_min_to_max() {
        let mut native = Native::new(600);
        let domain = native.open();
        let mut handles = [0; 1000];
        // SAFETY: everything is ours, and lives until the end.
        let mut alloc = |min, max| unsafe { ims_alloc_many(domain, 1, min, max, handles.as_mut_ptr()) };
        assert_eq!(alloc(601, 1000), NO_FREE_SLOT);
        assert_eq!(alloc(2, 1), INVALID_ARGUMENT);
        assert_eq!(alloc(600, 1000), 600, "what was taken before was given back");
        let mut sorted = handles[..600].to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 600, "each is a slot of its own");
        let mut more = [0];
        // SAFETY: as above.
        let mut alloc = |min, max| unsafe { ims_alloc_many(domain, 1, min, max, more.as_mut_ptr()) };
        assert_eq!((alloc(1, 1), alloc(0, 1), alloc(0, 0)), (NO_FREE_SLOT, 0, 0));
        // SAFETY: as above. The last one is no handle.
        let free = |count| unsafe { ims_free_many(domain, handles.as_ptr(), count) };
        assert_eq!((free(601), free(600)), (600, 0), "those of the second time are stale");
    }

    #[test]
    fn each_result_of_many_mappings_comes_to_its_place() {
        let mut native = Native::new(4);
        let domain = native.open();
        let mut handles = [0; 4];
        // SAFETY: everything is ours, and lives until the end.
        unsafe {
            assert_eq!(ims_alloc_many(domain, 1, 4, 4, handles.as_mut_ptr()), 4);
            // No handle at all.
            handles[1] = 7;
            let request = |vector| ImsRequest { apic_id: 2, vector, unmask: true, cookie: 0 };
            let requests = [request(0x41), request(0x42), request(3), request(0x44)];
            let mut results = [9; 4];
            let mapped = ims_map_many(domain, handles.as_ptr(), requests.as_ptr(), 4, results.as_mut_ptr());
            assert_eq!((mapped, results), (2, [0, INVALID_ARGUMENT, code(Status::BadVector), 0]));
        }
        assert_eq!((native.memory[0][2], native.memory[3][2]), (0x41, 0x44));
    }
}
