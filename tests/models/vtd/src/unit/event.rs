//! The messages that the unit itself sends: fault event (VT-d 7.3, FECTL and following), invalidation completion
//! event (VT-d 6.5.2.8, IECTL and following), and page request event (VT-d 7.6, PECTL and following). Each has a mask, a pending bit, and a message.

use crate::Unit;
use crate::spec::regs::{self, event};

/// One event's registers.
#[derive(Debug)]
pub(crate) struct Event {
    masked: bool,
    pending: bool,
    data: u32,
    address: u32,
    upper_address: u32,
}

impl Default for Event {
    fn default() -> Self {
        Event { masked: true, pending: false, data: 0, address: 0, upper_address: 0 }
    }
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fault,
    Completion,
    PageRequest,
}

impl Event {
    pub(crate) fn control(&self) -> u32 {
        let mask = if self.masked { event::IM } else { 0 };
        let pending = if self.pending { event::IP } else { 0 };
        mask | pending
    }

    /// Reads the register `index` words behind the control register.
    pub(crate) fn read(&self, index: u64) -> u32 {
        match index {
            0 => self.control(),
            1 => self.data,
            2 => self.address,
            _ => self.upper_address,
        }
    }

    fn message(&self) -> (u64, u32) {
        let address = u64::from(self.upper_address) << 32 | u64::from(self.address);
        (address, self.data)
    }
}

impl Unit {
    fn event(&mut self, kind: Kind) -> &mut Event {
        match kind {
            Kind::Fault => &mut self.fault_event,
            Kind::Completion => &mut self.completion_event,
            Kind::PageRequest => &mut self.page_request_event,
        }
    }

    /// Writes the register `index` words behind the control register. Only 16 data bits are implemented; the upper address
    /// exists in extended interrupt mode only.
    pub(crate) fn write_event(&mut self, kind: Kind, index: u64, value: u32) {
        let extended = self.config.extended_interrupt_mode;
        let event = self.event(kind);
        match index {
            0 => event.masked = value & event::IM != 0,
            1 => event.data = value & 0xffff,
            2 => event.address = value & !3,
            _ if extended => event.upper_address = value,
            _ => {}
        }
        self.send_event(kind);
    }

    /// The event's condition has newly come about.
    pub(crate) fn raise_event(&mut self, kind: Kind) {
        self.event(kind).pending = true;
        self.send_event(kind);
    }

    /// Software has serviced all that the event stands for: a message held back by the mask is no longer due.
    pub(crate) fn withdraw_event(&mut self, kind: Kind) {
        self.event(kind).pending = false;
    }

    fn send_event(&mut self, kind: Kind) {
        let event = self.event(kind);
        if event.masked || !event.pending {
            return;
        }
        event.pending = false;
        let (address, data) = event.message();
        if address as u32 >> 20 != 0xfee {
            let rule = "an unmasked event's address lies in 0xFEEx_xxxx (VT-d 5.1.6)";
            self.violation(regs::FEADDR, address, rule);
        }
        self.stats.events += 1;
        self.messages.push_back((address, data));
    }
}
