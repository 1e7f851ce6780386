//! Host vectors: which interrupt of the machine is whose.
//!
//! A host vector stands for one vector of one virtual processor, however many entries lead there: two interrupts that meet in it
//! would have met in the guest's own IRR as well.

use hcall_abi::{Status, Target};
use spin::Mutex;

use crate::ims::{GuestId, HostRoute};

/// Host vectors that devices' interrupts can use. Below are exceptions and what the firmware may have left; above is the
/// hypervisor's own.
const FIRST: u8 = 0x30;
const LAST: u8 = 0xef;

/// Whom a host vector belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The guest.
    pub guest: GuestId,
    /// The virtual processor and its vector.
    pub target: Target,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    owner: Owner,
    count: u32,
}

/// The vectors of one processor.
pub struct Vectors {
    /// Its APIC ID.
    destination: u32,
    uses: Mutex<[Option<Use>; 256]>,
}

impl Vectors {
    /// All vectors are free.
    pub const fn new(destination: u32) -> Self {
        Self { destination, uses: Mutex::new([None; 256]) }
    }

    /// The route to a guest's vector. The same pair gives the same route and counts a use more.
    ///
    /// A free vector of the guest vector's own priority class is preferred, so that the machine serves interrupts in the order
    /// that the guest would.
    pub fn route(&self, guest: GuestId, target: Target) -> Result<HostRoute, Status> {
        let owner = Owner { guest, target };
        let mut uses = self.uses.lock();
        // Most have the vector of their own number.
        let is_own = |slot: &Option<Use>| slot.is_some_and(|u| u.owner == owner);
        let same = usize::from(target.vector);
        let known = if is_own(&uses[same]) { Some(same) } else { uses.iter().position(is_own) };
        let vector = known.or_else(|| free_vector(&uses, target.vector)).ok_or(Status::NoFreeVector)?;
        let count = uses[vector].map_or(0, |u| u.count);
        uses[vector] = Some(Use { owner, count: count.checked_add(1).ok_or(Status::NoFreeVector)? });
        Ok(HostRoute::Remapped { vector: vector as u8, destination: self.destination })
    }

    /// Ends one use of a route.
    pub fn unroute(&self, guest: GuestId, target: Target, route: HostRoute) {
        let HostRoute::Remapped { vector, .. } = route else { return };
        let mut uses = self.uses.lock();
        let slot = &mut uses[usize::from(vector)];
        if let Some(held) = slot
            && held.owner == (Owner { guest, target })
        {
            held.count -= 1;
            if held.count == 0 {
                *slot = None;
            }
        }
    }

    /// Whose a vector is.
    pub fn owner(&self, vector: u8) -> Option<Owner> {
        self.uses.lock()[usize::from(vector)].map(|held| held.owner)
    }

    /// Vectors in use.
    pub fn used(&self) -> usize {
        self.uses.lock().iter().flatten().count()
    }
}

fn free_vector(uses: &[Option<Use>; 256], wanted: u8) -> Option<usize> {
    let free = |vector: &usize| uses[*vector].is_none();
    let (first, last) = (usize::from(FIRST), usize::from(LAST));
    let class = usize::from(wanted & 0xf0);
    let own = Some(usize::from(wanted)).filter(|vector| (first..=last).contains(vector));
    own.filter(free)
        .or_else(|| (class.max(first)..=(class | 15).min(last)).find(free))
        .or_else(|| (first..=last).find(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: GuestId = GuestId(0);

    fn target(vector: u8) -> Target {
        Target { apic_id: 0, vector }
    }

    #[test]
    fn the_same_target_shares_a_vector_until_its_last_use_ends() {
        let vectors = Vectors::new(3);
        let route = vectors.route(GUEST, target(0x41)).unwrap();
        assert_eq!(vectors.route(GUEST, target(0x41)), Ok(route));
        assert_eq!(route, HostRoute::Remapped { vector: 0x41, destination: 3 });
        vectors.unroute(GUEST, target(0x41), route);
        assert_eq!(vectors.owner(0x41), Some(Owner { guest: GUEST, target: target(0x41) }));
        vectors.unroute(GUEST, target(0x41), route);
        assert_eq!(vectors.owner(0x41), None);
        vectors.unroute(GUEST, target(0x41), route);
        assert_eq!(vectors.used(), 0);
    }

    #[test]
    fn two_guests_with_the_same_vector_get_two() {
        let vectors = Vectors::new(0);
        let routes = [GuestId(0), GuestId(1)].map(|guest| vectors.route(guest, target(0x80)).unwrap());
        assert_ne!(routes[0], routes[1]);
    }

    #[test]
    fn vectors_run_out_and_never_leave_their_range() {
        let vectors = Vectors::new(0);
        let mut got = 0;
        for vector in 16..=255 {
            match vectors.route(GUEST, target(vector)) {
                Ok(HostRoute::Remapped { vector, .. }) => {
                    assert!((FIRST..=LAST).contains(&vector));
                    got += 1;
                }
                other => assert_eq!(other, Err(Status::NoFreeVector)),
            }
        }
        assert_eq!(got, usize::from(LAST - FIRST) + 1);
    }

    #[test]
    fn somebody_elses_route_is_not_ended() {
        let vectors = Vectors::new(0);
        let route = vectors.route(GUEST, target(0x50)).unwrap();
        vectors.unroute(GuestId(1), target(0x50), route);
        assert_eq!(vectors.used(), 1);
    }
}
