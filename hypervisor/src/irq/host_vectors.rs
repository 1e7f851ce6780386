//! Host vectors, and the guests' vectors that they stand for.
//!
//! A host vector stands for one vector of one virtual processor, for any number of entries. Two interrupts that merge in the host vector
//! would have merged in the guest's own IRR as well.
//!
//! Virtual processors on the same processor share its vectors, first come, first served. A few are guaranteed to each of them, so that no
//! guest can leave another one without vectors (`GUARANTEED`).
//!
//! A vector whose last use has ended is *retiring*: no entry leads there, but an earlier interrupt may wait in the processor's local APIC.
//! The vector keeps its owner until that processor has taken all waiting interrupts ([`Vectors::begin_sweep`]); then it is free. Linux
//! keeps the old vector of a moved interrupt in the same way (`irq_complete_move`).

use alloc::vec::Vec;

use hcall_abi::{Status, Target};

use crate::{
    ims::{GuestId, HostRoute},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

/// Host vectors for devices' interrupts. Below them are exceptions and vectors that the firmware may have used; above them are the
/// hypervisor's own.
const FIRST: u8 = 0x30;
const LAST: u8 = 0xef;

/// Vectors that every virtual processor of a processor can have, if there are enough for all.
const GUARANTEED: u32 = 16;

/// The number of no virtual processor.
const NOBODY: u32 = u32::MAX;

/// The owner of a host vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The guest.
    pub guest: GuestId,
    /// The virtual processor and its vector.
    pub target: Target,
}

/// A virtual processor.
struct Routes {
    guest: GuestId,
    apic_id: u32,
    /// The number of its host vectors, including retiring ones.
    used: u32,
}

/// Host vectors of a virtual processor, by its own vectors; 0 where it has none.
type Hosts = [u8; 256];

/// The uses of a processor's vectors.
struct Table {
    accounts: Accounts,
    /// The host vectors of each virtual processor, in the accounts' order.
    hosts: Vec<Hosts>,
}

/// The table without the map from a guest's vectors to host vectors.
struct Accounts {
    /// The owner of each vector that is not free, and the number of its uses.
    owners: [Option<Owner>; 256],
    uses: [u32; 256],
    /// A bit for each vector that is free.
    free: [u64; 4],
    /// A bit for each vector whose last use has ended since the last sweep began, and for each where it had ended when it began. A vector
    /// that is used again keeps its bit: a sweep frees only vectors without uses.
    retiring: [u64; 4],
    swept: [u64; 4],
    /// Each virtual processor that runs here.
    routes: Vec<Routes>,
}

/// The vectors of one processor.
pub struct Vectors {
    /// The processor's APIC ID.
    destination: u32,
    /// Whether vectors are retiring.
    sweep: AtomicBool,
    table: Mutex<Table>,
}

impl Vectors {
    /// The vectors of a processor with APIC ID `destination`. All are free.
    pub fn new(destination: u32) -> Self {
        let accounts = Accounts {
            owners: [None; 256],
            uses: [0; 256],
            free: FREE,
            retiring: [0; 4],
            swept: [0; 4],
            routes: Vec::new(),
        };
        Self { destination, sweep: AtomicBool::new(false), table: Mutex::new(Table { accounts, hosts: Vec::new() }) }
    }

    /// Adds a virtual processor that runs here from now on.
    pub fn admit(&self, guest: GuestId, apic_id: u32) {
        let mut table = self.table.lock();
        table.accounts.routes.push(Routes { guest, apic_id, used: 0 });
        table.hosts.push([0; 256]);
    }

    /// The processor's APIC ID.
    pub const fn destination(&self) -> u32 {
        self.destination
    }

    /// The route to a guest's vector. The same guest and target give the same route. Counts one more use of it.
    ///
    /// A free vector of the guest vector's own priority class is preferred, so that the machine serves interrupts in the guest's order.
    pub fn route(&self, guest: GuestId, target: Target) -> Result<HostRoute, Status> {
        let mut vectors = self.vcpu(guest, target.apic_id)?;
        let host = vectors.borrow().host(target.vector)?;
        Ok(vectors.host_route(host))
    }

    /// Ends one use of a route.
    pub fn unroute(&self, guest: GuestId, target: Target, route: HostRoute) {
        if let HostRoute::Remapped { vector, .. } = route {
            self.table.lock().accounts.end_use(&self.sweep, Owner { guest, target }, vector);
        }
    }

    /// The vectors of one virtual processor, locked, for several routes. Returns `BadTarget` if the virtual processor does not run here.
    pub fn vcpu(&self, guest: GuestId, apic_id: u32) -> Result<VcpuVectors<'_>, Status> {
        let table = self.table.lock();
        let at = table.accounts.place_of(guest, apic_id).ok_or(Status::BadTarget)?;
        Ok(VcpuVectors { vectors: self, table, at })
    }

    /// The owner of a vector.
    pub fn owner(&self, vector: u8) -> Option<Owner> {
        self.table.lock().accounts.owners[usize::from(vector)]
    }

    /// The number of vectors in use, without retiring ones.
    pub fn used(&self) -> usize {
        self.table.lock().accounts.uses.iter().filter(|uses| **uses != 0).count()
    }

    /// Begins a sweep if vectors are retiring, and returns whether it did. The processor then takes all interrupts that wait in its local
    /// APIC, delivers them to the vectors' owners, and calls [`Vectors::finish_sweep`]. Only the processor that has these vectors calls
    /// this.
    pub fn begin_sweep(&self) -> bool {
        if !self.sweep.load(Ordering::Relaxed) {
            return false;
        }
        let accounts = &mut self.table.lock().accounts;
        self.sweep.store(false, Ordering::Relaxed);
        accounts.swept = core::mem::take(&mut accounts.retiring);
        true
    }

    /// Frees the vectors that have been retiring since the sweep began.
    pub fn finish_sweep(&self) {
        self.table.lock().free_swept();
    }

    /// Forgets a guest that has released its routes. Its retiring vectors are a guest's that there is no more: if the guest comes back before
    /// they are free, what waits for them is not for its new life.
    pub fn forget(&self, guest: GuestId) {
        let Table { accounts, hosts } = &mut *self.table.lock();
        for owner in accounts.owners.iter_mut().flatten().filter(|owner| owner.guest == guest) {
            owner.target.apic_id = NOBODY;
        }
        let mut gone = accounts.routes.iter().map(|routes| routes.guest == guest);
        hosts.retain(|_| gone.next() != Some(true));
        accounts.routes.retain(|routes| routes.guest != guest);
    }
}

/// The host vectors of one virtual processor, with the lock of the processor's table.
pub struct VcpuVectors<'a> {
    vectors: &'a Vectors,
    table: MutexGuard<'a, Table>,
    /// The virtual processor's place in the table's list.
    at: usize,
}

impl VcpuVectors<'_> {
    /// Borrows the parts of the table that each of several routes needs.
    #[inline]
    pub fn borrow(&mut self) -> BorrowedVcpuVectors<'_> {
        let Table { accounts, hosts } = &mut *self.table;
        BorrowedVcpuVectors { hosts: &mut hosts[self.at], accounts, sweep: &self.vectors.sweep, at: self.at }
    }

    /// The route to a host vector of this processor.
    #[inline]
    pub fn host_route(&self, host: u8) -> HostRoute {
        HostRoute::Remapped { vector: host, destination: self.vectors.destination }
    }
}

/// The host vectors of one virtual processor, with its part of the table borrowed.
pub struct BorrowedVcpuVectors<'a> {
    hosts: &'a mut Hosts,
    accounts: &'a mut Accounts,
    sweep: &'a AtomicBool,
    at: usize,
}

impl BorrowedVcpuVectors<'_> {
    /// The host vector for one of the guest's vectors. Counts one more use of it, as [`Vectors::route`] does.
    #[inline]
    pub fn host(&mut self, vector: u8) -> Result<u8, Status> {
        let mut host = self.hosts[usize::from(vector)];
        if host == 0 {
            host = self.accounts.take(self.at, vector)?;
            self.hosts[usize::from(vector)] = host;
        }
        // Each use has a remapping entry, and there are fewer of those.
        self.accounts.uses[usize::from(host)] += 1;
        Ok(host)
    }

    /// Ends one use of a host vector.
    #[cold]
    pub fn end_use(&mut self, vector: u8, host: u8) {
        let Routes { guest, apic_id, .. } = self.accounts.routes[self.at];
        let owner = Owner { guest, target: Target { apic_id, vector } };
        self.accounts.end_use(self.sweep, owner, host);
    }
}

/// The vectors from [`FIRST`] to [`LAST`].
const FREE: [u64; 4] = {
    let mut free = [0; 4];
    let mut vector = FIRST as usize;
    while vector <= LAST as usize {
        free[vector / 64] |= 1 << (vector % 64);
        vector += 1;
    }
    free
};

impl Table {
    fn free_swept(&mut self) {
        let Self { accounts, hosts } = self;
        for word in 0..4 {
            let mut bits = core::mem::take(&mut accounts.swept[word]);
            while bits != 0 {
                let vector = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if accounts.uses[vector] != 0 {
                    continue;
                }
                accounts.free[word] |= 1 << (vector % 64);
                if let Some(Owner { guest, target }) = accounts.owners[vector].take()
                    && let Some(at) = accounts.place_of(guest, target.apic_id)
                {
                    accounts.routes[at].used -= 1;
                    hosts[at][usize::from(target.vector)] = 0;
                }
            }
        }
    }
}

impl Accounts {
    /// A virtual processor's place in the list.
    fn place_of(&self, guest: GuestId, apic_id: u32) -> Option<usize> {
        self.routes.iter().position(|routes| (routes.guest, routes.apic_id) == (guest, apic_id))
    }

    /// Takes a free vector for a virtual processor, with no use yet.
    #[cold]
    fn take(&mut self, at: usize, wanted: u8) -> Result<u8, Status> {
        if !self.may_take(at) {
            return Err(Status::NoFreeVector);
        }
        let vector = self.free_vector(wanted).ok_or(Status::NoFreeVector)?;
        self.free[usize::from(vector / 64)] &= !(1 << (vector % 64));
        let routes = &mut self.routes[at];
        routes.used += 1;
        let owner = Owner { guest: routes.guest, target: Target { apic_id: routes.apic_id, vector: wanted } };
        self.owners[usize::from(vector)] = Some(owner);
        Ok(vector)
    }

    /// Ends one use by the vector's owner.
    fn end_use(&mut self, sweep: &AtomicBool, owner: Owner, vector: u8) {
        let uses = &mut self.uses[usize::from(vector)];
        if self.owners[usize::from(vector)] == Some(owner) && *uses != 0 {
            *uses -= 1;
            if *uses == 0 {
                let (word, bit) = (usize::from(vector / 64), 1 << (vector % 64));
                self.retiring[word] |= bit;
                self.swept[word] &= !bit;
                sweep.store(true, Ordering::Release);
            }
        }
    }

    /// Whether a virtual processor may have one more vector: from its guarantee, or from the vectors that are not kept for others.
    fn may_take(&self, at: usize) -> bool {
        let share = (u32::from(LAST - FIRST) + 1) / (self.routes.len() as u32).max(1);
        let guaranteed = GUARANTEED.min(share);
        let others = self.routes.iter().enumerate().filter(|(n, _)| *n != at);
        let kept: u32 = others.map(|(_, routes)| guaranteed.saturating_sub(routes.used)).sum();
        let free: u32 = self.free.iter().map(|word| word.count_ones()).sum();
        self.routes[at].used < guaranteed || free > kept
    }

    /// The free vector of the same number, else one of the same class, else any.
    fn free_vector(&self, wanted: u8) -> Option<u8> {
        let word = usize::from(wanted / 64);
        let class = 0xffff << (wanted % 64 / 16 * 16);
        let lowest = |word: usize, mask: u64| {
            let free = self.free[word] & mask;
            (free != 0).then(|| (word * 64) as u8 + free.trailing_zeros() as u8)
        };
        lowest(word, 1 << (wanted % 64))
            .or_else(|| lowest(word, class))
            .or_else(|| (0..4).find_map(|w| lowest(w, u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const GUEST: GuestId = GuestId(0);

    /// A processor that runs the first virtual processor of some guests.
    fn vectors_of(destination: u32, guests: u16) -> Vectors {
        let vectors = Vectors::new(destination);
        (0..guests).for_each(|guest| vectors.admit(GuestId(guest), 0));
        vectors
    }

    #[test]
    fn no_guest_can_leave_another_one_without_vectors() {
        let vectors = vectors_of(0, 3);
        let all = |guest| (16..=255).filter(|&vector| vectors.route(GuestId(guest), target(vector)).is_ok()).count();
        let most = usize::from(LAST - FIRST) + 1;
        assert_eq!(all(0), most - 2 * GUARANTEED as usize);
        assert_eq!((all(1), all(2)), (GUARANTEED as usize, GUARANTEED as usize));
        assert_eq!(vectors.route(GuestId(3), target(0x41)), Err(Status::BadTarget), "it does not run here");
    }

    #[test]
    fn a_guest_that_comes_back_does_not_own_what_its_last_life_has_left() {
        let vectors = vectors_of(0, 1);
        let HostRoute::Remapped { vector, .. } = vectors.route(GUEST, target(0x41)).unwrap() else { panic!() };
        vectors.unroute(GUEST, target(0x41), HostRoute::Remapped { vector, destination: 0 });
        vectors.forget(GUEST);
        vectors.admit(GUEST, 0);
        assert_ne!(vectors.owner(vector).map(|owner| owner.target), Some(target(0x41)));
        let HostRoute::Remapped { vector: other, .. } = vectors.route(GUEST, target(0x41)).unwrap() else { panic!() };
        assert_ne!(other, vector, "an interrupt may still wait for it");
        assert!(vectors.begin_sweep());
        vectors.finish_sweep();
        assert_eq!(vectors.owner(vector), None);
        assert_eq!(vectors.owner(other).map(|owner| owner.target), Some(target(0x41)));
    }

    #[test]
    fn many_virtual_processors_share_what_there_is() {
        let vectors = vectors_of(0, 64);
        for guest in 0..64 {
            let got = (16..=255).filter(|&vector| vectors.route(GuestId(guest), target(vector)).is_ok()).count();
            assert_eq!(got, 3, "guest {guest}");
        }
    }

    fn target(vector: u8) -> Target {
        Target { apic_id: 0, vector }
    }

    #[test]
    fn the_same_target_shares_a_vector_until_its_last_use_ends() {
        let vectors = vectors_of(3, 1);
        let route = vectors.route(GUEST, target(0x41)).unwrap();
        assert_eq!(vectors.route(GUEST, target(0x41)), Ok(route));
        assert_eq!(route, HostRoute::Remapped { vector: 0x41, destination: 3 });
        vectors.unroute(GUEST, target(0x41), route);
        assert_eq!(vectors.owner(0x41), Some(Owner { guest: GUEST, target: target(0x41) }));
        vectors.unroute(GUEST, target(0x41), route);
        vectors.unroute(GUEST, target(0x41), route);
        assert_eq!(vectors.used(), 0);
        sweep(&vectors);
        assert_eq!(vectors.owner(0x41), None);
    }

    fn sweep(vectors: &Vectors) {
        assert!(vectors.begin_sweep());
        vectors.finish_sweep();
    }

    #[test]
    fn attack_11_a_vector_is_its_owners_until_the_processor_has_swept() {
        let vectors = vectors_of(0, 3);
        assert!(!vectors.begin_sweep());
        let route = vectors.route(GUEST, target(0x41)).unwrap();
        vectors.unroute(GUEST, target(0x41), route);
        assert_eq!(vectors.owner(0x41), Some(Owner { guest: GUEST, target: target(0x41) }), "one may be on its way");
        assert_ne!(vectors.route(GuestId(1), target(0x41)), Ok(route), "nobody else gets it");
        sweep(&vectors);
        assert_eq!(vectors.owner(0x41), None);
        assert_eq!(vectors.route(GuestId(2), target(0x41)), Ok(route));
    }

    #[test]
    fn a_vector_that_is_used_again_during_a_sweep_is_not_freed_by_it() {
        let vectors = vectors_of(0, 3);
        let route = vectors.route(GUEST, target(0x41)).unwrap();
        vectors.unroute(GUEST, target(0x41), route);
        assert!(vectors.begin_sweep());
        assert_eq!(vectors.route(GUEST, target(0x41)), Ok(route), "the same one");
        vectors.unroute(GUEST, target(0x41), route);
        vectors.finish_sweep();
        assert!(vectors.owner(0x41).is_some(), "what came in between was not let in by the sweep");
        sweep(&vectors);
        assert_eq!(vectors.owner(0x41), None);
        assert!(!vectors.begin_sweep());
    }

    #[test]
    fn a_vector_that_is_used_again_is_not_freed_whenever_that_was() {
        for before in [true, false] {
            let vectors = vectors_of(0, 3);
            let route = vectors.route(GUEST, target(0x41)).unwrap();
            vectors.unroute(GUEST, target(0x41), route);
            let again = || assert_eq!(vectors.route(GUEST, target(0x41)), Ok(route), "the same one");
            if before {
                again();
            }
            assert!(vectors.begin_sweep());
            if !before {
                again();
            }
            vectors.finish_sweep();
            assert_eq!(vectors.owner(0x41), Some(Owner { guest: GUEST, target: target(0x41) }));
            assert_ne!(vectors.route(GuestId(1), target(0x41)), Ok(route), "nobody else gets it");
            vectors.unroute(GUEST, target(0x41), route);
            sweep(&vectors);
            assert_eq!(vectors.owner(0x41), None, "its last use has ended");
        }
    }

    #[test]
    fn guests_find_their_vectors_when_others_have_gone() {
        let vectors = vectors_of(0, 3);
        let routes = [0, 1, 2].map(|guest| vectors.route(GuestId(guest), target(0x41)).unwrap());
        vectors.unroute(GuestId(0), target(0x41), routes[0]);
        vectors.forget(GuestId(0));
        sweep(&vectors);
        for guest in [1, 2] {
            assert_eq!(vectors.route(GuestId(guest), target(0x41)), Ok(routes[usize::from(guest)]));
        }
    }

    #[test]
    fn two_guests_with_the_same_vector_get_two() {
        let vectors = vectors_of(0, 3);
        let routes = [GuestId(0), GuestId(1)].map(|guest| vectors.route(guest, target(0x80)).unwrap());
        assert_ne!(routes[0], routes[1]);
    }

    #[test]
    fn vectors_run_out_and_never_leave_their_range() {
        let vectors = vectors_of(0, 1);
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
    fn a_vector_of_the_same_class_is_next_best_and_a_freed_one_is_found_again() {
        let vectors = vectors_of(0, 3);
        let host = |route| match route {
            Ok(HostRoute::Remapped { vector, .. }) => vector,
            other => panic!("{other:?}"),
        };
        assert_eq!(host(vectors.route(GUEST, target(0x85))), 0x85);
        let route = vectors.route(GuestId(1), target(0x85));
        assert_eq!(host(route), 0x80);
        vectors.unroute(GuestId(1), target(0x85), route.unwrap());
        vectors.forget(GuestId(1));
        sweep(&vectors);
        assert_eq!(host(vectors.route(GuestId(2), target(0x80))), 0x80);
        assert_eq!(host(vectors.route(GUEST, target(0x10))), FIRST, "no vector of that class can be had");
    }

    #[test]
    fn somebody_elses_route_is_not_ended() {
        let vectors = vectors_of(0, 3);
        let route = vectors.route(GUEST, target(0x50)).unwrap();
        vectors.unroute(GuestId(1), target(0x50), route);
        assert_eq!(vectors.used(), 1);
    }

    /// What a processor's vectors are asked for: of these guests' these vectors.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Route(u16, u8),
        Unroute(u16, u8),
        Begin,
        Finish,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..3u16, 0x40..0x44u8).prop_map(|(guest, vector)| Step::Route(guest, vector)),
            3 => (0..3u16, 0x40..0x44u8).prop_map(|(guest, vector)| Step::Unroute(guest, vector)),
            1 => Just(Step::Begin),
            1 => Just(Step::Finish),
        ]
    }

    /// Of a guest's vector: its route, its uses, and whether a sweep has begun since the last one ended.
    type Kept = HashMap<(u16, u8), (HostRoute, u32, bool)>;

    proptest! {
        #[test]
        fn a_vector_changes_hands_only_after_a_sweep_that_began_when_its_last_use_had_ended(
            steps in prop::collection::vec(any_step(), 0..60),
        ) {
            let vectors = vectors_of(0, 3);
            let (mut kept, mut sweeping) = (Kept::new(), false);
            for step in steps {
                match step {
                    Step::Route(guest, vector) => {
                        let route = vectors.route(GuestId(guest), target(vector)).unwrap();
                        let (before, uses, _) = kept.entry((guest, vector)).or_insert((route, 0, false));
                        prop_assert_eq!(*before, route);
                        *uses += 1;
                    }
                    Step::Unroute(guest, vector) => {
                        if let Some((route, uses @ 1.., swept)) = kept.get_mut(&(guest, vector)) {
                            vectors.unroute(GuestId(guest), target(vector), *route);
                            (*uses, *swept) = (*uses - 1, false);
                        }
                    }
                    Step::Begin if !sweeping => {
                        sweeping = vectors.begin_sweep();
                        prop_assert!(sweeping || kept.values().all(|(_, uses, _)| *uses != 0));
                        kept.values_mut().for_each(|(_, uses, swept)| *swept = sweeping && *uses == 0);
                    }
                    Step::Finish if sweeping => {
                        vectors.finish_sweep();
                        kept.retain(|_, (_, uses, swept)| *uses != 0 || !*swept);
                        sweeping = false;
                    }
                    Step::Begin | Step::Finish => {}
                }
                for (&(guest, vector), (route, ..)) in &kept {
                    let HostRoute::Remapped { vector: host, .. } = *route else { unreachable!() };
                    prop_assert_eq!(vectors.owner(host), Some(Owner { guest: GuestId(guest), target: target(vector) }));
                }
                let owned = (0..=255).filter(|&host| vectors.owner(host).is_some()).count();
                prop_assert_eq!(owned, kept.len(), "the others are free");
            }
        }
    }
}
