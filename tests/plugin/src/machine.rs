//! The two models wired together: what the DSA does on the bus goes through the remapping unit.

use crate::options::Options;
use dsa_model::{Dsa, Fault, PortalWrite, Upstream};
use std::fmt::Write;
use vtd_model::{Access, Memory, Outcome, Requester, Unit};

/// The registers of the remapping units: the one that covers everything is the last.
pub(crate) const UNIT_BASES: [u64; 2] = [0xfed9_0000, 0xfeda_0000];
/// The message window.
pub(crate) const MESSAGES: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;
/// The ECAM window, bus 0.
pub(crate) const ECAM: std::ops::RangeInclusive<u64> = 0xe800_0000..=0xe80f_ffff;
/// The DSAs' device and function numbers: 00:1e.0 and 00:1f.0, then 00:1c.0 and 00:1d.0 where there are four. On bus 0 that is
/// the requester ID, too.
pub(crate) const DSA_FUNCTIONS: [u8; 4] = [0x1e << 3, 0x1f << 3, 0x1c << 3, 0x1d << 3];
/// The requester ID of message writes whose sender the emulator does not tell: ff:1f.7, which no function here has, so that
/// a source-id check refuses it.
pub(crate) const UNKNOWN_SOURCE: u16 = 0xffff;
/// Physical addresses of the emulated processors are this wide.
const HOST_ADDRESS_WIDTH: u32 = 40;

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
    /// Delivers an interrupt.
    fn deliver(&mut self, interrupt: Interrupt);
}

/// The models, and what was seen besides.
pub(crate) struct Machine {
    /// One for everything, or one for the first DSA and one for everything else.
    units: Vec<Unit>,
    /// In the order of [`DSA_FUNCTIONS`], as many as there are.
    dsas: Vec<Dsa>,
    other_messages: u64,
}

/// A DSA's way upstream.
struct Path<'a> {
    source: u16,
    /// That which the source is in the scope of.
    unit: Option<&'a mut Unit>,
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
fn effect(outcome: Outcome) -> Option<Interrupt> {
    match outcome {
        Outcome::Remapped(entry) => Some(Interrupt {
            vector: entry.vector,
            dest: entry.dest,
            logical: entry.dest_mode_logical,
            delivery_mode: entry.delivery_mode,
            level: entry.trigger_level,
        }),
        Outcome::Posted { notify } => {
            notify.map(|(vector, dest)| Interrupt { vector, dest, logical: false, delivery_mode: 0, level: false })
        }
        Outcome::Compatibility(message) => Some(Interrupt {
            vector: message.vector,
            dest: message.dest.into(),
            logical: message.dest_mode_logical,
            delivery_mode: message.delivery_mode,
            level: message.trigger_level,
        }),
        Outcome::Blocked { .. } => None,
    }
}

impl Path<'_> {
    fn message(&mut self, source: u16, address: u64, data: u32) {
        let interrupt = match &mut self.unit {
            Some(unit) => effect(unit.interrupt_request(source, address, data, self.host)),
            None => Some(compatibility(address, data)),
        };
        if let Some(interrupt) = interrupt {
            self.host.deliver(interrupt);
        }
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
            self.message(self.source, address, message);
            return Ok(());
        }
        let at = self.translate(pasid, address, data.len(), Access::Write)?;
        if self.host.write(at, data) { Ok(()) } else { Err(Fault) }
    }
}

impl Machine {
    pub(crate) fn new(options: &Options) -> Self {
        let config = vtd_model::Config {
            host_address_width: HOST_ADDRESS_WIDTH,
            scalable_mode: options.scalable(),
            ..Default::default()
        };
        Self {
            units: (0..options.units()).map(|_| Unit::new(config.clone())).collect(),
            dsas: (0..options.dsas()).map(|n| Dsa::new(options.dsa(n))).collect(),
            other_messages: 0,
        }
    }

    /// The platform's reset.
    pub(crate) fn reset(&mut self) {
        self.units.iter_mut().for_each(Unit::reset);
        self.dsas.iter_mut().for_each(Dsa::reset);
    }

    /// The tables that firmware has to show.
    pub(crate) fn tables(&self, options: &Options) -> Vec<Vec<u8>> {
        let mut tables = vec![crate::acpi::mcfg(*ECAM.start())];
        if options.dmar() {
            let scoped = (self.units.len() > 1).then_some(DSA_FUNCTIONS[0]);
            tables.push(crate::acpi::dmar(&UNIT_BASES[..self.units.len()], scoped, HOST_ADDRESS_WIDTH));
        }
        tables
    }

    pub(crate) fn unit_read(&mut self, n: usize, offset: u64, len: usize) -> u64 {
        self.units.get_mut(n).map_or(u64::MAX, |unit| unit.read(offset, len))
    }

    pub(crate) fn unit_write(&mut self, n: usize, offset: u64, len: usize, value: u64, host: &mut dyn Host) {
        if let Some(unit) = self.units.get_mut(n) {
            unit.write(offset, len, value, host);
            Path { source: UNKNOWN_SOURCE, unit: Some(unit), host }.events();
        }
    }

    /// A DSA with its way upstream.
    fn dsa<'a>(&'a mut self, n: usize, host: &'a mut dyn Host) -> Option<(&'a mut Dsa, Path<'a>)> {
        let source = DSA_FUNCTIONS.get(n).copied()?.into();
        Some((self.dsas.get_mut(n)?, Path { source, unit: unit_of(&mut self.units, source), host }))
    }

    pub(crate) fn bar0_read(&self, n: usize, offset: u64, len: usize) -> u64 {
        self.dsas.get(n).map_or(u64::MAX, |dsa| dsa.bar0_read(offset, len))
    }

    pub(crate) fn bar0_write(&mut self, n: usize, offset: u64, len: usize, value: u64, host: &mut dyn Host) {
        if let Some((dsa, mut path)) = self.dsa(n, host) {
            dsa.bar0_write(offset, len, value, &mut path);
        }
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
        more
    }

    pub(crate) fn config_read(&self, n: usize, offset: u16, len: usize) -> u32 {
        self.dsas.get(n).map_or(u32::MAX, |dsa| dsa.config_read(offset, len))
    }

    pub(crate) fn config_write(&mut self, n: usize, offset: u16, len: usize, value: u32, host: &mut dyn Host) {
        if let Some((dsa, mut path)) = self.dsa(n, host) {
            dsa.config_write(offset, len, value, &mut path);
        }
    }

    /// A write into the message window by someone other than the DSA.
    pub(crate) fn other_message(&mut self, address: u64, data: &[u8], host: &mut dyn Host) {
        self.other_messages += 1;
        if let Some(message) = is_message(address, data) {
            let unit = unit_of(&mut self.units, UNKNOWN_SOURCE);
            Path { source: UNKNOWN_SOURCE, unit, host }.message(UNKNOWN_SOURCE, address, message);
        }
    }

    /// The counters, `key=value` a line.
    pub(crate) fn report(&self) -> String {
        let mut text = String::new();
        if !self.dsas.is_empty() {
            text.push_str(&dsa_model::report(&self.dsas.iter().collect::<Vec<_>>()));
        }
        if !self.units.is_empty() {
            unit_report(&self.units, &mut text);
        }
        let _ = writeln!(text, "other.messages={}", self.other_messages);
        text
    }
}

/// The unit in whose scope a requester is.
fn unit_of(units: &mut [Unit], source: u16) -> Option<&mut Unit> {
    match units {
        [scoped, _] if source == DSA_FUNCTIONS[0].into() => Some(scoped),
        [.., rest] => Some(rest),
        [] => None,
    }
}

/// The sums of all units.
fn unit_report(units: &[Unit], text: &mut String) {
    type Counter = fn(&vtd_model::Stats) -> u64;
    let counters: [(&str, Counter); 11] = [
        ("remapped", |stats| stats.remapped),
        ("posted", |stats| stats.posted),
        ("notifications", |stats| stats.notifications),
        ("compatibility", |stats| stats.compatibility),
        ("blocked", |stats| stats.blocked),
        ("interrupt_faults", |stats| stats.interrupt_faults),
        ("dma_faults", |stats| stats.dma_faults),
        ("iec_flushes", |stats| stats.iec_flushes),
        ("waits", |stats| stats.waits),
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
