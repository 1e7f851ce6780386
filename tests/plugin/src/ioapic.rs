//! The machine's I/O APIC: 24 pins, each with an entry that says which message its interrupt is.
//!
//! Registers and pins follow the I/O APIC of Intel's south bridges (82093AA datasheet, 3.2; ICH10 datasheet, 13.5: version 20h with
//! its EOI register). An interrupt leaves as a write to the message window, as on PCI Express; so the remapping unit sees it.

/// Pins.
pub(crate) const PINS: usize = 24;
/// Bytes of its registers that software uses.
pub(crate) const REGISTERS: std::ops::RangeInclusive<u64> = 0xfec0_0000..=0xfec0_0fff;

// Memory-mapped registers.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

// Registers behind the window.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ENTRIES: u8 = 0x10;

/// Version 20h (there is an EOI register), and the greatest entry.
const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;

// An entry's fields.
const DELIVERY_MODE: u64 = 0b111 << 8;
const LOWEST_PRIORITY: u64 = 1 << 8;
const EXTINT: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASK: u64 = 1 << 16;
/// Remappable format (VT-d 5.1.5.1); the handle's low 15 bits lie above, its bit 15 in [`LOGICAL`]'s place.
const REMAPPABLE: u64 = 1 << 48;
/// Delivery status and remote IRR cannot be written.
const WRITABLE: u64 = !(1 << 12 | REMOTE_IRR) & (0xffff_0000_0001_ffff);

/// A write of a dword to the message window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// The message of an entry. Address bits 19:4 are entry bits 63:48 in both formats; bit 2 is entry bit 11. A remappable message without
/// subhandle has no data (VT-d 5.1.2.2).
fn message(entry: u64) -> Message {
    const ASSERT: u64 = 1 << 14;
    let remappable = entry & REMAPPABLE != 0;
    let hint = !remappable && entry & DELIVERY_MODE == LOWEST_PRIORITY;
    Message {
        address: 0xfee0_0000 | entry >> 48 << 4 | u64::from(hint) << 3 | u64::from(entry & LOGICAL != 0) << 2,
        data: if remappable { 0 } else { (entry & (LEVEL | DELIVERY_MODE | 0xff) | ASSERT) as u32 },
    }
}

/// The I/O APIC.
#[derive(Debug)]
pub(crate) struct IoApic {
    id: u32,
    select: u8,
    entries: [u64; PINS],
    /// The pins that are asserted.
    lines: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [MASK; PINS], lines: 0 }
    }
}

impl IoApic {
    /// Back to the reset state. The pins are as the devices hold them.
    pub(crate) fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::default() };
    }

    /// A read of a register: `offset` is that from the first one.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        match (offset & 0xff, self.select) {
            (SELECT, _) => self.select.into(),
            (WINDOW, ID) => self.id,
            (WINDOW, VERSION) => VERSION_VALUE,
            (WINDOW, register) => self.place(register).map_or(0, |(pin, shift)| (self.entries[pin] >> shift) as u32),
            _ => 0,
        }
    }

    /// A write of a register; what leaves by it goes to `send`.
    pub(crate) fn write(&mut self, offset: u64, value: u32, send: &mut dyn FnMut(Message)) {
        match (offset & 0xff, self.select) {
            (SELECT, _) => self.select = value as u8,
            (WINDOW, ID) => self.id = value & 0x0f00_0000,
            (WINDOW, register) => {
                if let Some((pin, shift)) = self.place(register) {
                    self.write_entry(pin, shift, value);
                    self.serve(pin, send);
                }
            }
            (EOI, _) => self.end_of_interrupt(value as u8, send),
            _ => {}
        }
    }

    /// Which entry a register behind the window is of, and which half.
    fn place(&self, register: u8) -> Option<(usize, u32)> {
        let at = usize::from(register.checked_sub(ENTRIES)?);
        (at / 2 < PINS).then_some((at / 2, at as u32 % 2 * 32))
    }

    fn write_entry(&mut self, pin: usize, shift: u32, value: u32) {
        let writable = WRITABLE & 0xffff_ffff << shift;
        let entry = self.entries[pin] & !writable | u64::from(value) << shift & writable;
        // An entry that becomes edge-triggered forgets that it waits for an EOI.
        self.entries[pin] = if entry & LEVEL == 0 { entry & !REMOTE_IRR } else { entry };
    }

    /// A pin is asserted, or no longer. Pins are active high here, whatever the entry's polarity says.
    pub(crate) fn set_line(&mut self, pin: usize, asserted: bool, send: &mut dyn FnMut(Message)) {
        let Some(entry) = self.entries.get(pin).copied() else { return };
        let before = self.lines;
        self.lines = if asserted { before | 1 << pin } else { before & !(1 << pin) };
        let rises = self.lines & !before != 0;
        if entry & LEVEL != 0 {
            self.serve(pin, send);
        } else if rises && deliverable(entry) {
            // An edge at a masked pin is lost.
            send(message(entry));
        }
    }

    /// Sends the interrupt of a level-triggered pin that is asserted and does not wait for an EOI.
    fn serve(&mut self, pin: usize, send: &mut dyn FnMut(Message)) {
        let entry = self.entries[pin];
        let due = entry & (LEVEL | REMOTE_IRR) == LEVEL && self.lines >> pin & 1 != 0;
        if due && deliverable(entry) {
            self.entries[pin] |= REMOTE_IRR;
            send(message(entry));
        }
    }

    /// The end of an interrupt, by a local APIC's broadcast or by the EOI register: of all level-triggered entries with this vector.
    pub(crate) fn end_of_interrupt(&mut self, vector: u8, send: &mut dyn FnMut(Message)) {
        for pin in 0..PINS {
            let entry = self.entries[pin];
            if entry & REMOTE_IRR != 0 && entry as u8 == vector {
                self.entries[pin] &= !REMOTE_IRR;
                self.serve(pin, send);
            }
        }
    }
}

/// ExtINT has no message: the emulator's 8259 reaches the processor by LINT0.
fn deliverable(entry: u64) -> bool {
    entry & MASK == 0 && (entry & REMAPPABLE != 0 || entry & DELIVERY_MODE != EXTINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes an entry, high half first.
    fn program(apic: &mut IoApic, pin: u8, entry: u64) -> Vec<Message> {
        let mut sent = Vec::new();
        for (half, value) in [(1, entry >> 32), (0, entry)] {
            apic.write(SELECT, (0x10 + 2 * pin + half).into(), &mut |_| ());
            apic.write(WINDOW, value as u32, &mut |message| sent.push(message));
        }
        sent
    }

    fn line(apic: &mut IoApic, pin: usize, asserted: bool) -> Vec<Message> {
        let mut sent = Vec::new();
        apic.set_line(pin, asserted, &mut |message| sent.push(message));
        sent
    }

    fn end(apic: &mut IoApic, vector: u8) -> Vec<Message> {
        let mut sent = Vec::new();
        apic.write(EOI, vector.into(), &mut |message| sent.push(message));
        sent
    }

    #[test]
    fn the_version_says_how_many_pins_there_are() {
        let mut apic = IoApic::default();
        apic.write(SELECT, 1, &mut |_| ());
        assert_eq!((apic.read(SELECT), apic.read(WINDOW)), (1, 0x17_0020));
        apic.write(SELECT, 0x3f, &mut |_| ());
        assert_eq!(apic.read(WINDOW), 0, "the last entry's high half");
        apic.write(SELECT, 0x40, &mut |_| ());
        apic.write(WINDOW, !0, &mut |_| ());
        assert_eq!(apic.read(WINDOW), 0, "there is no such entry");
    }

    #[test]
    fn an_edge_is_one_message_and_a_masked_one_is_lost() {
        let mut apic = IoApic::default();
        assert_eq!(line(&mut apic, 4, true), []);
        line(&mut apic, 4, false);
        assert_eq!(program(&mut apic, 4, 3 << 56 | 0x55), []);
        let expected = Message { address: 0xfee0_3000, data: 0x4055 };
        assert_eq!(line(&mut apic, 4, true), [expected]);
        assert_eq!(line(&mut apic, 4, true), [], "no edge");
        line(&mut apic, 4, false);
        assert_eq!(line(&mut apic, 4, true), [expected]);
    }

    #[test]
    fn a_level_is_sent_until_its_eoi_finds_the_pin_low() {
        let mut apic = IoApic::default();
        line(&mut apic, 9, true);
        let expected = Message { address: 0xfee0_0000, data: 0xc061 };
        assert_eq!(program(&mut apic, 9, LEVEL | 0x61), [expected], "it was asserted already");
        assert_eq!(line(&mut apic, 9, true), []);
        assert_eq!(end(&mut apic, 0x62), [], "another vector");
        assert_eq!(end(&mut apic, 0x61), [expected]);
        line(&mut apic, 9, false);
        assert_eq!(end(&mut apic, 0x61), []);
        apic.write(SELECT, 0x10 + 18, &mut |_| ());
        assert_eq!(apic.read(WINDOW), (LEVEL | 0x61) as u32, "remote IRR is clear");
    }

    #[test]
    fn becoming_edge_triggered_clears_remote_irr() {
        let mut apic = IoApic::default();
        program(&mut apic, 9, LEVEL | 0x61);
        line(&mut apic, 9, true);
        apic.write(SELECT, 0x10 + 18, &mut |_| ());
        assert_eq!(apic.read(WINDOW) >> 14 & 1, 1);
        apic.write(WINDOW, 1 << 16 | 0x61, &mut |_| ());
        assert_eq!(apic.read(WINDOW) >> 14 & 1, 0);
    }

    #[test]
    fn a_remappable_entry_is_its_handle() {
        let mut apic = IoApic::default();
        // Handle 0x8003: bits 14:0 above the format bit, bit 15 at 11.
        program(&mut apic, 2, 3 << 49 | REMAPPABLE | 1 << 11 | 0x02);
        let [message] = line(&mut apic, 2, true)[..] else { panic!("one message") };
        assert_eq!(message, Message { address: 0xfee0_0000 | 3 << 5 | 1 << 4 | 1 << 2, data: 0 });
    }

    #[test]
    fn the_lowest_priority_is_a_hint_and_extint_has_no_message() {
        let mut apic = IoApic::default();
        program(&mut apic, 3, 0xff << 56 | LOGICAL | LOWEST_PRIORITY | 0x44);
        assert_eq!(line(&mut apic, 3, true), [Message { address: 0xfeef_f00c, data: 0x4144 }]);
        program(&mut apic, 5, EXTINT);
        assert_eq!(line(&mut apic, 5, true), []);
        assert_eq!(line(&mut apic, PINS, true), [], "there is no such pin");
    }
}
