//! PCI configuration space: header, PCI Express, MSI-X, and the extended capabilities SIOV (a DVSEC), PASID, ATS and PRI.

use crate::Config;
use crate::spec;

/// Bytes of a function's configuration space.
pub const SIZE: usize = 4096;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const BAR2: usize = 0x18;
const BAR_64_BITS: u32 = 0b10 << 1;
const BAR_PREFETCHABLE: u32 = 1 << 3;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const EXPRESS: usize = 0x40;
const MSIX: usize = spec::MSIX_CAPABILITY as usize;
const DVSEC: usize = 0x100;
const PASID: usize = 0x120;
const ATS: usize = 0x140;
const PRI: usize = 0x150;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;
const PASID_ENABLE: u16 = 1 << 0;
/// Privileged mode: supported, and enabled. Linux gives its own work queues PASIDs only where there is that; requests are for user
/// privilege all the same.
const PASID_PRIVILEGED: u16 = 1 << 2;
const ATS_ENABLE: u16 = 1 << 15;
const PRI_ENABLE: u16 = 1 << 0;
const PRI_RESET: u16 = 1 << 1;
/// PRI status: a response said "failure"; one was for no request; nothing is on its way; responses have PASIDs.
const PRI_RESPONSE_FAILURE: u16 = 1 << 0;
const PRI_UNEXPECTED: u16 = 1 << 1;
const PRI_STOPPED: u16 = 1 << 8;
const PRI_RESPONSE_PASID: u16 = 1 << 15;
/// Page requests that may be outstanding: one for each engine.
const PRI_CAPACITY: u32 = spec::ENGINES as u32;
/// Device control of the PCI Express capability (PCIe 7.5.3.4). It reads as 0, because the reset clears it.
const INITIATE_RESET: u16 = 1 << 15;

/// The bytes, and which of their bits software may write.
pub(crate) struct ConfigSpace {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
}

impl ConfigSpace {
    /// The space as it is after reset.
    pub(crate) fn new(config: &Config) -> Self {
        let mut space = Self { bytes: Box::new([0; SIZE]), writable: Box::new([0; SIZE]) };
        space.put16(0x02, config.device_id);
        space.put16(0x2e, config.subsystem());
        space.header();
        space.bar(BAR0, config.layout.bytes, config.wide_bars);
        space.bar(BAR2, spec::BAR2_SIZE, config.wide_bars);
        space.express();
        space.msix(config);
        space.scalable_iov();
        space.pasid();
        if config.page_requests {
            space.page_requests();
        }
        space
    }

    fn header(&mut self) {
        self.put16(0x00, spec::VENDOR_ID);
        self.put16(STATUS, STATUS_CAPABILITIES);
        self.put32(0x08, spec::CLASS << 8);
        self.put16(0x2c, spec::VENDOR_ID);
        self.put16(CAPABILITIES, EXPRESS as u16);
        self.allow16(COMMAND, COMMAND_WRITABLE);
        self.allow16(INTERRUPT_LINE, 0x00ff);
        self.allow16(0x0c, 0x00ff);
    }

    /// A memory BAR of `size` bytes; a wide one has 64 bits and is prefetchable.
    fn bar(&mut self, at: usize, size: u32, wide: bool) {
        self.allow32(at, !(size - 1));
        if wide {
            self.put32(at, BAR_64_BITS | BAR_PREFETCHABLE);
            self.allow32(at + 4, !0);
        }
    }

    /// PCI Express capability (PCIe 7.5.3), version 2, a root complex integrated endpoint.
    fn express(&mut self) {
        self.put16(EXPRESS, (MSIX as u16) << 8 | 0x10);
        self.put16(EXPRESS + 2, 9 << 4 | 2);
        // Function level reset, role-based error reporting; device control's error enables and payload sizes are storage only.
        self.put32(EXPRESS + 4, 1 << 28 | 1 << 15);
        self.allow16(EXPRESS + 8, 0x78ff | INITIATE_RESET);
    }

    /// MSI-X capability (PCIe 7.7.2): table and pending bits in BAR0.
    fn msix(&mut self, config: &Config) {
        self.put16(MSIX, 0x11);
        self.put16(MSIX + 2, config.msix_entries.clamp(1, 2048) - 1);
        self.put32(MSIX + 4, config.layout.msix as u32);
        self.put32(MSIX + 8, config.layout.pending_bits as u32);
        self.allow16(MSIX + 2, MSIX_ENABLE | MSIX_FUNCTION_MASK);
    }

    /// Intel Scalable IOV's DVSEC (specification 3.7.1, vendor 8086, ID 5).
    fn scalable_iov(&mut self) {
        self.put32(DVSEC, (PASID as u32) << 20 | 1 << 16 | 0x23);
        self.put32(DVSEC + 4, 0x18 << 20 | u32::from(spec::VENDOR_ID));
        // ID; the function depends on no other one; no flags.
        self.put16(DVSEC + 8, 5);
        // Supported and current system page size: 4 KiB.
        self.put32(DVSEC + 0xc, 1);
        self.put32(DVSEC + 0x10, 1);
        // Capabilities: bit 0, interrupt message storage.
        self.put32(DVSEC + 0x14, 1);
    }

    /// PASID extended capability (PCIe 7.8.8), 20 bits wide.
    fn pasid(&mut self) {
        self.put32(PASID, 1 << 16 | 0x1b);
        self.put16(PASID + 4, 20 << 8);
        self.allow16(PASID + 6, PASID_ENABLE);
    }

    /// ATS (PCIe 10.5.1) with page-aligned requests, and PRI (PCIe 10.5.2); requests with a PASID have a prefix, so the device says that
    /// it has prefixes (device capabilities 2).
    fn page_requests(&mut self) {
        self.put32(EXPRESS + 0x24, 1 << 21);
        self.put32(PASID, (ATS as u32) << 20 | 1 << 16 | 0x1b);
        self.put16(PASID + 4, 20 << 8 | PASID_PRIVILEGED);
        self.allow16(PASID + 6, PASID_ENABLE | PASID_PRIVILEGED);
        self.put32(ATS, (PRI as u32) << 20 | 1 << 16 | 0x0f);
        self.put16(ATS + 4, 1 << 5);
        self.allow16(ATS + 6, ATS_ENABLE | 0x1f);
        self.put32(PRI, 1 << 16 | 0x13);
        self.allow16(PRI + 4, PRI_ENABLE | PRI_RESET);
        self.put16(PRI + 6, PRI_STOPPED | PRI_RESPONSE_PASID);
        self.put32(PRI + 8, PRI_CAPACITY);
        self.allow32(PRI + 12, !0);
    }

    fn put16(&mut self, offset: usize, value: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn allow16(&mut self, offset: usize, mask: u16) {
        self.writable[offset..offset + 2].copy_from_slice(&mask.to_le_bytes());
    }

    fn allow32(&mut self, offset: usize, mask: u32) {
        self.writable[offset..offset + 4].copy_from_slice(&mask.to_le_bytes());
    }

    fn get16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// Reads `len` bytes (at most 4); all ones beyond the end.
    pub(crate) fn read(&self, offset: u16, len: usize) -> u32 {
        let byte = |n: usize| self.bytes.get(usize::from(offset) + n).copied().unwrap_or(0xff);
        (0..len.min(4)).fold(0, |value, n| value | u32::from(byte(n)) << (8 * n))
    }

    /// Writes `len` bytes (at most 4); bits that are not writable keep their values.
    pub(crate) fn write(&mut self, offset: u16, len: usize, value: u32) {
        for (n, new) in value.to_le_bytes().into_iter().enumerate().take(len) {
            let at = usize::from(offset) + n;
            if let (Some(byte), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | new & mask;
                // Ones clear what went wrong.
                if at == PRI + 6 {
                    *byte &= !(new & (PRI_RESPONSE_FAILURE | PRI_UNEXPECTED) as u8);
                }
            }
        }
        self.end_page_request_reset();
    }

    /// PRI's reset bit reads as 0, and forgets what went wrong.
    fn end_page_request_reset(&mut self) {
        if self.get16(PRI + 4) & PRI_RESET != 0 {
            self.put16(PRI + 4, self.get16(PRI + 4) & !PRI_RESET);
            self.put16(PRI + 6, self.get16(PRI + 6) & !(PRI_RESPONSE_FAILURE | PRI_UNEXPECTED));
        }
    }

    /// Requests with a PASID ask for translations first.
    pub(crate) fn ats_enabled(&self) -> bool {
        self.get16(ATS + 6) & ATS_ENABLE != 0
    }

    /// How many page requests may be outstanding now.
    pub(crate) fn page_requests_allowed(&self) -> usize {
        let enabled = self.get16(PRI + 4) & PRI_ENABLE != 0;
        if enabled { self.read(PRI as u16 + 12, 4).min(PRI_CAPACITY) as usize } else { 0 }
    }

    /// PRI's status says "stopped" while page requests are disabled and none is outstanding.
    pub(crate) fn note_outstanding(&mut self, outstanding: bool) {
        let status = self.get16(PRI + 6);
        if status & PRI_RESPONSE_PASID != 0 {
            let stopped = self.get16(PRI + 4) & PRI_ENABLE == 0 && !outstanding;
            self.put16(PRI + 6, status & !PRI_STOPPED | if stopped { PRI_STOPPED } else { 0 });
        }
    }

    /// Notes that a response said "failure", or was for no request.
    pub(crate) fn note_response(&mut self, failure: bool, unexpected: bool) {
        let failure = if failure { PRI_RESPONSE_FAILURE } else { 0 };
        let unexpected = if unexpected { PRI_UNEXPECTED } else { 0 };
        self.put16(PRI + 6, self.get16(PRI + 6) | failure | unexpected);
    }

    /// Memory accesses to the BARs are answered.
    pub(crate) fn memory_enabled(&self) -> bool {
        self.get16(COMMAND) & COMMAND_MEMORY != 0
    }

    /// The function may send requests: DMA and messages.
    pub(crate) fn bus_master(&self) -> bool {
        self.get16(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    pub(crate) fn msix_enabled(&self) -> bool {
        self.get16(MSIX + 2) & MSIX_ENABLE != 0
    }

    pub(crate) fn msix_function_mask(&self) -> bool {
        self.get16(MSIX + 2) & MSIX_FUNCTION_MASK != 0
    }

    /// Software has just initiated a function level reset.
    pub(crate) fn reset_initiated(&self) -> bool {
        self.get16(EXPRESS + 8) & INITIATE_RESET != 0
    }

    pub(crate) fn pasid_enabled(&self) -> bool {
        self.get16(PASID + 6) & PASID_ENABLE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_a_dsa() {
        let space = ConfigSpace::new(&Config::default());
        assert_eq!(space.read(0, 4), 0x11fb_8086);
        assert_eq!(space.read(8, 4), 0x0880_0000);
        assert_eq!(space.read(0x0e, 1), 0);
    }

    #[test]
    fn bars_answer_sizing_and_keep_their_low_bits() {
        let mut space = ConfigSpace::new(&Config::default());
        space.write(0x10, 4, !0);
        space.write(0x14, 4, !0);
        space.write(0x18, 4, !0);
        assert_eq!(space.read(0x10, 4), 0xfff8_0000);
        assert_eq!(space.read(0x14, 4), 0);
        assert_eq!(space.read(0x18, 4), 0xfffe_0000);
        let mut wide = ConfigSpace::new(&Config::sapphire_rapids());
        (0x10..0x20).step_by(4).for_each(|at| wide.write(at, 4, !0));
        let bars = [0x10, 0x14, 0x18, 0x1c].map(|at| wide.read(at, 4));
        assert_eq!(bars, [0xffff_000c, !0, 0xfffe_000c, !0], "64 and 128 KiB");
    }

    #[test]
    fn read_only_registers_stay() {
        let mut space = ConfigSpace::new(&Config::default());
        let before: Vec<u32> = (0x100..0x120).step_by(4).map(|at| space.read(at, 4)).collect();
        for at in (0..4096).step_by(4) {
            space.write(at, 4, !0);
        }
        let after: Vec<u32> = (0x100..0x120).step_by(4).map(|at| space.read(at, 4)).collect();
        assert_eq!(before, after);
        assert_eq!(space.read(0, 4), 0x11fb_8086);
        assert_eq!(space.read(4, 2), u32::from(COMMAND_WRITABLE));
    }

    #[test]
    fn both_capability_lists_end_and_name_msix_and_the_siov_dvsec() {
        let space = ConfigSpace::new(&Config::default());
        let first = space.read(0x34, 1) as u16;
        assert_eq!(space.read(first, 1), 0x10);
        let second = space.read(first + 1, 1) as u16;
        assert_eq!(space.read(second, 2), 0x0011);
        assert_eq!(space.read(second + 2, 2), 63);
        let dvsec = space.read(0x100, 4);
        assert_eq!((dvsec & 0xffff, space.read(0x104, 2), space.read(0x108, 2)), (0x23, 0x8086, 5));
        assert_eq!(space.read(0x114, 4), 1);
        let next = (dvsec >> 20) as u16;
        assert_eq!((space.read(next, 2), space.read(next, 4) >> 20), (0x1b, 0));
    }

    #[test]
    fn beyond_the_end_reads_ones() {
        let mut space = ConfigSpace::new(&Config::default());
        assert_eq!(space.read(4094, 4), 0xffff_0000);
        space.write(4094, 4, !0);
        space.write(u16::MAX, 4, !0);
    }
}
