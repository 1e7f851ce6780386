//! This room's code against the strict model of a unit, which was written from the manual alone.

mod bring_up;
mod dma;
mod faults;
mod interrupts;
mod memory;
mod orders;
mod queue;
mod scalable;

use std::sync::Mutex;

use vtd_model::{InterruptResult, Memory, Stats};

use super::{Config, Fault, Remapper, message};
use crate::{
    addr::Bdf,
    clock::testing::MILLISECONDS,
    memory::{FrameSource, Registers, testing::TestFrames},
};

pub(crate) const DSA: Bdf = Bdf::new(0, 0x1e, 0);
const OTHER: Bdf = Bdf::new(0, 0x1e, 1);

/// A model, and the memory that it shares with the code under test.
pub(crate) struct Bench {
    model: Mutex<vtd_model::Unit>,
    pub(crate) frames: TestFrames,
}

/// The frames in use; what lies elsewhere is no memory.
struct HostMemory<'a>(&'a TestFrames);

impl Memory for HostMemory<'_> {
    fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool {
        let held = self.0.holds(hpa, buf.len());
        if held {
            // SAFETY: memory of a frame in use; nobody writes it meanwhile.
            unsafe { std::ptr::copy_nonoverlapping(hpa as *const u8, buf.as_mut_ptr(), buf.len()) };
        }
        held
    }

    fn write(&mut self, hpa: u64, data: &[u8]) -> bool {
        let held = self.0.holds(hpa, data.len());
        if held {
            // SAFETY: memory of a frame in use; nobody reads it meanwhile.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), hpa as *mut u8, data.len()) };
        }
        held
    }
}

impl Registers for Bench {
    fn read32(&self, offset: usize) -> u32 {
        self.model.lock().unwrap().read(offset as u64, 4) as u32
    }

    fn read64(&self, offset: usize) -> u64 {
        self.model.lock().unwrap().read(offset as u64, 8)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.model.lock().unwrap().write(offset as u64, 4, value.into(), &mut HostMemory(&self.frames));
    }

    fn write64(&self, offset: usize, value: u64) {
        self.model.lock().unwrap().write(offset as u64, 8, value, &mut HostMemory(&self.frames));
    }
}

/// A unit that hangs is given up after a thousand looks.
const CONFIG: Config = Config { entries: 256, wide_destinations: true, register_bytes: 4096, clock: &MILLISECONDS };

/// A unit with everything, where a pointer fits in a physical address.
pub(crate) fn capable() -> vtd_model::Config {
    vtd_model::Config { host_address_width: 52, ..Default::default() }
}

/// Units as real machines have them, where a pointer fits in a physical address.
fn presets() -> [vtd_model::Config; 3] {
    use vtd_model::Config;
    let presets = [Config::sapphire_rapids(), Config::sapphire_rapids_accelerators(), Config::meteor_lake()];
    presets.map(|preset| Config { host_address_width: 52, ..preset })
}

/// A unit with everything, and those of real machines.
fn all() -> Vec<vtd_model::Config> {
    [capable()].into_iter().chain(presets()).collect()
}

impl Bench {
    pub(crate) fn new(config: vtd_model::Config) -> Self {
        Self { model: Mutex::new(vtd_model::Unit::new(config)), frames: TestFrames::default() }
    }

    pub(crate) fn start(&self) -> Remapper<'_, &Self, TestFrames> {
        self.start_with(CONFIG)
    }

    fn start_with(&self, config: Config) -> Remapper<'_, &Self, TestFrames> {
        Remapper::new(self, &self.frames, config).unwrap()
    }

    /// Has the unit answer nothing any more, or go on.
    pub(crate) fn hang(&self, hangs: bool) {
        self.model.lock().unwrap().hang(hangs);
    }

    fn stats(&self) -> Stats {
        self.model.lock().unwrap().stats()
    }

    /// What the device's message for entry `index` comes to.
    fn fire(&self, source: Bdf, index: u16) -> InterruptResult {
        let (address, data) = message(index);
        self.send(source, address, data)
    }

    fn send(&self, source: Bdf, address: u64, data: u32) -> InterruptResult {
        self.model.lock().unwrap().interrupt_request(
            source.requester_id(),
            address,
            data,
            &mut HostMemory(&self.frames),
        )
    }

    /// A frame, its quadwords zero.
    fn page(&self) -> crate::addr::Hpa {
        self.frames.alloc_zeroed(1, 4096).unwrap()
    }

    /// The first quadword at `address`.
    fn quadword(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(HostMemory(&self.frames).read(address, &mut bytes));
        u64::from_le_bytes(bytes)
    }

    /// The manual was kept to.
    fn assert_clean(&self) {
        assert_eq!(self.model.lock().unwrap().violations(), []);
    }
}

/// All recorded faults.
fn faults<R: Registers>(remapper: &Remapper<'_, R, TestFrames>) -> Vec<Fault> {
    let mut found = Vec::new();
    remapper.take_faults(|fault| found.push(fault));
    found
}

/// The vector and destination of a remapped interrupt.
fn remapped(outcome: InterruptResult) -> Option<(u8, u32)> {
    match outcome {
        InterruptResult::Remapped(interrupt) => {
            assert_eq!(
                (interrupt.delivery_mode, interrupt.dest_mode_logical, interrupt.trigger_level),
                (0, false, false)
            );
            Some((interrupt.vector, interrupt.dest))
        }
        _ => None,
    }
}

/// The reason of a blocked interrupt.
fn blocked(outcome: InterruptResult) -> Option<u8> {
    match outcome {
        InterruptResult::Blocked { reason } => reason,
        _ => None,
    }
}
