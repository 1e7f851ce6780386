//! A virtual function: found, started, and its vectors raised.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guests::bare::assigned::{Records, says_ims};
use guests::bare::device::DeviceMemory;
use guests::bare::{Guest, apic, config, idle, interrupts, portal, vector};
use guests::dsa::{Completion, Descriptor, Dsa, Error, Portal, Registers, WorkQueue, spec};
use guests::pci::{self, ConfigSpace, Function};
use guests::println;
use guests::tally::Tally;

/// Most vectors of a function.
pub const MOST: u16 = 2048;
/// Descriptors that are under way together: what a work queue holds.
const IN_FLIGHT: u16 = 16;
/// Ticks after which an interrupt is given up, and those for which one that must not come is waited for.
const LIMIT: u64 = 100_000_000;
const PATIENCE: u64 = 200_000;
/// The hypervisor's own interrupts come here: above the devices' vectors, one for each function.
const SIGNAL: u8 = vector::LAST + 1;

/// Counts the devices' interrupts: by function and vector.
pub static COUNTS: Tally<{ 2 * MOST as usize }> = Tally::new();
static RECORDS: Records<{ 2 * MOST as usize * Completion::SIZE as usize }> = Records::new();

/// What went wrong.
static ERRORS: AtomicU32 = AtomicU32::new(0);
/// So many of them are told one by one.
const ERRORS_TOLD: u32 = 20;

/// Tells and counts what went wrong.
pub fn error(what: &str) {
    if ERRORS.fetch_add(1, Relaxed) < ERRORS_TOLD {
        println!("vfunc: error: {what}");
    }
}

/// Counts it as an error unless it is so.
pub fn expect(is: bool, what: &str) {
    if !is {
        error(what);
    }
}

/// How much went wrong.
pub fn errors() -> u32 {
    ERRORS.load(Relaxed)
}

/// A virtual function.
pub struct Vf {
    /// Where it is.
    pub function: Function,
    /// Its registers and commands.
    pub dsa: Dsa<DeviceMemory>,
    /// Its vectors.
    pub vectors: u16,
    /// Interrupts of the hypervisor's own that came.
    pub signals: u32,
    /// Descriptors that named others' interrupts and were refused.
    pub refused: u32,
    /// Physical address of BAR 0.
    pub bar0_address: u64,
    /// Where MSI-X is in configuration space.
    pub msix: u16,
    number: u16,
    bar0: DeviceMemory,
    portal: Portal,
    table: u64,
    pending_bits: u64,
    seen_signals: u32,
}

impl Vf {
    /// Looks at a function, the `number`-th.
    pub fn find(guest: &Guest, function: Function, number: u16) -> Result<Self, &'static str> {
        if says_ims(guest, function).ok_or("no configuration space")? {
            return Err("it says that it has a message store");
        }
        let config = config::Ports;
        let msix = pci::capability(&config, function, pci::CAPABILITY_MSIX).ok_or("no MSI-X")?;
        let [control, table, pending_bits] =
            [0, pci::MSIX_TABLE, pci::MSIX_PENDING_BITS].map(|at| config.read(function, msix + at));
        let vectors = pci::msix_entries(control);
        if (table | pending_bits) & 7 != 0 {
            return Err("its tables are not in BAR 0");
        }
        let (table, pending_bits) = (u64::from(table), u64::from(pending_bits));
        let size = (table + u64::from(vectors) * 16).max(pending_bits + u64::from(vectors).div_ceil(64) * 8);
        let address = pci::bar(&config, function, 0).ok_or("no BAR 0")?;
        // SAFETY: what a BAR names is the device's, and it is as long as its tables need.
        let bar0 = unsafe { DeviceMemory::new(address, size) }.ok_or("BAR 0 is not mapped")?;
        let portal = pci::bar(&config, function, 2).ok_or("no BAR 2")?;
        // SAFETY: the first page of BAR 2 is the first work queue's portal for MSI-X handles; descriptors have our own buffers' addresses.
        let portal = unsafe { portal::at(function, portal) }.ok_or("BAR 2 is not mapped")?;
        let (signals, refused, seen_signals) = (0, 0, 0);
        let dsa = Dsa::new(bar0);
        Ok(Self {
            function,
            dsa,
            vectors,
            signals,
            refused,
            bar0_address: address,
            msix,
            number,
            bar0,
            portal,
            table,
            pending_bits,
            seen_signals,
        })
    }

    /// Starts the device and programs all vectors, as Linux does: masked as a whole first, then entry by entry.
    pub fn start(&mut self) -> Result<(), &'static str> {
        if self.dsa.ims_slots() != 0 {
            return Err("GENCAP tells of a message store");
        }
        self.start_some(self.vectors)
    }

    /// As [`Self::start`], but only so many vectors.
    pub fn start_some(&mut self, vectors: u16) -> Result<(), &'static str> {
        pci::enable(&config::Ports, self.function);
        self.set_msix(true, true);
        for vector in 0..vectors {
            self.program(vector);
        }
        self.set_msix(true, false);
        (0..vectors).for_each(|vector| self.set_mask(vector, false));
        self.restart().map_err(|error| {
            println!("vfunc: {error:?}");
            "it does not start"
        })
    }

    /// Resets the device and enables it.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.dsa.start(&[WorkQueue { index: 0, size: IN_FLIGHT, pasids: false }])
    }

    /// The vector that a table entry leads to.
    pub fn leads_to(&self, entry: u16) -> u8 {
        if entry == 0 { SIGNAL + self.number as u8 } else { vector::of_slot(entry) }
    }

    /// Where an entry is.
    fn entry(&self, entry: u16) -> u64 {
        self.table + u64::from(entry) * 16
    }

    /// The physical address of an entry.
    pub fn entry_address(&self, entry: u16) -> u64 {
        self.bar0_address + self.entry(entry)
    }

    /// Writes an entry's message, in one way or the other.
    pub fn program(&mut self, entry: u16) {
        let (at, data) = (self.entry(entry), u32::from(self.leads_to(entry)));
        let address = apic::message_address(apic::id());
        if entry.is_multiple_of(2) {
            self.bar0.write(at, address);
            self.bar0.write(at + 4, 0);
            self.bar0.write(at + 8, data);
        } else {
            // Vector control is written along, and stays as it is.
            let control = self.bar0.read(at + 12);
            self.bar0.write_u64(at, address.into());
            self.bar0.write_u64(at + 8, u64::from(control) << 32 | u64::from(data));
        }
    }

    /// Sends an entry's interrupts to a processor.
    pub fn send_to(&mut self, entry: u16, apic_id: u32) {
        self.bar0.write(self.entry(entry), apic::message_address(apic_id));
    }

    /// Writes the data of an entry's message alone.
    pub fn write_data(&mut self, entry: u16, data: u32) {
        self.bar0.write(self.entry(entry) + 8, data);
    }

    /// The entry as it reads.
    pub fn read(&self, entry: u16) -> [u32; 4] {
        [0, 4, 8, 12].map(|at| self.bar0.read(self.entry(entry) + at))
    }

    /// Masks an entry, or not.
    pub fn set_mask(&mut self, entry: u16, masked: bool) {
        self.bar0.write(self.entry(entry) + 12, masked.into());
    }

    /// Writes MSI-X control.
    pub fn set_msix(&self, enable: bool, function_mask: bool) {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let old = config::Ports.read(self.function, self.msix) & !(pci::MSIX_ENABLE | pci::MSIX_FUNCTION_MASK);
        let new = old | bit(enable, pci::MSIX_ENABLE) | bit(function_mask, pci::MSIX_FUNCTION_MASK);
        config::Ports.write(self.function, self.msix, new);
    }

    /// Whether an entry is pending.
    pub fn is_pending(&self, entry: u16) -> bool {
        let word = self.bar0.read(self.pending_bits + u64::from(entry) / 32 * 4);
        word >> (entry % 32) & 1 != 0
    }

    const fn name(&self, entry: u16) -> u16 {
        self.number * MOST + entry
    }

    /// What a descriptor says to raise an entry.
    pub fn handle(&mut self, entry: u16) -> u16 {
        self.dsa.request_msix_handle(entry).unwrap_or_else(|why| {
            println!("vfunc: entry {entry}: {why:?}");
            error("no handle");
            0
        })
    }

    /// Submits a descriptor that does nothing and names this handle; its record is `entry`'s.
    pub fn submit(&self, entry: u16, handle: u16) {
        self.submit_with(entry, |record| Descriptor::noop(record, handle));
    }

    /// Submits a descriptor with `entry`'s record.
    pub fn submit_with(&self, entry: u16, descriptor: impl FnOnce(u64) -> Descriptor) {
        RECORDS.clear(self.name(entry).into());
        self.portal.submit(&descriptor(self.record(entry)));
    }

    /// Where `entry`'s record is: memory of the guest's.
    pub fn record(&self, entry: u16) -> u64 {
        RECORDS.address(self.name(entry).into())
    }

    /// Submits any descriptor.
    pub fn submit_raw(&self, descriptor: &Descriptor) {
        self.portal.submit(descriptor);
    }

    /// Waits for the status of what was submitted with `entry`'s record; 0 when none comes.
    pub fn status(&self, entry: u16) -> u8 {
        let record = usize::from(self.name(entry));
        idle::poll_until(LIMIT, || RECORDS.complete(record));
        RECORDS.get(record).status
    }

    /// Whether what was submitted with `entry`'s record is done.
    pub fn is_complete(&self, entry: u16) -> bool {
        RECORDS.complete(usize::from(self.name(entry)))
    }

    /// Raises an entry, whose interrupt must not come, and waits until the descriptor is done.
    pub fn raise_held(&mut self, entry: u16) {
        let before = COUNTS.total() + COUNTS.strays();
        let handle = self.handle(entry);
        self.submit(entry, handle);
        let status = self.status(entry);
        expect(status == spec::STATUS_SUCCESS, "a descriptor failed");
        idle::linger(PATIENCE);
        expect(COUNTS.total() + COUNTS.strays() == before, "an interrupt came that is masked");
    }

    /// Expects the interrupts of these entries from what `cause` does: each once.
    pub fn expect_from(&mut self, entries: &[u16], cause: impl FnOnce(&mut Self)) {
        let total = COUNTS.total() + entries.len() as u32;
        for &entry in entries {
            let free = COUNTS.expect(self.leads_to(entry), self.name(entry));
            expect(free, "two entries with one vector at a time");
        }
        cause(self);
        idle::wait_until(LIMIT, || COUNTS.total() >= total);
        for &entry in entries {
            let missing = COUNTS.forget(self.leads_to(entry)).is_some();
            expect(!missing, "an interrupt did not come");
        }
    }

    /// Raises entries at the same time.
    pub fn fire(&mut self, entries: Range<u16>) {
        let mut names = [0; IN_FLIGHT as usize];
        let count = names.iter_mut().zip(entries).map(|(name, entry)| *name = entry).count();
        let names = &names[..count];
        let mut handles = [0; IN_FLIGHT as usize];
        handles.iter_mut().zip(names).for_each(|(handle, &entry)| *handle = self.handle(entry));
        self.expect_from(names, |vf| names.iter().zip(handles).for_each(|(&entry, handle)| vf.submit(entry, handle)));
        for &entry in names {
            let status = self.status(entry);
            expect(status == spec::STATUS_SUCCESS, "a descriptor failed");
        }
    }

    /// Raises every vector that the device can raise.
    pub fn fire_all(&mut self) {
        for first in (1..self.vectors).step_by(IN_FLIGHT.into()) {
            self.fire(first..self.vectors.min(first + IN_FLIGHT));
        }
        let quiet = (1..self.vectors).filter(|&entry| COUNTS.handled(self.name(entry)) != 1).count();
        expect(quiet == 0, "entries that did not fire once");
    }

    /// Interrupts of the hypervisor's own that came since this was asked last.
    pub fn take_signals(&mut self) -> u32 {
        idle::linger(PATIENCE);
        let count = interrupts::count(self.leads_to(0));
        let new = count - core::mem::replace(&mut self.seen_signals, count);
        self.signals += new;
        new
    }
}
