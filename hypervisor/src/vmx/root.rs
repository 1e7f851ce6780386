//! Entering VMX operation on this processor: SDM vol. 3, 25.7.

use x86::msr;

use super::{
    caps::{self, Capabilities},
    instr::{Failure, vmxon},
};
use crate::{
    addr::Hpa,
    cpu::{
        self,
        speculation::{self, Plan},
    },
};

/// The host state that every VMCS of this processor has.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Tables of this processor.
    pub bases: cpu::tables::Bases,
    /// CR0, CR3, CR4 as they are at every VM exit.
    pub cr: [u64; 3],
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// The processor's capabilities.
    pub capabilities: Capabilities,
    /// What is done against speculation.
    pub plan: Plan,
}

impl Host {
    /// Enters VMX operation with `region`, a frame that is used for nothing else from now on.
    ///
    /// CR0, CR3 and CR4 must be final, because every VM exit loads their present values.
    ///
    /// # Safety
    /// `region` is a zeroed frame that nobody else uses from now on; `capabilities` and `bases` are this processor's.
    pub unsafe fn enter_vmx(
        capabilities: Capabilities,
        bases: cpu::tables::Bases,
        region: Hpa,
    ) -> Result<Self, Failure> {
        if capabilities.unlock {
            // SAFETY: `unlock` says that the register is not locked.
            unsafe { caps::unlock_feature_control() };
        }
        // SAFETY: the bits that VMX demands are NE and VMXE (`Capabilities::check`), which the hypervisor's code does not notice.
        unsafe {
            cpu::write_cr0((cpu::cr0() | capabilities.cr0[0]) & capabilities.cr0[1]);
            cpu::write_cr4(cpu::cr4() | cpu::bits::cr4::VMXE);
        }
        // SAFETY: the caller has given the frame away; the registers were set just now.
        unsafe {
            prepare_region(region, capabilities.revision);
            vmxon(region)?;
        }
        Ok(Self {
            bases,
            cr: [cpu::cr0(), cpu::cr3(), cpu::cr4()],
            // SAFETY: both MSRs exist on every processor with long mode and VMX.
            pat: unsafe { msr::rdmsr(msr::IA32_PAT) },
            // SAFETY: as for IA32_PAT.
            efer: unsafe { msr::rdmsr(msr::IA32_EFER) },
            capabilities,
            plan: speculation::plan(),
        })
    }
}

/// Writes the revision identifier into a zeroed frame: SDM vol. 3, 26.2 and 26.11.5.
///
/// # Safety
/// The frame is the caller's own.
pub(super) unsafe fn prepare_region(region: Hpa, revision: u32) {
    // SAFETY: the frame is the caller's, and frames are identity-mapped.
    unsafe { core::ptr::write_volatile(region.as_u64() as *mut u32, revision) }
}
