//! A 16550A serial port: the guest's console.
//!
//! It has what Linux's `8250` driver needs to recognise a 16550A (`autoconfig`), and to write and read by polling. The transmitter is
//! always empty. It has no interrupt line, because a guest has no IOAPIC. IIR shows the interrupt that would be raised, and Linux polls it
//! by a timer for a port without an interrupt (`serial8250_timeout`).

use super::{lines::Lines, receiver::Receiver};

/// First of its eight I/O ports.
pub const BASE: u16 = 0x3f8;
/// Last of them.
pub const LAST: u16 = 0x3ff;

// Its registers, by their offset; the first two are the divisor latch while LCR.DLAB is set.

/// Receiver buffer (read), transmitter holding register (written).
const RBR_THR: u16 = 0;
/// Divisor latch, low and high.
const DLL: u16 = 0;
const DLM: u16 = 1;
const IER: u16 = 1;
/// Interrupt identification (read), FIFO control (written).
const IIR_FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
/// Scratch.
const SCR: u16 = 7;

/// The upper half reads as zeros.
const IER_WRITABLE: u8 = 0x0f;
const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMIT_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
/// The FIFO holds less than its trigger, and no more has come for a while.
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO_ENABLED: u8 = 0xc0;
const LCR_DLAB: u8 = 1 << 7;
const MCR_WRITABLE: u8 = 0x1f;
const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_HOLDING_EMPTY: u8 = 1 << 5;
const LSR_TRANSMITTER_EMPTY: u8 = 1 << 6;
const LSR_ALL_SENT: u8 = LSR_HOLDING_EMPTY | LSR_TRANSMITTER_EMPTY;
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
/// A modem that is there and ready.
const MSR_CONNECTED: u8 = MSR_DCD | MSR_DSR | MSR_CTS;

/// One serial port.
#[derive(Clone, Debug, Default)]
pub struct Uart {
    divisor: [u8; 2],
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    transmit_interrupt: bool,
    receiver: Receiver,
    /// What the last write sent, outside of loopback mode.
    sent: Option<u8>,
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
            DLL if self.dlab() => self.divisor[0],
            DLM if self.dlab() => self.divisor[1],
            RBR_THR => self.receiver.pop(),
            IER => self.ier,
            IIR_FCR => self.identify_interrupt(),
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => self.line_status(),
            MSR => self.modem_status(),
            SCR => self.scratch,
            _ => 0xff,
        }
    }

    /// OUT of one byte to register `offset` (0 to 7). A line of output that it completes goes to `sink`.
    pub fn write(&mut self, offset: u16, value: u8, sink: &mut dyn FnMut(&str)) {
        match offset {
            DLL if self.dlab() => self.divisor[0] = value,
            DLM if self.dlab() => self.divisor[1] = value,
            RBR_THR => self.transmit(value, sink),
            IER => self.write_ier(value & IER_WRITABLE),
            IIR_FCR => self.receiver.control(value),
            LCR => self.lcr = value,
            MCR => self.mcr = value & MCR_WRITABLE,
            SCR => self.scratch = value,
            _ => {}
        }
    }

    /// Hands an unfinished line to `sink`: for the guest's end.
    pub fn flush(&mut self, sink: &mut dyn FnMut(&str)) {
        self.lines.flush(sink);
    }

    /// Takes the byte that the last write sent, for a line that carries each byte as it comes.
    pub fn take_sent(&mut self) -> Option<u8> {
        self.sent.take()
    }

    /// Whether the line may bring a byte: there is room for it, and loopback mode has not cut the line off.
    pub fn can_receive(&self) -> bool {
        self.mcr & MCR_LOOP == 0 && self.receiver.has_room()
    }

    /// A byte comes in over the line.
    pub fn receive(&mut self, byte: u8) {
        self.receiver.push(byte);
    }

    fn transmit(&mut self, value: u8, sink: &mut dyn FnMut(&str)) {
        if self.mcr & MCR_LOOP != 0 {
            self.receiver.push(value);
        } else {
            self.sent = Some(value);
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

    /// Reading the line status clears the overrun.
    fn line_status(&mut self) -> u8 {
        let ready = if self.receiver.is_ready() { LSR_DATA_READY } else { 0 };
        let overrun = if self.receiver.take_overrun() { LSR_OVERRUN } else { 0 };
        LSR_ALL_SENT | ready | overrun
    }

    /// The interrupt of the highest priority. Reading IIR acknowledges the transmitter's if it is the one shown.
    fn identify_interrupt(&mut self) -> u8 {
        let fifo = if self.receiver.has_fifo() { IIR_FIFO_ENABLED } else { 0 };
        if self.receiver.is_overrun() && self.ier & IER_LINE_STATUS != 0 {
            return fifo | IIR_LINE_STATUS;
        }
        if self.receiver.is_ready() && self.ier & IER_RECEIVED != 0 {
            // Nothing says when the last byte came: what does not reach the trigger has waited long enough.
            return fifo | if self.receiver.has_reached_trigger() { IIR_RECEIVED } else { IIR_TIMEOUT };
        }
        if self.ier & IER_TRANSMIT_EMPTY != 0 && core::mem::take(&mut self.transmit_interrupt) {
            return fifo | IIR_TRANSMIT_EMPTY;
        }
        fifo | IIR_NONE
    }

    /// In loopback mode the outputs DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        let comes_back = |output, input| if self.mcr & output != 0 { input } else { 0 };
        comes_back(MCR_DTR, MSR_DSR)
            | comes_back(MCR_RTS, MSR_CTS)
            | comes_back(MCR_OUT1, MSR_RI)
            | comes_back(MCR_OUT2, MSR_DCD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FCR_ENABLE: u8 = 1 << 0;

    fn put(uart: &mut Uart, offset: u16, value: u8) {
        uart.write(offset, value, &mut |line| panic!("no output expected: {line}"));
    }

    #[test]
    fn linux_recognises_a_16550a() {
        let mut uart = Uart::new();
        put(&mut uart, IER, 0);
        assert_eq!(uart.read(IER), 0);
        put(&mut uart, IER, 0x4f);
        assert_eq!(uart.read(IER), 0x0f, "no Xscale bit");
        put(&mut uart, IER, 0);
        put(&mut uart, MCR, MCR_LOOP | 0x0a);
        assert_eq!(uart.read(MSR) & 0xf0, 0x90, "the loopback test of autoconfig");
        put(&mut uart, MCR, 0);
        put(&mut uart, IIR_FCR, FCR_ENABLE);
        assert_eq!(uart.read(IIR_FCR) >> 6, 3, "16550A");
        put(&mut uart, LCR, 0xbf);
        assert_ne!(uart.read(IIR_FCR), 0, "no EFR: neither 16650 nor 16750");
        put(&mut uart, LCR, 0);
        put(&mut uart, IIR_FCR, FCR_ENABLE | 0x20);
        assert_eq!(uart.read(IIR_FCR) >> 5, 6, "no 64-byte FIFO");
    }

    #[test]
    fn the_divisor_hides_data_and_interrupt_enable() {
        let mut uart = Uart::new();
        put(&mut uart, IER, 5);
        put(&mut uart, LCR, 0x83);
        put(&mut uart, DLL, 1);
        put(&mut uart, DLM, 2);
        assert_eq!((uart.read(DLL), uart.read(DLM)), (1, 2));
        put(&mut uart, LCR, 3);
        assert_eq!((uart.read(RBR_THR), uart.read(IER)), (0, 5));
        put(&mut uart, SCR, 0x5a);
        assert_eq!(uart.read(SCR), 0x5a);
    }

    #[test]
    fn output_comes_as_lines_and_the_rest_at_the_end() {
        let (mut uart, mut out) = (Uart::new(), Vec::new());
        for byte in *b"one\ntwo" {
            assert_eq!(uart.read(LSR), 0x60);
            uart.write(RBR_THR, byte, &mut |line| out.push(line.to_owned()));
        }
        assert_eq!(out, ["one"]);
        uart.flush(&mut |line| out.push(line.to_owned()));
        uart.flush(&mut |line| out.push(line.to_owned()));
        assert_eq!(out, ["one", "two"]);
    }

    #[test]
    fn the_transmit_interrupt_shows_until_it_is_read() {
        let mut uart = Uart::new();
        assert_eq!(uart.read(IIR_FCR), 1);
        put(&mut uart, IER, IER_TRANSMIT_EMPTY);
        assert_eq!((uart.read(IIR_FCR), uart.read(IIR_FCR)), (2, 1));
        uart.write(RBR_THR, b'x', &mut |_| {});
        assert_eq!((uart.read(IIR_FCR), uart.read(IIR_FCR)), (2, 1));
    }

    #[test]
    fn loopback_returns_the_byte_and_prints_nothing() {
        let mut uart = Uart::new();
        put(&mut uart, MCR, MCR_LOOP);
        put(&mut uart, RBR_THR, 0x41);
        assert_eq!(uart.read(LSR), 0x61);
        assert_eq!(uart.read(RBR_THR), 0x41);
        assert_eq!(uart.read(LSR), 0x60);
    }

    #[test]
    fn what_comes_in_is_read_in_its_order() {
        let mut uart = Uart::new();
        put(&mut uart, IIR_FCR, FCR_ENABLE);
        b"hi".iter().for_each(|byte| uart.receive(*byte));
        assert_eq!((uart.read(LSR), uart.read(RBR_THR)), (0x61, b'h'));
        assert_eq!((uart.read(LSR), uart.read(RBR_THR)), (0x61, b'i'));
        assert_eq!((uart.read(LSR), uart.read(RBR_THR)), (0x60, 0));
    }

    #[test]
    fn a_guest_that_does_not_read_makes_the_line_wait() {
        let mut uart = Uart::new();
        assert!(uart.can_receive());
        uart.receive(1);
        assert!(!uart.can_receive(), "one byte without the FIFO");
        put(&mut uart, IIR_FCR, FCR_ENABLE);
        let mut taken = 0;
        while uart.can_receive() && taken < 100 {
            uart.receive(taken);
            taken += 1;
        }
        assert_eq!(taken, 16);
        uart.read(RBR_THR);
        assert!(uart.can_receive());
        put(&mut uart, MCR, MCR_LOOP);
        assert!(!uart.can_receive(), "the line is cut off");
    }

    #[test]
    fn a_received_byte_shows_as_an_interrupt_until_it_is_read() {
        let mut uart = Uart::new();
        put(&mut uart, IIR_FCR, FCR_ENABLE | 2 << 6);
        uart.receive(b'x');
        assert_eq!(uart.read(IIR_FCR), 0xc1, "not enabled");
        put(&mut uart, IER, IER_RECEIVED | IER_TRANSMIT_EMPTY);
        assert_eq!((uart.read(IIR_FCR), uart.read(IIR_FCR)), (0xcc, 0xcc), "less than the trigger");
        (1..8).for_each(|byte| uart.receive(byte));
        assert_eq!(uart.read(IIR_FCR), 0xc4);
        for _ in 0..8 {
            uart.read(RBR_THR);
        }
        assert_eq!((uart.read(IIR_FCR), uart.read(IIR_FCR)), (0xc2, 0xc1), "the transmitter's comes after it");
    }

    #[test]
    fn an_overrun_shows_in_the_line_status_once() {
        let mut uart = Uart::new();
        put(&mut uart, MCR, MCR_LOOP);
        put(&mut uart, IER, IER_LINE_STATUS | IER_RECEIVED);
        put(&mut uart, RBR_THR, 1);
        assert_eq!(uart.read(IIR_FCR), IIR_RECEIVED);
        put(&mut uart, RBR_THR, 2);
        assert_eq!(uart.read(IIR_FCR), IIR_LINE_STATUS);
        assert_eq!((uart.read(LSR), uart.read(LSR)), (0x63, 0x61));
        assert_eq!(uart.read(RBR_THR), 2);
    }

    #[test]
    fn each_byte_that_is_sent_can_be_had_as_it_is() {
        let mut uart = Uart::new();
        uart.write(RBR_THR, 0x1b, &mut |_| {});
        assert_eq!((uart.take_sent(), uart.take_sent()), (Some(0x1b), None));
        put(&mut uart, MCR, MCR_LOOP);
        put(&mut uart, RBR_THR, b'x');
        assert_eq!(uart.take_sent(), None, "in loopback mode nothing leaves");
        put(&mut uart, LCR, LCR_DLAB);
        put(&mut uart, DLL, 1);
        assert_eq!(uart.take_sent(), None, "the divisor is not sent");
    }
}
