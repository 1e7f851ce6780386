//! The VMX instructions. Each captures the flags in its own assembler block: SDM vol. 3, 32.2.

use core::{arch::asm, fmt};

use super::fields::{Field, INSTRUCTION_ERROR, Width};
use crate::addr::Hpa;

/// Why a VMX instruction failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// VMfailInvalid: there is no current VMCS, or the pointer is no good.
    Invalid,
    /// VMfailValid, with the VM-instruction error (SDM vol. 3, 32.4).
    Valid(u32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid => f.write_str("VMfailInvalid"),
            Self::Valid(error) => write!(f, "VMfailValid, error {error}"),
        }
    }
}

/// From CF and ZF.
fn outcome(invalid: u8, valid: u8) -> Result<(), Failure> {
    match (invalid, valid) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::Valid(instruction_error())),
        _ => Err(Failure::Invalid),
    }
}

/// VM-instruction error of the current VMCS; 0 when it cannot be read.
pub fn instruction_error() -> u32 {
    let error: u64;
    // SAFETY: reading a field of the current VMCS changes nothing; the caller is in VMX operation, since an instruction of VMX has
    // just failed and not faulted.
    unsafe {
        asm!("vmread {}, {}", out(reg) error, in(reg) u64::from(INSTRUCTION_ERROR.encoding()), options(nomem, nostack));
    }
    error as u32
}

/// Defines an instruction whose operand is a 64-bit address in memory.
macro_rules! with_pointer {
    ($(#[$doc:meta])+ $name:ident, $mnemonic:literal) => {
        $(#[$doc])+
        pub unsafe fn $name(address: Hpa) -> Result<(), Failure> {
            let (invalid, valid): (u8, u8);
            let address = address.as_u64();
            // SAFETY: the caller vouches for the region at `address`.
            unsafe {
                asm!(concat!($mnemonic, " [{}]"), "setc {}", "setz {}", in(reg) &raw const address,
                    lateout(reg_byte) invalid, lateout(reg_byte) valid, options(nostack));
            }
            outcome(invalid, valid)
        }
    };
}

with_pointer! {
    /// Enters VMX operation with the VMXON region at `address`.
    ///
    /// # Safety
    /// The region is a frame of its own with the revision identifier in it, and stays so; CR0, CR4 and IA32_FEATURE_CONTROL allow it.
    vmxon, "vmxon"
}
with_pointer! {
    /// Makes the VMCS at `address` inactive and clear.
    ///
    /// # Safety
    /// The region is a frame of its own with the revision identifier in it.
    vmclear, "vmclear"
}
with_pointer! {
    /// Makes the VMCS at `address` current.
    ///
    /// # Safety
    /// As for [`vmclear`]; nobody else writes the frame until it is cleared again.
    vmptrld, "vmptrld"
}

// VMREAD and VMWRITE fail only by a defect of ours (see `vcpu`), so what follows them is one jump that is never taken, to here.
core::arch::global_asm!(
    ".section .text.vmx_field_failed, \"ax\"",
    "vmx_field_failed:", // RDI = the field's encoding. The stack may be at any multiple of 8.
    "and rsp, -16",
    "call {failed}",
    failed = sym field_failed,
);

/// Handles a failed VMREAD or VMWRITE: panics with the reason.
extern "C" fn field_failed(encoding: u64) -> ! {
    let (invalid, error): (u8, u64);
    // SAFETY: as in `instruction_error`.
    unsafe {
        asm!("vmread {}, {}", "setc {}", out(reg) error, in(reg) u64::from(INSTRUCTION_ERROR.encoding()),
            lateout(reg_byte) invalid, options(nomem, nostack));
    }
    let failure = if invalid != 0 { Failure::Invalid } else { Failure::Valid(error as u32) };
    panic!("VMREAD or VMWRITE of field {encoding:#x}: {failure}")
}

/// Reads a field of the current VMCS, which must be complete; if not, this panics.
#[inline(always)]
pub fn vmread<W: Width, S>(field: Field<W, S>) -> W::Value {
    let value: u64;
    // SAFETY: VMREAD changes nothing; a caller outside VMX operation gets #UD, which is a panic, not a hazard to memory. Both ways
    // to fail set CF or ZF, and what is jumped to then never returns.
    unsafe {
        asm!(
            "vmread {value}, {field}",
            "jbe 3f",
            ".pushsection .text.vmx_field_failed, \"ax\"",
            "3:",
            "mov rdi, {field}",
            "jmp vmx_field_failed",
            ".popsection",
            value = out(reg) value,
            field = in(reg) u64::from(field.encoding()),
            options(nomem, nostack),
        );
    }
    W::narrow(value)
}

/// Writes a field of the current VMCS, which must be complete; if not, this panics.
///
/// # Safety
/// Of a [`Guarded`](super::fields::Guarded) field, the value must keep the guest within its memory and the exit within the hypervisor's
/// code.
#[inline(always)]
pub unsafe fn vmwrite<W: Width, S>(field: Field<W, S>, value: W::Value) {
    // SAFETY: the caller vouches for the value; for failures see `vmread`.
    unsafe {
        asm!(
            "vmwrite {field}, {value}",
            "jbe 3f",
            ".pushsection .text.vmx_field_failed, \"ax\"",
            "3:",
            "mov rdi, {field}",
            "jmp vmx_field_failed",
            ".popsection",
            field = in(reg) u64::from(field.encoding()),
            value = in(reg) W::widen(value),
            options(nostack),
        );
    }
}

/// Proof that this processor holds no translation by a guest's extended page tables. Freeing the tables requires it, so that dropping the
/// translations cannot be forgotten.
#[derive(Debug)]
#[must_use]
pub struct Forgotten(());

impl Forgotten {
    /// The proof on a processor that has never run a guest with these tables.
    pub const fn never_ran() -> Self {
        Self(())
    }
}

/// Drops all cached translations of the EPT pointer `eptp`.
pub fn invept(eptp: u64) -> Result<Forgotten, Failure> {
    single_context_invept(eptp).map(|()| Forgotten(()))
}

/// Scope of INVEPT and INVVPID: one context.
const SINGLE_CONTEXT: u64 = 1;

/// Defines an invalidation of one context; its descriptor's first word names it.
macro_rules! invalidation {
    ($(#[$doc:meta])+ $visibility:vis $name:ident, $context:ident: $type:ty, $mnemonic:literal) => {
        $(#[$doc])+
        $visibility fn $name($context: $type) -> Result<(), Failure> {
            let (invalid, valid): (u8, u8);
            let descriptor = [u64::from($context), 0];
            // SAFETY: dropping translations is always safe.
            unsafe {
                asm!(concat!($mnemonic, " {}, [{}]"), "setc {}", "setz {}", in(reg) SINGLE_CONTEXT,
                    in(reg) &raw const descriptor, lateout(reg_byte) invalid, lateout(reg_byte) valid, options(nostack));
            }
            outcome(invalid, valid)
        }
    };
}

invalidation! {
    /// As [`invept`].
    single_context_invept, eptp: u64, "invept"
}
invalidation! {
    /// Drops all cached linear translations of `vpid`.
    pub invvpid, vpid: u16, "invvpid"
}
