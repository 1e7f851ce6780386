//! A guest's chipset: serial port, CMOS clock and PCI bus. All its virtual processors share it behind one lock.

use crate::{
    addr::Bdf,
    console::{self, terminal},
    cpu,
    exits::PortWrite,
    guest::options::Options,
    machine::wall_clock::WallClock,
    vdev::{
        pci::{self, VirtualBus},
        ports::{Effect, Ports},
        quota::{self, Fate, Quota},
        rtc::Rtc,
        uart::{self, Uart},
    },
};

/// The beginning of a console line after which the guest's VM exits so far are reported, if its options ask for that.
const MARK: &str = "@mark";

/// The devices behind a guest's ports.
pub struct Chipset {
    /// The guest's PCI bus.
    pub bus: VirtualBus,
    uart: Uart,
    rtc: Rtc,
    clock: WallClock,
    quota: Quota,
    marks: bool,
    /// Whether the guest's serial port is the machine's terminal.
    has_terminal: bool,
}

/// The effects of a port write that are carried out without the chipset's lock.
pub struct Written {
    /// The result for the guest.
    pub outcome: PortWrite,
    /// A write to a function's configuration space.
    pub pci: Option<(Bdf, pci::Effect)>,
    /// Whether the guest's VM exits so far are to be reported.
    pub mark: bool,
}

impl Chipset {
    /// A chipset with the guest's bus, and the clock that the guest's clock follows.
    pub fn new(bus: VirtualBus, options: &Options, clock: WallClock) -> Self {
        let (marks, has_terminal) = (options.marks, options.console);
        Self { bus, uart: Uart::new(), rtc: Rtc::new(), clock, quota: Quota::default(), marks, has_terminal }
    }

    /// Handles IN. The guest polls its serial port, which has no interrupt, so input is fetched at each poll.
    pub fn read(&mut self, port: u16, width: u8) -> u32 {
        if self.has_terminal && (uart::BASE..=uart::LAST).contains(&port) {
            while self.uart.can_receive()
                && let Some(byte) = terminal::receive()
            {
                self.uart.receive(byte);
            }
        }
        let Self { bus, uart, rtc, clock, .. } = self;
        Ports { uart, bus, rtc, now: &|| clock.at(cpu::tsc()) }.read(port, width)
    }

    /// Handles OUT, by the guest named `name`.
    pub fn write(&mut self, name: &str, port: u16, width: u8, value: u32) -> Written {
        let Self { bus, uart, rtc, clock, quota, marks, has_terminal } = self;
        let mut written = Written { outcome: PortWrite::Done, pci: None, mark: false };
        // A guest that writes faster than the console's line takes it waits by itself: neither the processor nor a lock does.
        if port == uart::BASE && (quota.has_room() && !console::has_room() || *has_terminal && !terminal::has_room()) {
            written.outcome = PortWrite::NoRoom;
            return written;
        }
        let mut mark = false;
        let now = || clock.at(cpu::tsc());
        let effect = Ports { uart, bus, rtc, now: &now }.write(port, width, value, &mut |line| {
            mark |= show(name, quota, line) && *marks && line.starts_with(MARK);
        });
        written.mark = mark;
        if *has_terminal && let Some(byte) = uart.take_sent() {
            terminal::send(byte);
        }
        match effect {
            Effect::None => {}
            Effect::Exit(code) => written.outcome = PortWrite::Exit(code),
            Effect::Reset => written.outcome = PortWrite::Reset,
            Effect::Pci(function, effect) => written.pci = Some((function, effect)),
        }
        written
    }

    /// Shows the rest of an unfinished line, at the end of the guest named `name`.
    pub fn flush(&mut self, name: &str) {
        let Self { uart, quota, .. } = self;
        uart.flush(&mut |line| {
            show(name, quota, line);
        });
    }
}

/// Shows a line of a guest's console, unless the guest has written too many. Returns whether it is shown.
fn show(name: &str, quota: &mut Quota, line: &str) -> bool {
    let fate = quota.take();
    match fate {
        Fate::Shown => console::line(format_args!("[{name}] {line}")),
        Fate::FirstHidden => log::warn!("guest {name} has written {} lines; no more are shown", quota::LINES),
        Fate::Hidden => {}
    }
    fate == Fate::Shown
}
