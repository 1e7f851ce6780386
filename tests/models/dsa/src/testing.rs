//! A machine around the device for tests: memory, messages, and the steps that software takes.

use crate::operation::DmaMemory;
use crate::spec::opcode;
use crate::{Config, Dsa, Fault, Upstream};
use std::collections::{HashMap, HashSet};

/// Memory that is zero until written, and the messages that came.
#[derive(Default)]
pub(crate) struct Machine {
    pages: HashMap<u64, Vec<u8>>,
    refused: HashSet<u64>,
    messages: Vec<(u64, u32)>,
    last_write: u64,
    /// Page requests: PASID, address, for a write, group.
    asked: Vec<(u32, u64, bool, u16)>,
    /// Of each request that was not refused: reads first.
    pasids: [HashSet<Option<u32>>; 2],
}

impl Upstream for Machine {
    fn read(&mut self, pasid: Option<u32>, address: u64, buf: &mut [u8]) -> Result<(), Fault> {
        assert!(address % 4096 + buf.len() as u64 <= 4096, "a piece crosses a page");
        if self.refused.contains(&(address >> 12)) {
            return Err(Fault);
        }
        self.pasids[0].insert(pasid);
        buf.copy_from_slice(&self.get(address, buf.len()));
        Ok(())
    }

    fn write(&mut self, pasid: Option<u32>, address: u64, data: &[u8]) -> Result<(), Fault> {
        assert!(address % 4096 + data.len() as u64 <= 4096, "a piece crosses a page");
        if self.refused.contains(&(address >> 12)) {
            return Err(Fault);
        }
        self.pasids[1].insert(pasid);
        self.last_write = address;
        match data.try_into() {
            Ok(data) if address >> 20 == 0xfee => self.messages.push((address, u32::from_le_bytes(data))),
            _ => self.put(address, data),
        }
        Ok(())
    }

    fn translation(&mut self, _pasid: u32, address: u64, _write: bool) -> Result<bool, Fault> {
        Ok(!self.refused.contains(&(address >> 12)))
    }

    fn page_request(&mut self, pasid: u32, address: u64, write: bool, group: u16) {
        self.asked.push((pasid, address, write, group));
    }
}

impl Machine {
    /// The page requests since the last call.
    pub(crate) fn take_asked(&mut self) -> Vec<(u32, u64, bool, u16)> {
        std::mem::take(&mut self.asked)
    }

    /// A page that was refused is there from now on.
    pub(crate) fn bring_page(&mut self, address: u64) {
        self.refused.remove(&(address >> 12));
    }
}

impl DmaMemory for Machine {
    fn load(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.read(None, address, buf)
    }

    fn store(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.write(None, address, data)
    }
}

impl Machine {
    /// The PASIDs of all reads and of all writes since the last call.
    pub(crate) fn take_pasids(&mut self) -> [HashSet<Option<u32>>; 2] {
        std::mem::take(&mut self.pasids)
    }

    pub(crate) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let byte = |at: u64| self.pages.get(&(at >> 12)).map_or(0, |page| page[(at % 4096) as usize]);
        (0..len as u64).map(|n| byte(address.wrapping_add(n))).collect()
    }

    pub(crate) fn put(&mut self, address: u64, data: &[u8]) {
        for (n, byte) in data.iter().enumerate() {
            let at = address.wrapping_add(n as u64);
            self.pages.entry(at >> 12).or_insert_with(|| vec![0; 4096])[(at % 4096) as usize] = *byte;
        }
    }

    pub(crate) fn refuse_page(&mut self, address: u64) {
        self.refused.insert(address >> 12);
    }

    pub(crate) fn messages(&self) -> Vec<(u64, u32)> {
        self.messages.clone()
    }

    pub(crate) fn last_write(&self) -> u64 {
        self.last_write
    }

    /// Gives a command, lets it end, and returns CMDSTS.
    pub(crate) fn command(&mut self, dsa: &mut Dsa, number: u32, operand: u32) -> u64 {
        dsa.bar0_write(0xa0, 4, u64::from(number << 20 | operand), self);
        for _ in 0..1000 {
            if dsa.bar0_read(0xa8, 4) >> 31 == 0 {
                break;
            }
            dsa.work(self);
        }
        dsa.bar0_read(0xa8, 4)
    }

    /// Group 0 with work queue 0 (dedicated, 16 entries, transfers up to 64 KiB) and engine 0.
    pub(crate) fn configure(&mut self, dsa: &mut Dsa) {
        dsa.bar0_write(0x1000, 8, 1, self);
        dsa.bar0_write(0x1020, 8, 1, self);
        dsa.bar0_write(0x2000, 8, 16, self);
        dsa.bar0_write(0x2008, 8, (16 | 5 << 5) << 32 | 1 << 4 | 1, self);
    }

    pub(crate) fn enable_device(&mut self, dsa: &mut Dsa) {
        self.configure(dsa);
        assert_eq!(self.command(dsa, 1, 0), 0);
    }

    /// Configured, device and work queue 0 enabled.
    pub(crate) fn ready(&mut self, dsa: &mut Dsa) {
        self.enable_device(dsa);
        assert_eq!(self.command(dsa, 6, 0), 0);
    }

    /// A message in an IMS slot, unmasked.
    pub(crate) fn ims(&mut self, dsa: &mut Dsa, slot: u64, address: u64, data: u32) {
        dsa.bar0_write(0x4_0000 + slot * 16, 8, address, self);
        dsa.bar0_write(0x4_0008 + slot * 16, 8, data.into(), self);
    }

    /// A message in an MSI-X entry, unmasked, and MSI-X enabled.
    pub(crate) fn msix(&mut self, dsa: &mut Dsa, entry: u64, address: u64, data: u32) {
        dsa.bar0_write(0x4000 + entry * 16, 8, address, self);
        dsa.bar0_write(0x4008 + entry * 16, 8, data.into(), self);
        dsa.config_write(0x82, 2, 0x8000, self);
    }
}

/// A device with memory space and bus master enabled.
pub(crate) fn device() -> (Dsa, Machine) {
    made(Config::default())
}

/// The same of another kind.
pub(crate) fn made(config: Config) -> (Dsa, Machine) {
    let mut machine = Machine::default();
    let mut dsa = Dsa::new(config);
    dsa.config_write(4, 2, 6, &mut machine);
    (dsa, machine)
}

/// A descriptor in the making.
#[derive(Clone, Copy, Default)]
pub(crate) struct Build {
    pub(crate) opcode: u8,
    pub(crate) flags: u32,
    pub(crate) completion: u64,
    pub(crate) source: u64,
    pub(crate) destination: u64,
    pub(crate) size: u32,
    pub(crate) handle: u16,
}

impl Build {
    pub(crate) fn bytes(&self) -> [u8; 64] {
        let words = [
            u64::from(self.opcode) << 56 | u64::from(self.flags) << 32,
            self.completion,
            self.source,
            self.destination,
            u64::from(self.size) | u64::from(self.handle) << 32,
        ];
        let mut bytes = [0; 64];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// A NOP.
pub(crate) fn nop() -> Build {
    Build { opcode: opcode::NOOP, ..Build::default() }
}
