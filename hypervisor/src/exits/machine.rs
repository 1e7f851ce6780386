//! The virtual processor's interface to the instruction emulation.

use super::{
    Platform,
    breakpoints::{self, Breakpoints},
    decode_cache::DecodeCache,
    instruction::{Mode, Segment},
    mmio::{Machine, Region, SegmentState},
    walk::{Access, GuestMemory, OutsideMemory, Paging},
    width::Width,
};
use crate::{
    addr::Gpa,
    cpu::{
        self,
        bits::{efer, rflags},
        fpu::VectorRegister,
    },
    memory::Ram,
    vmx::{
        Vcpu,
        fields::{self, Segment as VmcsSegment},
    },
};

/// A virtual processor, its memory and its trapped pages.
pub struct VcpuMachine<'a, P> {
    /// The VMCS and registers.
    pub vcpu: &'a mut Vcpu,
    /// The guest's memory.
    pub ram: &'a Ram,
    /// The platform outside of the guest.
    pub platform: &'a mut P,
    /// Decoded instructions that access trapped pages.
    pub decode_cache: &'a mut DecodeCache,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// Breakpoints that the instruction has hit so far, as the VMCS's pending debug exceptions.
    pub hits: u64,
}

impl<P> GuestMemory for VcpuMachine<'_, P> {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), OutsideMemory> {
        self.ram.read(gpa, buffer).map_err(|_| OutsideMemory(gpa))
    }

    fn read_u64(&self, gpa: Gpa) -> Result<u64, OutsideMemory> {
        self.ram.read_u64(gpa).map_err(|_| OutsideMemory(gpa))
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutsideMemory> {
        self.ram.write(gpa, bytes).map_err(|_| OutsideMemory(gpa))
    }

    fn compare_exchange(&mut self, gpa: Gpa, bytes: usize, old: u64, new: u64) -> Result<bool, OutsideMemory> {
        self.ram.compare_exchange(gpa, bytes, old, new).map_err(|_| OutsideMemory(gpa))
    }
}

impl<P: Platform> Machine for VcpuMachine<'_, P> {
    fn decode_cache(&self) -> &DecodeCache {
        self.decode_cache
    }

    fn decode_cache_mut(&mut self) -> &mut DecodeCache {
        self.decode_cache
    }

    fn general(&self, number: u8) -> u64 {
        self.vcpu.general(number.into())
    }

    fn set_general(&mut self, number: u8, value: u64) {
        self.vcpu.set_general(number.into(), value);
    }

    fn rip(&self) -> u64 {
        self.vcpu.read(fields::GUEST_RIP)
    }

    fn rflags(&self) -> u64 {
        self.vcpu.read(fields::GUEST_RFLAGS)
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.vcpu.write(fields::GUEST_RFLAGS, rflags);
    }

    fn segment(&self, segment: Segment) -> SegmentState {
        let segment = match segment {
            Segment::Es => VmcsSegment::Es,
            Segment::Cs => VmcsSegment::Cs,
            Segment::Ss => VmcsSegment::Ss,
            Segment::Ds => VmcsSegment::Ds,
            Segment::Fs => VmcsSegment::Fs,
            Segment::Gs => VmcsSegment::Gs,
        };
        SegmentState {
            base: self.vcpu.read(segment.base()),
            limit: self.vcpu.read(segment.limit()),
            rights: self.vcpu.read(segment.rights()),
        }
    }

    fn mode(&self) -> Mode {
        const CS_DEFAULT_32: u32 = 1 << 14;
        if self.vcpu.is_64_bit_code() {
            Mode::Bits64
        } else if self.vcpu.read(fields::GUEST_CS_RIGHTS) & CS_DEFAULT_32 != 0 {
            Mode::Bits32
        } else {
            Mode::Bits16
        }
    }

    fn paging(&self) -> Paging {
        Paging { ac: self.rflags() & rflags::AC != 0, ..self.code_paging() }
    }

    fn code_paging(&self) -> Paging {
        Paging {
            cr0: self.vcpu.cr0(),
            cr3: self.vcpu.cr3().as_u64(),
            cr4: self.vcpu.cr4_watched(),
            efer: self.vcpu.efer() & (efer::LMA | efer::NXE | efer::LME),
            cpl: self.vcpu.cpl(),
            ac: false,
            physical_bits: self.physical_bits,
        }
    }

    fn region(&self, gpa: Gpa) -> Region {
        if gpa.as_u64() < self.ram.len() { Region::Memory } else { Region::Mmio }
    }

    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        self.platform.mmio_read(gpa, width.bytes() as u8)
    }

    #[inline(always)]
    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        self.platform.mmio_write(gpa, width.bytes() as u8, value);
    }

    fn mmio_write_bytes(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.platform.mmio_write_bytes(gpa, bytes);
    }

    fn mmio_modify(&mut self, gpa: Gpa, bytes: u8, modify: &mut dyn FnMut(u128) -> u128) {
        self.platform.mmio_modify(gpa, bytes, modify);
    }

    fn vector(&self, number: u8) -> VectorRegister {
        cpu::fpu::vector_register(number)
    }

    fn set_vector(&mut self, number: u8, value: &VectorRegister) {
        cpu::fpu::set_vector_register(number, value);
    }

    fn accessed(&mut self, linear: u64, bytes: u64, access: Access) {
        if !self.is_watching() {
            return;
        }
        let breakpoints = Breakpoints::new(self.vcpu.read(fields::GUEST_DR7), cpu::breakpoint_addresses());
        let access = if access == Access::Write { breakpoints::Access::Write } else { breakpoints::Access::Read };
        self.hits |= breakpoints.hit(access, linear, bytes);
    }

    fn is_traced(&self) -> bool {
        self.hits != 0 || self.rflags() & rflags::TF != 0
    }

    #[inline(always)]
    fn is_watching(&self) -> bool {
        breakpoints::are_armed(self.vcpu.read(fields::GUEST_DR7))
    }
}
