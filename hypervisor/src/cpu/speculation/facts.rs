//! What a processor says about itself, and which attacks it is open to by that.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use super::models;
use crate::cpu;

/// EDX of CPUID leaf 7, subleaf 0 (SDM vol. 2, CPUID).
pub(super) mod leaf7 {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const MD_CLEAR: u32 = 1 << 10;
    pub const IBRS_IBPB: u32 = 1 << 26;
    pub const STIBP: u32 = 1 << 27;
    pub const L1D_FLUSH: u32 = 1 << 28;
    pub const SSBD: u32 = 1 << 31;
}

/// EBX of the same: restricted transactional memory.
const RTM: u32 = 1 << 11;
/// ECX of leaf 1: AVX.
const AVX: u32 = 1 << 28;

/// Bits of IA32_ARCH_CAPABILITIES (SDM vol. 4, table 2-2).
pub(super) mod arch {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const RDCL_NO: u64 = 1 << 0;
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    pub const MDS_NO: u64 = 1 << 5;
    pub const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    pub const TSX_CTRL: u64 = 1 << 7;
    pub const TAA_NO: u64 = 1 << 8;
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    pub const FBSDP_NO: u64 = 1 << 14;
    pub const PSDP_NO: u64 = 1 << 15;
    pub const FB_CLEAR: u64 = 1 << 17;
    pub const BHI_NO: u64 = 1 << 20;
    pub const PBRSB_NO: u64 = 1 << 24;
    pub const GDS_CTRL: u64 = 1 << 25;
    pub const GDS_NO: u64 = 1 << 26;
    pub const RFDS_NO: u64 = 1 << 27;
    pub const RFDS_CLEAR: u64 = 1 << 28;
}

/// EDX of CPUID leaf 7, subleaf 2: BHI_CTRL.
const BHI_CTRL: u32 = 1 << 4;
/// Bits of EDX of that subleaf, and those of IA32_SPEC_CTRL that each brings: PSFD, IPRED_CTRL, RRSBA_CTRL, DDPD_U, BHI_CTRL.
const LATER_CONTROLS: [(u32, u64); 5] =
    [(1, 1 << 7), (1 << 1, 3 << 3), (1 << 2, 3 << 5), (1 << 3, 1 << 8), (BHI_CTRL, 1 << 10)];

/// What CPUID and IA32_ARCH_CAPABILITIES say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The maker is Intel.
    pub is_intel: bool,
    /// EAX of leaf 1: family, model, stepping.
    pub signature: u32,
    /// ECX of leaf 1.
    pub leaf1_ecx: u32,
    /// EBX of leaf 7, subleaf 0.
    pub leaf7_ebx: u32,
    /// EDX of leaf 7, subleaf 0.
    pub leaf7_edx: u32,
    /// EDX of leaf 7, subleaf 2.
    pub leaf7_2_edx: u32,
    /// IA32_ARCH_CAPABILITIES; 0 where there is no such register.
    pub arch_capabilities: u64,
}

impl Facts {
    /// This processor's.
    pub fn read() -> Self {
        const LEAF: u32 = 7;
        let first = __cpuid(0);
        let features = __cpuid(1);
        let (extended, later) = if first.eax < LEAF {
            (0, 0)
        } else {
            let subleaf = __cpuid_count(LEAF, 0);
            (subleaf.ebx, if subleaf.eax >= 2 { __cpuid_count(LEAF, 2).edx } else { 0 })
        };
        Self {
            // "Genu", "ineI", "ntel".
            is_intel: [first.ebx, first.edx, first.ecx] == [0x756e_6547, 0x4965_6e69, 0x6c65_746e],
            signature: features.eax,
            leaf1_ecx: features.ecx,
            leaf7_ebx: extended,
            leaf7_edx: cpu::leaf7_edx(),
            leaf7_2_edx: later,
            arch_capabilities: cpu::arch_capabilities().unwrap_or(0),
        }
    }

    /// Whether IA32_ARCH_CAPABILITIES has the bit.
    pub(super) const fn has_arch(&self, bit: u64) -> bool {
        self.arch_capabilities & bit != 0
    }

    /// The model number, of Intel's family 6.
    pub(super) const fn model(&self) -> Option<u8> {
        const FAMILY: u32 = 0xf00;
        let model = self.signature >> 12 & 0xf0 | self.signature >> 4 & 0xf;
        if self.is_intel && self.signature & FAMILY == 0x600 { Some(model as u8) } else { None }
    }

    fn is_among(&self, models: &[u8]) -> bool {
        self.model().is_some_and(|model| models.contains(&model))
    }

    /// Reads of memory whose translation is not present are served from the first-level cache (L1TF, INTEL-SA-00161).
    pub(super) fn is_open_to_l1tf(&self) -> bool {
        self.is_intel && !self.has_arch(arch::RDCL_NO) && !self.is_among(&models::NO_L1TF)
    }

    /// Microarchitectural data sampling (INTEL-SA-00233).
    pub(super) fn is_open_to_mds(&self) -> bool {
        self.is_intel && !self.has_arch(arch::MDS_NO) && !self.is_among(&models::NO_MDS)
    }

    /// The same by asynchronous aborts of transactions (TAA, INTEL-SA-00270).
    pub(super) fn is_open_to_taa(&self) -> bool {
        let transactions = self.leaf7_ebx & RTM != 0 || self.has_arch(arch::TSX_CTRL);
        self.is_intel && !self.has_arch(arch::TAA_NO) && transactions
    }

    /// Stale data of accesses to device registers (INTEL-SA-00615).
    pub(super) fn is_open_to_mmio(&self) -> bool {
        const IMMUNE: u64 = arch::SBDR_SSDP_NO | arch::FBSDP_NO | arch::PSDP_NO;
        self.arch_capabilities & IMMUNE != IMMUNE && self.is_among(&models::MMIO)
    }

    /// Stale data of the register files (RFDS, INTEL-SA-00898).
    pub(super) fn is_open_to_rfds(&self) -> bool {
        !self.has_arch(arch::RFDS_NO) && (self.has_arch(arch::RFDS_CLEAR) || self.is_among(&models::RFDS))
    }

    /// One of the four attacks that VERW closes.
    pub(super) fn is_open_to_sampling(&self) -> bool {
        self.is_open_to_mds() || self.is_open_to_taa() || self.is_open_to_mmio() || self.is_open_to_rfds()
    }

    /// Gathers forward stale data of vector registers (GDS, INTEL-SA-00828). AVX's absence closes it.
    pub(super) fn is_open_to_gds(&self) -> bool {
        self.is_among(&models::GDS) && !self.has_arch(arch::GDS_NO) && self.leaf1_ecx & AVX != 0
    }

    /// The branch history of a guest steers enhanced IBRS's predictions (BHI, INTEL-SA-00598).
    pub(super) fn is_open_to_bhi(&self) -> bool {
        self.is_intel && self.has_arch(arch::IBRS_ALL) && !self.has_arch(arch::BHI_NO)
    }

    /// Whether IA32_SPEC_CTRL has BHI_DIS_S.
    pub(super) const fn has_bhi_control(&self) -> bool {
        self.leaf7_2_edx & BHI_CTRL != 0
    }

    /// A return right behind a VM exit takes the guest's prediction (INTEL-SA-00706).
    pub(super) fn is_open_to_pbrsb(&self) -> bool {
        self.has_arch(arch::IBRS_ALL) && !self.has_arch(arch::PBRSB_NO) && !self.is_among(&models::NO_PBRSB)
    }

    /// A change of page sizes under a fetch ends in a machine check (INTEL-SA-00210).
    pub(super) fn is_open_to_multihit(&self) -> bool {
        self.is_intel && !self.has_arch(arch::IF_PSCHANGE_MC_NO) && !self.is_among(&models::NO_MULTIHIT)
    }

    /// Bits that IA32_SPEC_CTRL has.
    pub fn spec_ctrl_bits(&self) -> u64 {
        let first = [(leaf7::IBRS_IBPB, 1), (leaf7::STIBP, 1 << 1), (leaf7::SSBD, 1 << 2)];
        let of = |register: u32, table: &[(u32, u64)]| {
            table.iter().filter(|(bit, _)| register & bit != 0).fold(0, |all, (_, bits)| all | bits)
        };
        of(self.leaf7_edx, &first) | of(self.leaf7_2_edx, &LATER_CONTROLS)
    }
}
