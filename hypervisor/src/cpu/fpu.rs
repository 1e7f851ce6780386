//! Registers that VM entry and exit do not switch: x87, SSE and AVX state, and XCR0.
//!
//! The hypervisor is compiled without floating point, so a guest's state stays in the registers until another guest runs.

use core::arch::x86_64::{__cpuid_count, _xgetbv};

/// Bytes of the state: legacy area, header, and AVX, the components that [`crate::vdev::cpuid`] lets a guest see.
const AREA: usize = 1024;

/// x87, SSE, AVX: bits of XCR0 a guest may set.
pub const XCR0_GUEST: u64 = 0b111;

/// A guest's state while it does not run: SDM vol. 1, 13.4.
#[repr(C, align(64))]
pub struct State {
    area: [u8; AREA],
    /// The guest's XCR0.
    pub xcr0: u64,
}

impl State {
    /// The state after reset: SDM vol. 1, 13.6 (an XRSTOR of an empty header) and MXCSR's reset value.
    pub fn new() -> Self {
        let mut area = [0; AREA];
        area[0..2].copy_from_slice(&0x037fu16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        Self { area, xcr0: 1 }
    }

    /// Saves the registers.
    pub fn save(&mut self, xsave: Xsave) {
        set_xcr0(xsave.mask);
        // SAFETY: the area is 64-byte aligned and as large as the components of `mask`, as `Xsave::enable` has checked.
        unsafe {
            core::arch::asm!("xsave64 [{}]", in(reg) self.area.as_mut_ptr(), in("eax") xsave.mask as u32, in("edx") 0,
                options(nostack, preserves_flags));
        }
    }

    /// Restores the registers, and loads the guest's XCR0.
    pub fn restore(&self, xsave: Xsave) {
        set_xcr0(xsave.mask);
        // SAFETY: the area was written by `save` or `new`, so its header and MXCSR are valid.
        unsafe {
            core::arch::asm!("xrstor64 [{}]", in(reg) self.area.as_ptr(), in("eax") xsave.mask as u32, in("edx") 0,
                options(nostack, preserves_flags));
        }
        set_xcr0(self.xcr0);
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// Proof that this processor has XSAVE and that a [`State`] holds what it saves.
#[derive(Clone, Copy, Debug)]
pub struct Xsave {
    mask: u64,
}

impl Xsave {
    /// Turns XSAVE on. `None` when the processor does not have it.
    pub fn enable() -> Option<Self> {
        if !raw_cpuid::CpuId::new().get_feature_info()?.has_xsave() {
            return None;
        }
        // SAFETY: the processor has XSAVE; the other bits stay as they are.
        unsafe { super::write_cr4(super::cr4() | super::bits::cr4::OSXSAVE) };
        let leaf = __cpuid_count(0xd, 0);
        let mask = u64::from(leaf.eax) & XCR0_GUEST;
        set_xcr0(mask);
        let size = __cpuid_count(0xd, 0).ebx as usize;
        (size <= AREA).then_some(Self { mask })
    }

    /// The XCR0 bits a guest may set on this processor.
    pub fn supported(self) -> u64 {
        self.mask
    }
}

/// SSE and AVX state in the standard layout.
#[repr(C, align(64))]
struct VectorArea([u8; AREA]);

/// Components of [`VectorArea`] in XCR0 and XSTATE_BV.
const SSE_AVX: u64 = 0b110;
/// Where registers lie (SDM vol. 1, 13.4.1 and 13.5.3), and XSTATE_BV.
const XMM: usize = 160;
const YMM_HIGH: usize = 576;
const XSTATE_BV: usize = 512;

/// A vector register: XMM in the low half, the rest of YMM in the high half, which is 0 without AVX.
pub type VectorRegister = [u8; 32];

impl VectorArea {
    /// Saves the running guest's vector registers. Also returns the components that the processor has.
    fn save() -> (Self, u64) {
        let mut area = Self([0; AREA]);
        let guest = in_force();
        let mask = u64::from(__cpuid_count(0xd, 0).eax) & XCR0_GUEST;
        set_xcr0(mask);
        // SAFETY: the area is aligned, and larger than these components (`Xsave::enable`); no others are saved.
        unsafe {
            core::arch::asm!("xsave64 [{}]", in(reg) area.0.as_mut_ptr(), in("eax") (mask & SSE_AVX) as u32, in("edx") 0,
                options(nostack, preserves_flags));
        }
        set_xcr0(guest);
        (area, mask & SSE_AVX)
    }

    fn restore(&mut self, mask: u64) {
        self.0[XSTATE_BV] |= mask as u8;
        let guest = in_force();
        set_xcr0(mask | 1);
        // SAFETY: `save` has written the area, and only registers were changed in it: its header and MXCSR are valid.
        unsafe {
            core::arch::asm!("xrstor64 [{}]", in(reg) self.0.as_ptr(), in("eax") mask as u32, in("edx") 0,
                options(nostack, preserves_flags));
        }
        set_xcr0(guest);
    }

    fn halves(number: u8) -> [usize; 2] {
        let at = 16 * usize::from(number & 15);
        [XMM + at, YMM_HIGH + at]
    }
}

/// The running guest's vector register `number`, 0 to 15. There is an [`Xsave`].
pub fn vector_register(number: u8) -> VectorRegister {
    let (area, _) = VectorArea::save();
    let mut value = [0; 32];
    for (half, at) in value.chunks_exact_mut(16).zip(VectorArea::halves(number)) {
        half.copy_from_slice(&area.0[at..at + 16]);
    }
    value
}

/// Sets the running guest's vector register `number`. There is an [`Xsave`].
pub fn set_vector_register(number: u8, value: &VectorRegister) {
    let (mut area, mask) = VectorArea::save();
    for (half, at) in value.chunks_exact(16).zip(VectorArea::halves(number)) {
        area.0[at..at + 16].copy_from_slice(half);
    }
    area.restore(mask);
}

/// Room for an AVX register.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Ymm([u64; 4]);

/// Calls `work` with AVX enabled, and restores XCR0 after that. Returns whether it did: `false` if the processor has no AVX, or XSAVE is
/// not enabled yet. `work` must keep the values of all vector registers.
pub fn with_avx(work: impl FnOnce()) -> bool {
    const AVX: u64 = 0b110;
    let enabled = super::cr4() & super::bits::cr4::OSXSAVE != 0;
    if !enabled || u64::from(__cpuid_count(0xd, 0).eax) & AVX != AVX {
        return false;
    }
    // SAFETY: CR4.OSXSAVE is on.
    let before = unsafe { xgetbv() };
    set_xcr0(before | AVX);
    work();
    set_xcr0(before);
    true
}

/// Loads the running guest's new XCR0. The caller has checked it against [`Xsave::supported`].
pub fn set_guest_xcr0(value: u64) {
    set_xcr0(value & XCR0_GUEST | 1);
}

/// XCR0.
fn in_force() -> u64 {
    // SAFETY: CR4.OSXSAVE is on (there is an `Xsave`).
    unsafe { xgetbv() }
}

fn set_xcr0(value: u64) {
    // SAFETY: CR4.OSXSAVE is on (there is an `Xsave`).
    if unsafe { xgetbv() } == value {
        return;
    }
    // SAFETY: the value is a subset of what CPUID leaf 0xD reports, with bit 0 set, and AVX only with SSE.
    unsafe {
        core::arch::asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nomem, nostack, preserves_flags));
    }
}

/// # Safety
/// CR4.OSXSAVE must be on.
#[target_feature(enable = "xsave")]
unsafe fn xgetbv() -> u64 {
    // SAFETY: the caller vouches for CR4.OSXSAVE.
    unsafe { _xgetbv(0) }
}
