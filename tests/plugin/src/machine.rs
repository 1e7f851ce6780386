//! The two models wired together: the DSA's requests on the bus go through the remapping unit.

use crate::acpi::{self, Drhd};
use crate::aml;
use crate::ioapic::{IoApic, Message};
use crate::layout::{Bar, Layout};
use crate::odd;
use crate::options::{HOST_ADDRESS_WIDTH, Options};
use dsa_model::{Dsa, Fault, PortalWrite, Upstream};
use std::fmt::Write;
use vtd_model::{Access, InterruptResult, Memory, PageRequest, Requester, Unit};

/// The registers of the remapping units. The last one serves whatever no other serves.
pub(crate) const UNIT_BASES: [u64; 2] = [0xfed9_0000, 0xfeda_0000];
/// The message window.
pub(crate) const MESSAGES: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;
/// The requester ID of message writes whose sender the emulator does not tell: ff:1f.7, which no function here has, so that
/// a source-id check refuses it.
pub(crate) const UNKNOWN_SOURCE: u16 = 0xffff;
/// The I/O APIC's requester ID: f0:1f.0, where firmware of Intel's machines has it. No PCI function is there.
pub(crate) const IOAPIC_SOURCE: u16 = 0xf0f8;

/// The command register.
const COMMAND: u16 = 4;
/// The DSAs' BARs by their registers.
const BARS: [(u16, Bar); 2] = [(0x10, Bar::Registers), (0x18, Bar::Portals)];

/// An interrupt on its way to the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interrupt {
    pub(crate) vector: u8,
    pub(crate) dest: u32,
    pub(crate) logical: bool,
    pub(crate) delivery_mode: u8,
    pub(crate) level: bool,
}

/// What the emulator offers: memory, and the local APICs.
pub(crate) trait Host: Memory {
    /// Delivers an interrupt. Says whether it merged: a local APIC that it is for had a request of its vector already, and none
    /// gained one by it.
    fn deliver(&mut self, interrupt: Interrupt) -> bool;
}

/// What became of the messages of some devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    messages: u64,
    /// Those that the unit delivered by a remapped-format entry.
    remapped: u64,
    /// Those of them that merged in a local APIC: two requests of one vector are one there (SDM vol. 3, 12.8.4).
    merged: u64,
}

/// The models, and what was seen besides.
pub(crate) struct Machine {
    options: Options,
    layout: &'static Layout,
    /// One for everything, or one for [`Layout::first_unit`] and one for everything else.
    units: Vec<Unit>,
    /// In the order of [`Layout::dsas`], as many as there are.
    dsas: Vec<Dsa>,
    ioapic: IoApic,
    /// Of the DSAs' messages.
    sent: Tally,
    /// Of the I/O APIC's.
    wired: Tally,
    /// Of those whose sender the emulator does not tell.
    others: Tally,
}

/// A device's way upstream.
struct Path<'a> {
    source: u16,
    /// That which the source is in the scope of.
    unit: Option<&'a mut Unit>,
    tally: &'a mut Tally,
    host: &'a mut dyn Host,
}

fn is_message(address: u64, data: &[u8]) -> Option<u32> {
    let data = data.try_into().ok().map(u32::from_le_bytes)?;
    (MESSAGES.contains(&address) && address.is_multiple_of(4)).then_some(data)
}

/// Decodes a message in compatibility format; address bits 63:40 extend the destination (VT-d 11.4, the event address
/// registers in extended interrupt mode).
fn compatibility(address: u64, data: u32) -> Interrupt {
    Interrupt {
        vector: data as u8,
        dest: (address >> 12 & 0xff) as u32 | (address >> 32) as u32 & !0xff,
        logical: address >> 2 & 1 != 0,
        delivery_mode: (data >> 8 & 7) as u8,
        level: data >> 15 & 1 != 0,
    }
}

/// What an interrupt request leads to at the local APICs.
fn effect(outcome: InterruptResult) -> Option<Interrupt> {
    match outcome {
        InterruptResult::Remapped(entry) => Some(Interrupt {
            vector: entry.vector,
            dest: entry.dest,
            logical: entry.dest_mode_logical,
            delivery_mode: entry.delivery_mode,
            level: entry.trigger_level,
        }),
        InterruptResult::Posted { notify } => {
            notify.map(|(vector, dest)| Interrupt { vector, dest, logical: false, delivery_mode: 0, level: false })
        }
        InterruptResult::Compatibility(message) => Some(Interrupt {
            vector: message.vector,
            dest: message.dest.into(),
            logical: message.dest_mode_logical,
            delivery_mode: message.delivery_mode,
            level: message.trigger_level,
        }),
        InterruptResult::Blocked { .. } => None,
    }
}

impl Path<'_> {
    fn message(&mut self, address: u64, data: u32) {
        self.tally.messages += 1;
        let outcome = match &mut self.unit {
            Some(unit) => Some(unit.interrupt_request(self.source, address, data, self.host)),
            None => None,
        };
        let remapped = matches!(outcome, Some(InterruptResult::Remapped(_)));
        let merged = outcome
            .map_or_else(|| Some(compatibility(address, data)), effect)
            .is_some_and(|interrupt| self.host.deliver(interrupt));
        self.tally.remapped += u64::from(remapped);
        self.tally.merged += u64::from(remapped && merged);
        self.events();
    }

    /// The unit's own messages go straight to the local APICs (VT-d 7.3).
    fn events(&mut self) {
        while let Some((address, data)) = self.unit.as_mut().and_then(|unit| unit.take_fault_event()) {
            self.host.deliver(compatibility(address, data));
        }
    }

    fn translate(&mut self, pasid: Option<u32>, address: u64, len: usize, access: Access) -> Result<u64, Fault> {
        match &mut self.unit {
            Some(unit) => {
                let translated = unit.dma(Requester { source_id: self.source, pasid }, address, len, access, self.host);
                self.events();
                translated.map_err(|_| Fault)
            }
            None if MESSAGES.contains(&address) => Err(Fault),
            None => Ok(address),
        }
    }
}

impl Upstream for Path<'_> {
    fn read(&mut self, pasid: Option<u32>, address: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let at = self.translate(pasid, address, buf.len(), Access::Read)?;
        if self.host.read(at, buf) { Ok(()) } else { Err(Fault) }
    }

    fn write(&mut self, pasid: Option<u32>, address: u64, data: &[u8]) -> Result<(), Fault> {
        if let Some(message) = is_message(address, data).filter(|_| pasid.is_none()) {
            // A posted write: the device never learns what became of it.
            self.message(address, message);
            return Ok(());
        }
        let at = self.translate(pasid, address, data.len(), Access::Write)?;
        if self.host.write(at, data) { Ok(()) } else { Err(Fault) }
    }

    fn translation(&mut self, pasid: u32, address: u64, write: bool) -> Result<bool, Fault> {
        let requester = Requester { source_id: self.source, pasid: Some(pasid) };
        let access = if write { Access::Write } else { Access::Read };
        let unit = self.unit.as_mut().ok_or(Fault)?;
        let answer = unit.translation_request(requester, address, access, self.host);
        self.events();
        answer.map_err(|_| Fault)
    }

    fn page_request(&mut self, pasid: u32, address: u64, write: bool, group: u16) {
        let requester = Requester { source_id: self.source, pasid: Some(pasid) };
        if let Some(unit) = &mut self.unit {
            unit.page_request(PageRequest { requester, address, write, group }, self.host);
        }
        self.events();
    }
}

impl Machine {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            options: *options,
            layout: options.layout(),
            units: (0..options.units()).map(|_| Unit::new(options.unit())).collect(),
            dsas: (0..options.dsas()).map(|n| Dsa::new(options.dsa(n))).collect(),
            ioapic: IoApic::default(),
            sent: Tally::default(),
            wired: Tally::default(),
            others: Tally::default(),
        }
    }

    /// The platform's reset.
    pub(crate) fn reset(&mut self) {
        self.units.iter_mut().for_each(Unit::reset);
        self.dsas.iter_mut().for_each(Dsa::reset);
        self.ioapic.reset();
    }

    /// The tables that firmware has to show. `ioapic` is the ID that the MADT gives the I/O APIC.
    pub(crate) fn tables(&self, ioapic: Option<u8>) -> Vec<Vec<u8>> {
        let Layout { ecam, last_bus, roots, .. } = *self.layout;
        let mut tables = vec![acpi::mcfg(ecam, last_bus), aml::ssdt(ecam, self.layout.ecam_size(), roots)];
        if self.options.dmar() {
            tables.push(acpi::dmar(&self.scopes(ioapic), HOST_ADDRESS_WIDTH, self.options.opt_out));
        }
        if self.options.odd_firmware {
            odd::spoil(&mut tables);
        }
        tables
    }

    /// Which unit serves what. The DSAs are named one by one: DMA of the emulator's own bus masters (its IDE controller) passes
    /// the units by, so none of them may say that it serves all functions.
    fn scopes(&self, ioapic: Option<u8>) -> Vec<Drhd> {
        let all = self.layout.dsas.iter().copied().take(self.dsas.len());
        let two = self.units.len() > 1;
        let (first, rest): (Vec<_>, Vec<_>) = all.partition(|source| two && self.layout.first_unit.contains(source));
        let apart = two.then_some(Drhd { base: UNIT_BASES[0], ioapic: None, functions: first });
        let ioapic = ioapic.map(|id| (id, IOAPIC_SOURCE));
        let last = Drhd { base: UNIT_BASES[usize::from(two)], ioapic, functions: rest };
        apart.into_iter().chain([last]).collect()
    }

    /// What firmware does to the functions that the BIOS does not know: it places the BARs, and lets the functions master the bus.
    pub(crate) fn set_up_functions(&mut self, host: &mut dyn Host) {
        /// Bus master, parity errors, SERR#, and no memory (`idxd` in the kernel's log: 0144).
        const LEFT_BY_FIRMWARE: u32 = 0x144;
        for n in 0..self.dsas.len() {
            let Some(bars) = self.layout.bars(n) else { continue };
            for (register, base) in BARS.into_iter().map(|(register, _)| register).zip(bars) {
                self.config_write(n, register, 4, base as u32, host);
                self.config_write(n, register + 4, 4, (base >> 32) as u32, host);
            }
            self.config_write(n, COMMAND, 2, LEFT_BY_FIRMWARE, host);
        }
    }

    /// What of which DSA answers at an address of a root bus' memory, and the offset there.
    pub(crate) fn decode(&self, address: u64) -> Option<(usize, Bar, u64)> {
        let decodes = (0..).zip(&self.dsas).filter(|(_, dsa)| dsa.memory_enabled());
        decodes.flat_map(|(n, dsa)| BARS.map(|bar| (n, dsa, bar))).find_map(|(n, dsa, (register, bar))| {
            let [low, high] = [register, register + 4].map(|register| u64::from(dsa.config_read(register, 4)));
            let offset = address.checked_sub(high << 32 | low & !0xf)?;
            (offset < self.options.bar_bytes(bar)).then_some((n, bar, offset))
        })
    }

    /// The DSA with this requester ID.
    pub(crate) fn dsa_at(&self, source: u16) -> Option<usize> {
        self.layout.dsa_at(source, self.dsas.len())
    }

    pub(crate) fn unit_read(&mut self, n: usize, offset: u64, len: usize) -> u64 {
        self.units.get_mut(n).map_or(u64::MAX, |unit| unit.read(offset, len))
    }

    /// A write of a unit's registers. Says whether there is work for the devices now.
    pub(crate) fn unit_write(&mut self, n: usize, offset: u64, len: usize, value: u64, host: &mut dyn Host) -> bool {
        if let Some(unit) = self.units.get_mut(n) {
            unit.write(offset, len, value, host);
            Path { source: UNKNOWN_SOURCE, unit: Some(unit), tally: &mut self.others, host }.events();
        }
        self.hand_over_page_responses()
    }

    /// Takes page responses to the DSAs that they are for. Says whether there were any.
    fn hand_over_page_responses(&mut self) -> bool {
        let responses: Vec<_> =
            self.units.iter_mut().flat_map(|unit| std::iter::from_fn(|| unit.take_page_response())).collect();
        for response in &responses {
            let dsa = self.dsa_at(response.requester.source_id).and_then(|n| self.dsas.get_mut(n));
            if let (Some(dsa), Some(pasid)) = (dsa, response.requester.pasid) {
                dsa.page_response(pasid, response.group, response.code);
            }
        }
        !responses.is_empty()
    }

    /// A DSA with its way upstream.
    fn dsa<'a>(&'a mut self, n: usize, host: &'a mut dyn Host) -> Option<(&'a mut Dsa, Path<'a>)> {
        let source = *self.layout.dsas.get(n)?;
        let unit = unit_of(self.layout, &mut self.units, source);
        Some((self.dsas.get_mut(n)?, Path { source, unit, tally: &mut self.sent, host }))
    }

    pub(crate) fn bar0_read(&self, n: usize, offset: u64, len: usize) -> u64 {
        self.dsas.get(n).map_or(u64::MAX, |dsa| dsa.bar0_read(offset, len))
    }

    /// A write of a register. Says whether there is work for the device now.
    pub(crate) fn bar0_write(&mut self, n: usize, offset: u64, len: usize, value: u64, host: &mut dyn Host) -> bool {
        self.dsa(n, host).is_some_and(|(dsa, mut path)| {
            dsa.bar0_write(offset, len, value, &mut path);
            dsa.waiting()
        })
    }

    /// A store to a portal. Says whether there is work for the engines now.
    pub(crate) fn portal_write(&mut self, n: usize, offset: u64, data: &[u8]) -> bool {
        self.dsas.get_mut(n).is_some_and(|dsa| dsa.portal_write(offset, data) == PortalWrite::Queued)
    }

    /// Lets the engines work. Says whether more is waiting.
    pub(crate) fn work(&mut self, host: &mut dyn Host) -> bool {
        let mut more = false;
        for n in 0..self.dsas.len() {
            more |= self.dsa(n, host).is_some_and(|(dsa, mut path)| dsa.work(&mut path));
        }
        // Some page requests are answered at once.
        more | self.hand_over_page_responses()
    }

    pub(crate) fn config_read(&self, n: usize, offset: u16, len: usize) -> u32 {
        self.dsas.get(n).map_or(u32::MAX, |dsa| dsa.config_read(offset, len))
    }

    pub(crate) fn config_write(&mut self, n: usize, offset: u16, len: usize, value: u32, host: &mut dyn Host) {
        if let Some((dsa, mut path)) = self.dsa(n, host) {
            dsa.config_write(offset, len, value, &mut path);
        }
    }

    /// A write into the message window by someone other than the DSAs and the I/O APIC.
    pub(crate) fn other_message(&mut self, address: u64, data: &[u8], host: &mut dyn Host) {
        if let Some(message) = is_message(address, data) {
            let unit = unit_of(self.layout, &mut self.units, UNKNOWN_SOURCE);
            Path { source: UNKNOWN_SOURCE, unit, tally: &mut self.others, host }.message(address, message);
        } else {
            self.others.messages += 1;
        }
    }

    pub(crate) fn ioapic_read(&self, offset: u64) -> u32 {
        self.ioapic.read(offset)
    }

    pub(crate) fn ioapic_write(&mut self, offset: u64, value: u32, host: &mut dyn Host) {
        self.with_ioapic(host, |ioapic, send| ioapic.write(offset, value, send));
    }

    /// A pin of the I/O APIC is asserted, or no longer.
    pub(crate) fn ioapic_line(&mut self, pin: usize, asserted: bool, host: &mut dyn Host) {
        self.with_ioapic(host, |ioapic, send| ioapic.set_line(pin, asserted, send));
    }

    /// A local APIC broadcasts the end of a level-triggered interrupt.
    pub(crate) fn ioapic_eoi(&mut self, vector: u8, host: &mut dyn Host) {
        self.with_ioapic(host, |ioapic, send| ioapic.end_of_interrupt(vector, send));
    }

    /// Does something to the I/O APIC; what it sends goes through the unit that serves it.
    fn with_ioapic(&mut self, host: &mut dyn Host, action: impl FnOnce(&mut IoApic, &mut dyn FnMut(Message))) {
        let unit = unit_of(self.layout, &mut self.units, IOAPIC_SOURCE);
        let mut path = Path { source: IOAPIC_SOURCE, unit, tally: &mut self.wired, host };
        action(&mut self.ioapic, &mut |message| path.message(message.address, message.data));
    }

    /// The counters, `key=value` a line.
    pub(crate) fn report(&self) -> String {
        let mut text = String::new();
        if !self.dsas.is_empty() {
            text.push_str(&dsa_model::report(&self.dsas.iter().collect::<Vec<_>>()));
        }
        if !self.units.is_empty() {
            unit_report(&self.units, &mut text);
            let merged = [self.sent, self.wired, self.others].iter().map(|tally| tally.merged).sum::<u64>();
            let _ = writeln!(text, "vtd.merged={merged}");
        }
        for (name, tally) in [("ioapic", self.wired), ("other", self.others)] {
            let Tally { messages, remapped, merged } = tally;
            let _ = writeln!(text, "{name}.messages={messages}\n{name}.remapped={remapped}\n{name}.merged={merged}");
        }
        text
    }
}

/// The unit in whose scope a requester is.
fn unit_of<'a>(layout: &Layout, units: &'a mut [Unit], source: u16) -> Option<&'a mut Unit> {
    match units {
        [scoped, _] if layout.first_unit.contains(&source) => Some(scoped),
        [.., rest] => Some(rest),
        [] => None,
    }
}

/// The sums of all units.
fn unit_report(units: &[Unit], text: &mut String) {
    type Counter = fn(&vtd_model::Stats) -> u64;
    let counters: [(&str, Counter); 20] = [
        ("remapped", |stats| stats.remapped),
        ("posted", |stats| stats.posted),
        ("posted_merged", |stats| stats.posted_merged),
        ("notifications", |stats| stats.notifications),
        ("compatibility", |stats| stats.compatibility),
        ("blocked", |stats| stats.blocked),
        ("interrupt_faults", |stats| stats.interrupt_faults),
        ("dma_faults", |stats| stats.dma_faults),
        ("iec_flushes", |stats| stats.iec_flushes),
        ("waits", |stats| stats.waits),
        ("queue_errors", |stats| stats.queue_errors),
        ("scalable_roots", |stats| stats.scalable_roots),
        ("first_stage_walks", |stats| stats.first_stage_walks),
        ("translations_granted", |stats| stats.translations_granted),
        ("translations_denied", |stats| stats.translations_denied),
        ("page_requests", |stats| stats.page_requests),
        ("page_requests_lost", |stats| stats.page_requests_lost),
        ("page_responses", |stats| stats.page_responses),
        ("cache_hits", |stats| stats.cache_hits),
        ("violations", |stats| stats.violations),
    ];
    for (key, counter) in counters {
        let _ = writeln!(text, "vtd.{key}={}", units.iter().map(|unit| counter(&unit.stats())).sum::<u64>());
    }
    for violation in units.iter().flat_map(Unit::violations) {
        let _ = writeln!(text, "vtd.violation={:#x} {:#x} {}", violation.offset, violation.value, violation.rule);
    }
}

#[cfg(test)]
mod tests;
