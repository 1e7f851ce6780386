//! Finds the hypercall domain by scanning CPUID, as Linux's `hypervisor_cpuid_base` does.

use hcall_abi::VERSION_MAJOR;
use hcall_abi::call::Call;
use hcall_abi::cpuid::{
    BASE_STEP, FIRST_BASE, Features, LAST_BASE, LEAF_FEATURES, LEAF_LIMITS, LEAF_MAX, LEAF_SIGNATURE, LEAF_VERSION,
    Limits, signature_registers,
};

/// The registers after CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the registers")]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Executes CPUID.
pub trait Cpuid {
    /// Sub-leaf 0 of `leaf`.
    fn cpuid(&self, leaf: u32) -> CpuidResult;
}

/// The processor's own CPUID.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeCpuid;

#[cfg(target_arch = "x86_64")]
impl Cpuid for NativeCpuid {
    fn cpuid(&self, leaf: u32) -> CpuidResult {
        #[allow(unused_unsafe, reason = "the function became safe after our oldest supported compiler")]
        // SAFETY: every 64-bit processor has CPUID.
        let result = unsafe { core::arch::x86_64::__cpuid_count(leaf, 0) };
        CpuidResult { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
    }
}

/// A hypercall domain that speaks our version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The CPUID leaf at which it was found.
    pub base: u32,
    /// Its minor version.
    pub minor: u16,
    /// The number of call 0.
    pub call_base: u32,
    /// What it offers.
    pub features: Features,
    /// What its tables hold.
    pub limits: Limits,
}

impl Interface {
    /// The number that stands for `call` in RAX.
    pub const fn number(&self, call: Call) -> u64 {
        call.number(self.call_base)
    }

    /// Most items that one map call takes: at least 1.
    pub fn batch(&self) -> usize {
        let most = if self.features.contains(Features::BATCH) { self.limits.batch } else { 1 };
        usize::try_from(most).unwrap_or(usize::MAX).max(1)
    }
}

/// Why there is no domain to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFound {
    /// Our signature stands nowhere.
    NoSignature,
    /// It stands somewhere, with this major version, which is not ours.
    WrongMajor(u16),
    /// It stands somewhere, but its leaves end before those we need.
    Truncated,
}

/// Looks for the domain at every base. One in a version of ours is taken, wherever it stands.
pub fn discover(cpuid: &impl Cpuid) -> Result<Interface, NotFound> {
    let mut why = NotFound::NoSignature;
    for base in (FIRST_BASE..=LAST_BASE).step_by(BASE_STEP as usize) {
        match interface_at(cpuid, base) {
            Ok(interface) => return Ok(interface),
            Err(NotFound::NoSignature) => {}
            Err(other) => why = other,
        }
    }
    Err(why)
}

fn interface_at(cpuid: &impl Cpuid, base: u32) -> Result<Interface, NotFound> {
    let signature = cpuid.cpuid(base + LEAF_SIGNATURE);
    if [signature.ebx, signature.ecx, signature.edx] != signature_registers() {
        return Err(NotFound::NoSignature);
    }
    if signature.eax < base + LEAF_MAX {
        return Err(NotFound::Truncated);
    }
    let version = cpuid.cpuid(base + LEAF_VERSION);
    let major = (version.eax >> 16) as u16;
    if major != VERSION_MAJOR {
        return Err(NotFound::WrongMajor(major));
    }
    let limits = cpuid.cpuid(base + LEAF_LIMITS);
    Ok(Interface {
        base,
        minor: version.eax as u16,
        call_base: version.ebx,
        features: Features(cpuid.cpuid(base + LEAF_FEATURES).eax),
        limits: Limits { slots_per_device: limits.eax, batch: limits.ebx, groups: limits.ecx },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeCpuid, interface};
    use hcall_abi::cpuid::IMSVISOR_BASE;

    #[test]
    fn the_domain_is_found_at_every_base_with_all_it_says() {
        for base in [FIRST_BASE, IMSVISOR_BASE, FIRST_BASE + 0x3700, LAST_BASE] {
            let cpuid = FakeCpuid::new().with_interface(base, VERSION_MAJOR);
            assert_eq!(discover(&cpuid), Ok(Interface { base, ..interface() }));
        }
    }

    #[test]
    fn a_base_that_is_no_multiple_or_out_of_range_is_not_looked_at() {
        for base in [FIRST_BASE + 0x80, FIRST_BASE - BASE_STEP, LAST_BASE + BASE_STEP] {
            let cpuid = FakeCpuid::new().with_interface(base, VERSION_MAJOR);
            assert_eq!(discover(&cpuid), Err(NotFound::NoSignature), "{base:#x}");
        }
    }

    #[test]
    fn without_a_signature_there_is_none() {
        assert_eq!(discover(&FakeCpuid::new()), Err(NotFound::NoSignature));
        let kvm = FakeCpuid::new().with(FIRST_BASE, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        assert_eq!(discover(&kvm), Err(NotFound::NoSignature));
    }

    #[test]
    fn another_major_version_is_refused_unless_ours_stands_beside_it() {
        let other = FakeCpuid::new().with_interface(FIRST_BASE, VERSION_MAJOR + 1);
        assert_eq!(discover(&other), Err(NotFound::WrongMajor(VERSION_MAJOR + 1)));
        let both = other.with_interface(IMSVISOR_BASE, VERSION_MAJOR);
        assert_eq!(discover(&both).map(|found| found.base), Ok(IMSVISOR_BASE));
    }

    #[test]
    fn a_signature_without_its_leaves_is_refused() {
        let [ebx, ecx, edx] = signature_registers();
        let cpuid = FakeCpuid::new().with(IMSVISOR_BASE, [IMSVISOR_BASE + LEAF_MAX - 1, ebx, ecx, edx]);
        assert_eq!(discover(&cpuid), Err(NotFound::Truncated));
    }

    #[test]
    fn a_batch_is_one_item_when_the_feature_is_missing_or_the_limit_is_zero() {
        assert_eq!(interface().batch(), 256);
        assert_eq!(Interface { features: Features::default(), ..interface() }.batch(), 1);
        assert_eq!(Interface { limits: Limits::default(), ..interface() }.batch(), 1);
    }
}
