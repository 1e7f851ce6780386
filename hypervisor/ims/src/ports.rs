//! The ports by which the service reaches the machine. A hypervisor implements these traits; tests fake them.
//!
//! A method that fails with a [`Status`] has no effect, except for three: after a failed [`Remap::flush`] or [`Remap::flush_span`] the state of
//! the cache is unknown, and after a failed [`Store::commit`] the device has not taken the writes. The methods that undo something are infallible.

use core::num::NonZeroU64;

use hcall_abi::{Status, Target};

use super::spec::{GuestId, StoreSpec};
use crate::addr::{Bdf, Gpa, Hpa};

/// An entry of an interrupt remapping table: bits 15:0 are the index in the table. The implementer may number its units in the bits above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIndex(pub u32);

/// A remapping unit, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitNumber(pub u16);

/// The destination of an interrupt on the host: the part of an entry besides its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostRoute {
    /// To a host vector. The hypervisor passes the interrupt on to the guest.
    Remapped {
        /// Host vector.
        vector: u8,
        /// APIC ID of the host processor.
        destination: u32,
    },
    /// Into a posted-interrupt descriptor.
    Posted {
        /// The descriptor, 64-byte aligned.
        descriptor: Hpa,
        /// The guest's vector.
        vector: u8,
    },
}

/// A route in 63 bits, as slots keep it. Bit 63 is set; bit 62 is set for a posted route; bits 53:46 are the vector. Remapped: destination
/// in 31:0. Posted: bits 51:6 of the descriptor's address in 45:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedRoute(NonZeroU64);

const ROUTE_MARK: NonZeroU64 = NonZeroU64::new(1 << 63).unwrap();
const ROUTE_POSTED: u64 = 1 << 62;
const ROUTE_VECTOR: u32 = 46;
const ROUTE_DESCRIPTOR: u64 = (1 << ROUTE_VECTOR) - 1;

impl PackedRoute {
    /// Packs a route.
    #[inline]
    pub fn new(route: HostRoute) -> Self {
        let (vector, bits) = match route {
            HostRoute::Remapped { vector, destination } => (vector, u64::from(destination)),
            HostRoute::Posted { descriptor, vector } => {
                (vector, ROUTE_POSTED | descriptor.as_u64() >> 6 & ROUTE_DESCRIPTOR)
            }
        };
        Self(ROUTE_MARK | bits).or_vector(vector)
    }

    /// The same route with `vector`. The vector of `self` must be 0.
    #[inline]
    pub fn or_vector(self, vector: u8) -> Self {
        Self(self.0 | u64::from(vector) << ROUTE_VECTOR)
    }

    /// The route.
    pub fn get(self) -> HostRoute {
        let bits = self.0.get();
        let vector = (bits >> ROUTE_VECTOR) as u8;
        if bits & ROUTE_POSTED == 0 {
            HostRoute::Remapped { vector, destination: bits as u32 }
        } else {
            HostRoute::Posted { descriptor: Hpa::new((bits & ROUTE_DESCRIPTOR) << 6), vector }
        }
    }
}

/// The message by which a device raises an interrupt. Only the device gets it; a guest reads it in a store in its own memory only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The message's address.
    pub address: u64,
    /// The message's data.
    pub data: u32,
}

/// The interrupt remapping unit (VT-d 5.1, 6.5).
///
/// Each entry that [`bind`](Remap::bind), [`Bind::bind_all`] or [`program`](Remap::program) writes has SVT = 1 and SID = the
/// requester it was reserved for.
pub trait Remap {
    /// The number of [`EntryIndex`] values: each is below this.
    fn capacity(&self) -> u32;

    /// The unit that serves `requester`. Returns [`Status::Unsupported`] if there is none.
    fn unit_of(&self, requester: Bdf) -> Result<UnitNumber, Status>;

    /// Takes a free entry of the unit for messages of `requester` and makes it present with `route`. The cache holds nothing of the entry's
    /// former use. Does not flush. Returns [`Status::NoFreeEntry`] if no entry is free.
    fn bind(&self, unit: UnitNumber, requester: Bdf, route: HostRoute) -> Result<EntryIndex, Status>;

    /// Makes the entry present with `route`, whatever it held before, by one 128-bit write. Does not flush.
    fn program(&self, entry: EntryIndex, route: HostRoute);

    /// Makes the entry not present. Does not flush.
    fn clear(&self, entry: EntryIndex);

    /// Makes the entry not present until its holder programs it again, and has the unit drop messages for it without a fault record. Does
    /// not flush.
    fn block(&self, entry: EntryIndex);

    /// Flushes the entries from the interrupt-entry cache: an index-selective invalidation for each contiguous run, and one wait for all.
    /// Returns [`Status::HardwareError`] if the unit did not complete it; the cache's contents are unknown then. Entries that were released
    /// meanwhile may be among them. Several processors may call this at once; the implementer may let them wait for each other.
    fn flush(&self, entries: impl Iterator<Item = EntryIndex> + Clone) -> Result<(), Status>;

    /// Flushes all entries of a span, which are one unit's, as [`flush`](Remap::flush) does.
    fn flush_span(&self, span: Span) -> Result<(), Status>;

    /// Releases a cleared and flushed entry.
    fn release(&self, entry: EntryIndex);

    /// The remappable message that selects the entry. It stays the same while the entry is reserved.
    fn message(&self, entry: EntryIndex) -> Message;
}

/// A dword of a slot: MSI-X table entries (PCI 7.7.2) and IMS slots are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Field {
    /// Message address, low.
    AddressLo = 0,
    /// Message address, high.
    AddressHi = 1,
    /// Message data.
    Data = 2,
    /// Vector control.
    Control = 3,
}

impl Field {
    /// All fields, in the order in which a slot holds them.
    pub const ALL: [Self; 4] = [Self::AddressLo, Self::AddressHi, Self::Data, Self::Control];

    /// The offset of the field of slot `slot` in its store, in bytes.
    pub const fn offset(self, slot: u16) -> u64 {
        slot as u64 * 16 + self as u64 * 4
    }
}

/// The stores in the device.
pub trait Store {
    /// Writes a dword at [`StoreSpec::base`] + [`Field::offset`].
    fn write(&self, store: &StoreSpec, slot: u16, field: Field, value: u32);

    /// Writes address and data.
    fn write_message(&self, store: &StoreSpec, slot: u16, message: Message);

    /// Writes address and data, and then control.
    #[inline]
    fn write_slot(&self, store: &StoreSpec, slot: u16, message: Message, ctrl: u32) {
        self.write_message(store, slot, message);
        self.write(store, slot, Field::Control, ctrl);
    }

    /// Reads a dword back. Earlier writes have reached the device when this returns. A device that does not answer reads as 0.
    fn read_back(&self, store: &StoreSpec, slot: u16, field: Field) -> u32;

    /// Waits until writes to a slow store have reached the device. Returns [`Status::HardwareError`] if the device does not accept them.
    fn commit(&self, store: &StoreSpec) -> Result<(), Status>;
}

/// The read-only image of a store that the guest sees.
pub trait Shadow {
    /// Writes a dword at [`StoreSpec::shadow`] + [`Field::offset`].
    fn show(&self, store: &StoreSpec, slot: u16, field: Field, value: u32);

    /// Writes a whole slot, its dwords in their order.
    fn show_slot(&self, store: &StoreSpec, slot: u16, dwords: [u32; 4]);
}

/// Host vectors and posted-interrupt descriptors.
pub trait Delivery {
    /// The route to a guest's vector on one of its virtual processors. The same pair gives the same route and counts a use more.
    /// [`Status::NoFreeVector`] when the processor has none left.
    fn route(&self, guest: GuestId, target: Target) -> Result<HostRoute, Status>;

    /// Ends one use of a route. No entry and no cache holds it for this use any more.
    fn unroute(&self, guest: GuestId, target: Target, route: HostRoute);

    /// A route to where nobody minds an interrupt. It has no uses: [`Delivery::unroute`] does nothing with it.
    fn nowhere(&self) -> HostRoute;

    /// Gives one of a guest's virtual processors an interrupt that no device has raised.
    fn deliver(&self, guest: GuestId, target: Target);
}

/// A request to bind a slot, and its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindRequest {
    /// Where the slot's interrupts are to go.
    pub target: Target,
    /// The route and the entry that were bound, or why they were not.
    pub result: Result<BoundEntry, Status>,
}

/// A route and the entry that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundEntry {
    /// The route.
    pub route: PackedRoute,
    /// The entry.
    pub entry: EntryIndex,
}

impl BindRequest {
    /// A request for which nothing is bound yet.
    pub const fn new(target: Target) -> Self {
        Self { target, result: Err(Status::NotMapped) }
    }
}

/// The lowest and the highest index of a set of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The lowest.
    pub lowest: EntryIndex,
    /// The highest.
    pub highest: EntryIndex,
}

impl Span {
    /// The span of no entries.
    pub const NONE: Self = Self { lowest: EntryIndex(u32::MAX), highest: EntryIndex(0) };

    /// Extends the span to `entry`.
    #[inline]
    pub fn add(&mut self, entry: EntryIndex) {
        self.lowest = self.lowest.min(entry);
        self.highest = self.highest.max(entry);
    }

    /// Whether `number` different entries with this span leave no index out.
    pub fn is_run_of(self, number: usize) -> bool {
        self.highest.0.checked_sub(self.lowest.0).is_some_and(|more| more as usize + 1 == number)
    }
}

impl AsMut<Self> for BindRequest {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}

/// Binds routes and entries together, for many slots at a time.
pub trait Bind {
    /// Binds the requests of all `runs`; each run is for one processor. A request takes one use of the route to its target, as
    /// [`Delivery::route`] does, and an entry with that route, as [`Remap::bind`] does. A request that fails holds neither, and the others go
    /// on. Returns how many requests failed, and the span of the other requests' entries.
    fn bind_all<'a, W: AsMut<BindRequest> + 'a>(
        &self,
        guest: GuestId,
        unit: UnitNumber,
        requester: Bdf,
        runs: impl Iterator<Item = &'a mut [W]>,
    ) -> (usize, Span);
}

/// All ports of a machine.
pub trait Ports: Remap + Store + Shadow + Delivery + Bind {}

impl<T: Remap + Store + Shadow + Delivery + Bind> Ports for T {}

/// The guest that makes a call: its memory, and what calls change of its devices. Accesses outside of its memory return
/// [`Status::BadAddress`].
pub trait CallingGuest {
    /// Copies from the guest, each byte once.
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Status>;

    /// Copies to the guest.
    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), Status>;

    /// Has the guest's devices show their message stores, because the guest has called `Enable`.
    fn reveal_stores(&self) {}

    /// Sets the address of the 4 bytes by which the calling virtual processor ends interrupts, or `None` to end this. The service has
    /// checked that they are in the guest's memory.
    fn set_pv_eoi(&self, _at: Option<Gpa>) -> Result<(), Status> {
        Err(Status::Unsupported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_a_run_if_nothing_is_missing_in_between() {
        let span = |entries: &[u32]| {
            let mut span = Span::NONE;
            entries.iter().for_each(|&entry| span.add(EntryIndex(entry)));
            span
        };
        assert!(span(&[7]).is_run_of(1));
        assert!(span(&[7, 5, 6, 8]).is_run_of(4));
        assert!(!span(&[5, 9, 7]).is_run_of(3));
        assert!(!span(&[5, 6, 8]).is_run_of(3));
        assert!(!Span::NONE.is_run_of(0));
        assert!(!Span::NONE.is_run_of(1));
    }
}
