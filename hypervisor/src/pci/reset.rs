//! Function level reset: PCI Express Base Specification 6.0, section 6.6.2.

use core::time::Duration;

use super::{
    bar,
    config::{COMMAND, ConfigSpace, set_command},
    function::Function,
};
use crate::{
    addr::Bdf,
    clock::{Clock, Timeout, pause, poll_every},
};

/// Device control of the PCI Express capability, with device status in its upper half (7.5.3.4 and 7.5.3.5).
const DEVICE_CONTROL: u16 = 8;
const INITIATE: u32 = 1 << 15;
const TRANSACTIONS_PENDING: u32 = 1 << 21;

/// The dwords of the header that somebody has set and the reset clears: cache line size, BARs, ROM, interrupt line.
const HEADER: [u16; 9] = [0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x3c];

/// The time limit for the completion of the function's requests. The specification gives none.
const DRAIN: Duration = Duration::from_millis(100);
/// The longest duration of the reset. The function must not be accessed before that (6.6.2).
const RESET: Duration = Duration::from_millis(100);
/// The time that the function may take after that: it has to be ready a second after a reset (6.6.1).
const READY: Duration = Duration::from_secs(1);
/// Between two looks.
const STEP: Duration = Duration::from_millis(1);

/// Resets a function. After that it sends nothing and decodes nothing. The settings of configuration software, above all BARs, are
/// restored, but MSI-X and other capabilities are off. Returns whether the function answers again, after 1.2 seconds by `clock` at most;
/// returns false at once without the capability.
pub fn reset(config: &(impl ConfigSpace + ?Sized), function: &Function, clock: &dyn Clock) -> bool {
    let bdf = function.bdf;
    let Some(express) = function.express.filter(|_| function.resets()) else { return false };
    let control = express.capability + DEVICE_CONTROL;
    set_command(config, bdf, 0);
    let drained = poll_every(clock, DRAIN, STEP, || config.read(bdf, control) & TRANSACTIONS_PENDING == 0);
    if !drained {
        // The specification lets it be reset all the same; what comes back late meets a function that did not ask.
        log::warn!("{bdf}: its requests stay pending before its reset");
    }
    let saved = SavedConfig::initiate(config, function, control);
    pause(clock, RESET);
    poll_every(clock, READY, STEP, || is_ready(config, function)) && saved.restore(config, bdf)
}

/// Whether the function answers. Before that, reads return ones, or a vendor ID that does not exist (2.3.2).
fn is_ready(config: &(impl ConfigSpace + ?Sized), function: &Function) -> bool {
    config.read(function.bdf, 0) as u16 == function.vendor
}

/// The settings of configuration software that the reset clears.
#[derive(Debug)]
struct SavedConfig {
    header: [(u16, u32); HEADER.len()],
    /// The place of device control, and what was in it.
    control: (u16, u32),
}

impl SavedConfig {
    /// Saves the registers and begins the reset. From then on the function decodes and sends nothing.
    ///
    /// BARs are restored to their first values. A guest can make its function lose them (an NVMe subsystem reset does), or answer nothing
    /// while they are read, and a function with another's addresses would answer for that one.
    fn initiate(config: &(impl ConfigSpace + ?Sized), function: &Function, control: u16) -> Self {
        let bdf = function.bdf;
        set_command(config, bdf, 0);
        let read = |at| if is_ready(config, function) { config.read(bdf, at) } else { 0 };
        let header = HEADER.map(|at| (at, bar::dword(&function.bars, at).unwrap_or_else(|| read(at))));
        let kept = read(control) & 0xffff & !INITIATE;
        config.write(bdf, control, kept | INITIATE);
        Self { header, control: (control, kept) }
    }

    /// Writes the saved registers back. Returns whether the command register is zero, as after a reset.
    fn restore(&self, config: &(impl ConfigSpace + ?Sized), bdf: Bdf) -> bool {
        self.header.iter().chain([&self.control]).for_each(|&(at, value)| config.write(bdf, at, value));
        config.read(bdf, COMMAND) as u16 == 0
    }
}

/// The state of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The function must not be accessed yet, or does not answer yet.
    UnderWay,
    /// The function answers again.
    Done,
    /// The function has not answered in time.
    Failed,
}

/// A reset that no processor waits for. The caller polls it by [`Self::look`].
#[derive(Debug)]
pub struct Resetting<'c> {
    saved: SavedConfig,
    clock: &'c dyn Clock,
    /// The time in which the function must not be touched; then the time in which it has to answer.
    quiet: Timeout<'c>,
    ready: Option<Timeout<'c>>,
}

impl<'c> Resetting<'c> {
    /// Begins a reset as [`reset`] does, but without waiting for the completions of the function's requests: the function ignores late
    /// ones, because it has no requests outstanding then. `None` without the capability.
    pub fn begin(config: &(impl ConfigSpace + ?Sized), function: &Function, clock: &'c dyn Clock) -> Option<Self> {
        let express = function.express.filter(|_| function.resets())?;
        let saved = SavedConfig::initiate(config, function, express.capability + DEVICE_CONTROL);
        Some(Self { saved, clock, quiet: Timeout::new(clock, RESET), ready: None })
    }

    /// Polls the reset, without waiting. The result is [`Progress::UnderWay`] for 1.1 seconds at most.
    pub fn look(&mut self, config: &(impl ConfigSpace + ?Sized), function: &Function) -> Progress {
        let ready = match &mut self.ready {
            Some(ready) => ready,
            None if !self.quiet.is_over() => return Progress::UnderWay,
            none => none.insert(Timeout::new(self.clock, READY)),
        };
        let over = ready.is_over();
        if is_ready(config, function) {
            if self.saved.restore(config, function.bdf) { Progress::Done } else { Progress::Failed }
        } else if over {
            Progress::Failed
        } else {
            Progress::UnderWay
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::testing::TestConfig;
    use super::*;
    use crate::clock::testing::Counting;

    const NVME: Bdf = Bdf::new(0, 3, 0);
    const BAR: u32 = 0xfebf_0000;

    /// A function that forgets everything when it is told to, and answers again after so many looks.
    struct TestFunction {
        config: TestConfig,
        resets: Cell<u32>,
        absent: Cell<u32>,
        late: u32,
    }

    impl ConfigSpace for TestFunction {
        fn read(&self, bdf: Bdf, offset: u16) -> u32 {
            if offset == 0 && self.absent.get() > 0 {
                self.absent.set(self.absent.get() - 1);
                return u32::MAX;
            }
            self.config.read(bdf, offset)
        }

        fn buses(&self) -> Vec<super::super::Buses> {
            self.config.buses()
        }

        fn has_extended(&self) -> bool {
            self.config.has_extended()
        }

        fn write(&self, bdf: Bdf, offset: u16, value: u32) {
            if offset == 0x48 && value & INITIATE != 0 {
                assert_eq!(self.config.read(bdf, 4) & 7, 0, "it decodes or sends");
                [4, 0x10, 0x14, 0x48].into_iter().for_each(|at| self.config.write(bdf, at, 0));
                self.resets.set(self.resets.get() + 1);
                self.absent.set(self.late);
            } else {
                self.config.write(bdf, offset, value);
            }
        }
    }

    fn nvme(resets: bool, late: u32) -> (TestFunction, Function) {
        let mut config = TestConfig::default();
        config.function(NVME, 0x0010_1b36, 0x0108_0200);
        config.bar(NVME, 0, BAR, 0x4000);
        config.capability(NVME, 0x40, &[0x0002_0010, u32::from(resets) << 28, 0x2810]);
        config.set(NVME, 4, config.read(NVME, 4) & 0xffff_0000 | 6);
        let function = Function::read(&config, NVME).unwrap();
        (TestFunction { config, resets: Cell::new(0), absent: Cell::new(0), late }, function)
    }

    /// A look takes ten microseconds.
    const fn clock() -> Counting {
        Counting::new(1_000_000, 10)
    }

    fn waited(clock: &Counting) -> Duration {
        Duration::from_micros(clock.now())
    }

    #[test]
    fn after_a_reset_the_function_is_where_it_was_and_neither_decodes_nor_sends() {
        let (config, function) = nvme(true, 3);
        let clock = clock();
        assert!(reset(&config, &function, &clock));
        assert_eq!((config.resets.get(), config.read(NVME, 4) as u16), (1, 0));
        assert_eq!((config.read(NVME, 0x10), config.read(NVME, 0x48)), (BAR, 0x2810));
        assert!((RESET..2 * RESET).contains(&waited(&clock)), "{clock:?}");
    }

    #[test]
    fn a_function_that_does_not_come_back_is_told_of_in_bounded_time() {
        let (config, function) = nvme(true, u32::MAX);
        let clock = clock();
        assert!(!reset(&config, &function, &clock));
        assert!((RESET + READY..DRAIN + RESET + READY).contains(&waited(&clock)), "{clock:?}");
    }

    #[test]
    fn requests_that_stay_pending_do_not_keep_it_from_being_reset() {
        let (mut config, function) = nvme(true, 0);
        config.config.set(NVME, 0x48, TRANSACTIONS_PENDING);
        let clock = clock();
        assert!(reset(&config, &function, &clock));
        assert!((DRAIN + RESET..2 * (DRAIN + RESET)).contains(&waited(&clock)), "{clock:?}");
    }

    /// Looks until it is over. How it ended.
    fn followed(resetting: &mut Resetting, config: &TestFunction, function: &Function) -> Progress {
        loop {
            match resetting.look(config, function) {
                Progress::UnderWay => {}
                end => return end,
            }
        }
    }

    #[test]
    fn a_reset_that_is_looked_at_ends_as_one_that_is_waited_for() {
        let (config, function) = nvme(true, 3);
        let clock = clock();
        let mut resetting = Resetting::begin(&config, &function, &clock).unwrap();
        assert_eq!((config.resets.get(), config.read(NVME, 0x10)), (1, 0));
        assert!(waited(&clock) < RESET / 10, "nobody waits");
        assert_eq!(followed(&mut resetting, &config, &function), Progress::Done);
        assert_eq!((config.read(NVME, 0x10), config.read(NVME, 0x48)), (BAR, 0x2810));
        assert!((RESET..2 * RESET).contains(&waited(&clock)), "{clock:?}");
    }

    #[test]
    fn a_reset_that_is_looked_at_is_given_up_in_bounded_time() {
        let (config, function) = nvme(true, u32::MAX);
        let clock = clock();
        let mut resetting = Resetting::begin(&config, &function, &clock).unwrap();
        assert_eq!(followed(&mut resetting, &config, &function), Progress::Failed);
        assert!((RESET + READY..DRAIN + RESET + READY).contains(&waited(&clock)), "{clock:?}");
        assert!(Resetting::begin(&config, &nvme(false, 0).1, &clock).is_none());
    }

    #[test]
    fn bars_that_a_function_has_lost_are_as_they_were_found() {
        for lost in [0, 0xffff_c000] {
            let (config, function) = nvme(true, 0);
            config.write(NVME, 0x10, lost);
            let clock = clock();
            let mut resetting = Resetting::begin(&config, &function, &clock).unwrap();
            assert_eq!(followed(&mut resetting, &config, &function), Progress::Done);
            assert_eq!(config.read(NVME, 0x10), BAR);
            config.write(NVME, 0x10, lost);
            assert!(reset(&config, &function, &clock));
            assert_eq!(config.read(NVME, 0x10), BAR);
        }
    }

    #[test]
    fn what_a_function_without_answer_reads_as_is_not_kept() {
        let (config, function) = nvme(true, 0);
        config.write(NVME, 0x0c, 0x10);
        config.absent.set(40);
        let clock = clock();
        let mut resetting = Resetting::begin(&config, &function, &clock).unwrap();
        assert_eq!(followed(&mut resetting, &config, &function), Progress::Done);
        assert_eq!((config.read(NVME, 0x0c), config.read(NVME, 0x48)), (0, 0));
    }

    #[test]
    fn a_function_without_the_capability_is_not_touched() {
        let (config, function) = nvme(false, 0);
        let before = config.config.snapshot();
        assert!(!reset(&config, &function, &clock()));
        assert_eq!((config.config.snapshot(), config.resets.get()), (before, 0));
    }
}
