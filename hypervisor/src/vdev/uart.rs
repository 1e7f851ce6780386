//! A 16550A serial port: the guest's console, output only.
//!
//! Enough of it for Linux's `8250` driver to recognise a 16550A (`autoconfig`) and to write by polling. The transmitter is always
//! empty and nothing is ever received, except in loopback mode, which the driver's test needs. It has no interrupt line: a guest
//! has no IOAPIC. IIR shows what would have been raised.

use super::lines::Lines;

/// First of its eight I/O ports.
pub const BASE: u16 = 0x3f8;
/// Last of them.
pub const LAST: u16 = 0x3ff;

const IER_WRITABLE: u8 = 0x0f;
const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMIT_EMPTY: u8 = 1 << 1;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFO_ENABLED: u8 = 0xc0;
const FCR_ENABLE: u8 = 1 << 0;
const LCR_DLAB: u8 = 1 << 7;
const MCR_WRITABLE: u8 = 0x1f;
const MCR_LOOP: u8 = 1 << 4;
const LSR_DATA_READY: u8 = 1 << 0;
/// Holding register and transmitter empty.
const LSR_TRANSMIT_EMPTY: u8 = 0x60;
/// Carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// One serial port.
#[derive(Clone, Debug, Default)]
pub struct Uart {
    divisor: [u8; 2],
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    fifo: bool,
    transmit_interrupt: bool,
    looped: Option<u8>,
    lines: Lines,
}

impl Uart {
    /// A port as after reset.
    pub fn new() -> Self {
        Self::default()
    }

    const fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    /// IN of one byte from register `offset` (0 to 7).
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 if self.dlab() => self.divisor[0],
            0 => self.looped.take().unwrap_or(0),
            1 if self.dlab() => self.divisor[1],
            1 => self.ier,
            2 => self.identify_interrupt(),
            3 => self.lcr,
            4 => self.mcr,
            5 => LSR_TRANSMIT_EMPTY | if self.looped.is_some() { LSR_DATA_READY } else { 0 },
            6 => self.modem_status(),
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// OUT of one byte to register `offset` (0 to 7). A line of output that it completes goes to `sink`.
    pub fn write(&mut self, offset: u16, value: u8, sink: &mut dyn FnMut(&str)) {
        match offset {
            0 if self.dlab() => self.divisor[0] = value,
            0 => self.transmit(value, sink),
            1 if self.dlab() => self.divisor[1] = value,
            1 => self.write_ier(value & IER_WRITABLE),
            2 => self.fifo = value & FCR_ENABLE != 0,
            3 => self.lcr = value,
            4 => self.mcr = value & MCR_WRITABLE,
            7 => self.scratch = value,
            _ => {}
        }
    }

    /// Hands an unfinished line to `sink`: for the guest's end.
    pub fn flush(&mut self, sink: &mut dyn FnMut(&str)) {
        self.lines.flush(sink);
    }

    fn transmit(&mut self, value: u8, sink: &mut dyn FnMut(&str)) {
        if self.mcr & MCR_LOOP != 0 {
            self.looped = Some(value);
        } else {
            self.lines.push(value, sink);
        }
        self.transmit_interrupt = true;
    }

    /// Enabling the transmitter's interrupt raises it at once, because the transmitter is empty.
    fn write_ier(&mut self, value: u8) {
        if value & !self.ier & IER_TRANSMIT_EMPTY != 0 {
            self.transmit_interrupt = true;
        }
        self.ier = value;
    }

    /// Reading IIR acknowledges the transmitter's interrupt if it is the one shown.
    fn identify_interrupt(&mut self) -> u8 {
        let fifo = if self.fifo { IIR_FIFO_ENABLED } else { 0 };
        if self.looped.is_some() && self.ier & IER_RECEIVED != 0 {
            return fifo | IIR_RECEIVED;
        }
        if self.ier & IER_TRANSMIT_EMPTY != 0 && core::mem::take(&mut self.transmit_interrupt) {
            return fifo | IIR_TRANSMIT_EMPTY;
        }
        fifo | IIR_NONE
    }

    /// In loopback mode the outputs DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
    const fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        let out = self.mcr;
        (out & 0x0c) << 4 | (out & 1) << 5 | (out & 2) << 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(uart: &mut Uart, offset: u16, value: u8) {
        uart.write(offset, value, &mut |line| panic!("no output expected: {line}"));
    }

    #[test]
    fn linux_recognises_a_16550a() {
        let mut uart = Uart::new();
        put(&mut uart, 1, 0);
        assert_eq!(uart.read(1), 0);
        put(&mut uart, 1, 0x4f);
        assert_eq!(uart.read(1), 0x0f, "no Xscale bit");
        put(&mut uart, 1, 0);
        put(&mut uart, 4, MCR_LOOP | 0x0a);
        assert_eq!(uart.read(6) & 0xf0, 0x90, "the loopback test of autoconfig");
        put(&mut uart, 4, 0);
        put(&mut uart, 2, FCR_ENABLE);
        assert_eq!(uart.read(2) >> 6, 3, "16550A");
        put(&mut uart, 3, 0xbf);
        assert_ne!(uart.read(2), 0, "no EFR: neither 16650 nor 16750");
        put(&mut uart, 3, 0);
        put(&mut uart, 2, FCR_ENABLE | 0x20);
        assert_eq!(uart.read(2) >> 5, 6, "no 64-byte FIFO");
    }

    #[test]
    fn the_divisor_hides_data_and_interrupt_enable() {
        let mut uart = Uart::new();
        put(&mut uart, 1, 5);
        put(&mut uart, 3, 0x83);
        put(&mut uart, 0, 1);
        put(&mut uart, 1, 2);
        assert_eq!((uart.read(0), uart.read(1)), (1, 2));
        put(&mut uart, 3, 3);
        assert_eq!((uart.read(0), uart.read(1)), (0, 5));
        put(&mut uart, 7, 0x5a);
        assert_eq!(uart.read(7), 0x5a);
    }

    #[test]
    fn output_comes_as_lines_and_the_rest_at_the_end() {
        let (mut uart, mut out) = (Uart::new(), Vec::new());
        for byte in *b"one\ntwo" {
            assert_eq!(uart.read(5), 0x60);
            uart.write(0, byte, &mut |line| out.push(line.to_owned()));
        }
        assert_eq!(out, ["one"]);
        uart.flush(&mut |line| out.push(line.to_owned()));
        uart.flush(&mut |line| out.push(line.to_owned()));
        assert_eq!(out, ["one", "two"]);
    }

    #[test]
    fn the_transmit_interrupt_shows_until_it_is_read() {
        let mut uart = Uart::new();
        assert_eq!(uart.read(2), 1);
        put(&mut uart, 1, 2);
        assert_eq!((uart.read(2), uart.read(2)), (2, 1));
        uart.write(0, b'x', &mut |_| {});
        assert_eq!((uart.read(2), uart.read(2)), (2, 1));
    }

    #[test]
    fn loopback_returns_the_byte_and_prints_nothing() {
        let mut uart = Uart::new();
        put(&mut uart, 4, MCR_LOOP);
        put(&mut uart, 0, 0x41);
        assert_eq!(uart.read(5), 0x61);
        assert_eq!(uart.read(0), 0x41);
        assert_eq!(uart.read(5), 0x60);
    }
}
