//! The CPUID leaves of a guest (SDM vol. 2, CPUID; volume 3, 11 and 13 for the features behind the leaves).
//!
//! Features pass an allow-list: a feature that is not named here is not offered, so no new host feature reaches a guest before the
//! hypervisor handles its state. Leaves that are not named are zero.

use hcall_abi::cpuid::{self as abi, Features, Limits};

use super::msr;

/// The four registers of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl Leaf {
    /// All zero: nothing to tell.
    pub const ZERO: Self = Self::new(0, 0, 0, 0);

    /// From its registers.
    pub const fn new(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        Self { eax, ebx, ecx, edx }
    }
}

/// The state of the asking vCPU on which answers depend.
#[derive(Clone, Copy, Debug)]
pub struct VcpuState {
    /// Its x2APIC ID.
    pub apic_id: u32,
    /// The guest's CR4.
    pub cr4: u64,
    /// The guest's XCR0.
    pub xcr0: u64,
}

/// What a guest is offered.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Its number of vCPUs, with APIC IDs 0 to this less one.
    pub vcpus: u32,
    /// The frequency of its TSC, where known: leaf 0x15 tells it, and that the APIC timer runs at the same rate.
    pub tsc_hz: Option<u64>,
    /// The VMCS lets it use RDTSCP and RDPID.
    pub rdtscp: bool,
    /// The VMCS lets it use INVPCID; PCIDs are offered along with it.
    pub invpcid: bool,
    /// MONITOR and MWAIT do not exit.
    pub monitor: bool,
    /// Leaf 0x4000_0000 shows KVM's signature, and the next one these features. Linux disables an x2APIC without interrupt remapping
    /// (`try_to_enable_x2apic`) unless it knows the hypervisor; the signature makes it keep it. Ours is found behind it by scanning.
    pub kvm: Option<KvmFeatures>,
    /// Whether the hypercall domain is offered.
    pub hypercalls: bool,
    /// What the IMS service offers.
    pub features: Features,
    /// Its limits.
    pub limits: Limits,
}

/// The features of KVM that a guest is offered: EAX of leaf 0x4000_0001 (Linux, Documentation/virt/kvm/x86/cpuid.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmFeatures(u32);

impl KvmFeatures {
    /// I/O ports need no delay between accesses.
    const NOP_IO_DELAY: u32 = 1 << 1;
    /// MSR 0x4b56_4d04 names memory by which interrupts end without an exit.
    const PV_EOI: u32 = 1 << 6;

    /// Those that this hypervisor serves. `pv_eoi` says whether interrupts can end by memory.
    pub const fn served(pv_eoi: bool) -> Self {
        Self(Self::NOP_IO_DELAY | if pv_eoi { Self::PV_EOI } else { 0 })
    }

    /// Whether interrupts can end by memory.
    pub const fn has_pv_eoi(self) -> bool {
        self.0 & Self::PV_EOI != 0
    }
}

/// XCR0 bits a guest may set: x87, SSE, AVX.
pub const XCR0_ALLOWED: u64 = 7;

const MAX_BASIC: u32 = 0x1f;
const MAX_EXTENDED: u32 = 0x8000_0008;
const KVM_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";
/// KVM's features.
const KVM_FEATURES: u32 = abi::FIRST_BASE + 1;
/// The frequencies of the TSC and of the local APIC's timer in kHz, as VMware has it and others have taken it over. The last leaf behind
/// KVM's signature.
const TIMING: u32 = abi::FIRST_BASE + 0x10;

const CR4_OSXSAVE: u64 = 1 << 18;

/// SSE3, PCLMULQDQ, SSSE3, FMA, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const LEAF1_ECX: u32 =
    1 | 1 << 1 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 17 | 3 << 19 | 3 << 22 | 1 << 25 | 1 << 26 | 7 << 28;
const LEAF1_ECX_MONITOR: u32 = 1 << 3;
const LEAF1_ECX_PCID: u32 = 1 << 17;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_XSAVE: u32 = 1 << 26;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// FPU, VME, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, MTRR, PGE, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2, SS.
/// MCE and MCA as well, with no bank. Not DS, ACPI, TM, PBE: their MSRs are not there.
const LEAF1_EDX: u32 = 0x0f8b_fbff;
const LEAF1_EDX_HTT: u32 = 1 << 28;

/// FSGSBASE, BMI1, HLE, AVX2, SMEP, BMI2, ERMS, INVPCID, RTM, FPU CS/DS, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
const LEAF7_EBX: u32 = 1 | 7 << 3 | 0xf << 7 | 1 << 11 | 1 << 13 | 7 << 18 | 3 << 23 | 1 << 29;
const LEAF7_EBX_INVPCID: u32 = 1 << 10;
/// IA32_TSC_ADJUST, which needs nothing of the processor but the TSC offset. Linux believes an invariant TSC without a second clock
/// only where it has this register (`check_system_tsc_reliable`). It has none but its own ticks, some of which a guest misses while
/// others run.
const LEAF7_EBX_TSC_ADJUST: u32 = 1 << 1;
/// UMIP, GFNI, VAES, VPCLMULQDQ, RDPID, CLDEMOTE, MOVDIRI, MOVDIR64B.
const LEAF7_ECX: u32 = 1 << 2 | 7 << 8 | 1 << 22 | 1 << 25 | 3 << 27;
const LEAF7_ECX_RDPID: u32 = 1 << 22;
/// Fast short REP MOV, MD_CLEAR, SERIALIZE, and speculation control with its MSRs.
const LEAF7_EDX: u32 = 1 << 4
    | 1 << 10
    | 1 << 14
    | msr::LEAF7_EDX_IBRS_IBPB
    | msr::LEAF7_EDX_STIBP
    | msr::LEAF7_EDX_L1D_FLUSH
    | msr::LEAF7_EDX_ARCH_CAPABILITIES
    | msr::LEAF7_EDX_SSBD;
/// Bits of IA32_SPEC_CTRL that came later: PSFD, IPRED_CTRL, RRSBA_CTRL, DDPD_U, BHI_CTRL; and MCDT_NO.
const LEAF7_2_EDX: u32 = 0x3f;

/// LAHF, LZCNT, PREFETCHW.
const EXT1_ECX: u32 = 1 | 1 << 5 | 1 << 8;
/// SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const EXT1_EDX: u32 = 1 << 11 | 1 << 20 | 3 << 26 | 1 << 29;
const EXT1_EDX_RDTSCP: u32 = 1 << 27;

impl Policy {
    /// Answers CPUID of `leaf` and `subleaf`. `host` executes the instruction on the host.
    pub fn answer(&self, leaf: u32, subleaf: u32, vcpu: &VcpuState, host: &dyn Fn(u32, u32) -> Leaf) -> Leaf {
        match leaf {
            0 => Leaf { eax: host(0, 0).eax.min(MAX_BASIC), ..host(0, 0) },
            1 => self.features(vcpu, host(1, 0)),
            2 | 0x8000_0002..=0x8000_0004 | 0x8000_0006 => host(leaf, 0),
            4 => self.caches(host(4, subleaf)),
            5 if self.monitor => host(5, 0),
            // The APIC timer never stops.
            6 => Leaf { eax: 1 << 2, ..Leaf::ZERO },
            7 if subleaf == 0 => self.extended_features(host(7, 0)),
            7 if subleaf == 2 && host(7, 0).eax >= 2 => Leaf { edx: host(7, 2).edx & LEAF7_2_EDX, ..Leaf::ZERO },
            0xb | 0x1f => self.topology(subleaf, vcpu),
            0xd => xsave(subleaf, vcpu, host),
            0x15 => self.tsc(),
            0x16 => self.frequency(),
            0x8000_0000 => Leaf { eax: host(leaf, 0).eax.min(MAX_EXTENDED), ..Leaf::ZERO },
            0x8000_0001 => self.long_mode(host(leaf, 0)),
            // Invariant TSC.
            0x8000_0007 => Leaf { edx: host(leaf, 0).edx & 1 << 8, ..Leaf::ZERO },
            // Widths of addresses.
            0x8000_0008 => Leaf { eax: host(leaf, 0).eax & 0xffff, ..Leaf::ZERO },
            abi::FIRST_BASE.. if leaf <= abi::LAST_BASE + 0xff => self.hypervisor(leaf),
            _ => Leaf::ZERO,
        }
    }

    /// Shift that takes an APIC ID to its package's.
    fn package_shift(&self) -> u32 {
        self.vcpus.max(1).next_power_of_two().trailing_zeros()
    }

    fn features(&self, vcpu: &VcpuState, host: Leaf) -> Leaf {
        let mut ecx = host.ecx & LEAF1_ECX | LEAF1_ECX_X2APIC | LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR;
        if !self.invpcid {
            ecx &= !LEAF1_ECX_PCID;
        }
        if self.monitor {
            ecx |= host.ecx & LEAF1_ECX_MONITOR;
        }
        if ecx & LEAF1_ECX_XSAVE != 0 && vcpu.cr4 & CR4_OSXSAVE != 0 {
            ecx |= LEAF1_ECX_OSXSAVE;
        }
        let logical = (1 << self.package_shift()).min(255);
        let ebx = vcpu.apic_id.min(255) << 24 | logical << 16 | host.ebx & 0xff00;
        let edx = host.edx & LEAF1_EDX | if self.vcpus > 1 { LEAF1_EDX_HTT } else { 0 };
        Leaf { eax: host.eax, ebx, ecx, edx }
    }

    /// Deterministic cache parameters: levels 1 and 2 belong to one vCPU, level 3 to all.
    fn caches(&self, host: Leaf) -> Leaf {
        if host.eax & 0x1f == 0 {
            return Leaf::ZERO;
        }
        let others = (1 << self.package_shift()) - 1_u32;
        let sharing = if host.eax >> 5 & 7 >= 3 { others } else { 0 };
        Leaf { eax: host.eax & 0x3fff | sharing.min(0xfff) << 14 | others.min(0x3f) << 26, ..host }
    }

    fn extended_features(&self, host: Leaf) -> Leaf {
        let (mut ebx, mut ecx) = (host.ebx & LEAF7_EBX | LEAF7_EBX_TSC_ADJUST, host.ecx & LEAF7_ECX);
        if !self.invpcid {
            ebx &= !LEAF7_EBX_INVPCID;
        }
        if !self.rdtscp {
            ecx &= !LEAF7_ECX_RDPID;
        }
        Leaf { eax: host.eax.min(2), ebx, ecx, edx: host.edx & LEAF7_EDX }
    }

    /// Extended topology: one thread a core, all cores in one package.
    fn topology(&self, subleaf: u32, vcpu: &VcpuState) -> Leaf {
        let (shift, count, kind) = match subleaf {
            0 => (0, 1, 1),
            1 => (self.package_shift(), self.vcpus, 2),
            _ => (0, 0, 0),
        };
        Leaf { eax: shift, ebx: count & 0xffff, ecx: kind << 8 | subleaf & 0xff, edx: vcpu.apic_id }
    }

    fn long_mode(&self, host: Leaf) -> Leaf {
        let mut edx = host.edx & EXT1_EDX;
        if !self.rdtscp {
            edx &= !EXT1_EDX_RDTSCP;
        }
        Leaf { eax: 0, ebx: 0, ecx: host.ecx & EXT1_ECX, edx }
    }

    /// The "crystal" is the TSC itself: ratio 1. A frequency that does not fit the register is not told.
    fn tsc(&self) -> Leaf {
        match self.tsc_hz.map(u32::try_from) {
            Some(Ok(hz)) if hz != 0 => Leaf::new(1, 1, hz, 0),
            _ => Leaf::ZERO,
        }
    }

    fn frequency(&self) -> Leaf {
        // To the nearest: a measured frequency may be a little too low.
        let mhz = (self.tsc_hz.unwrap_or(0).saturating_add(500_000) / 1_000_000).min(0xffff) as u32;
        Leaf { eax: mhz, ebx: mhz, ..Leaf::ZERO }
    }

    fn hypervisor(&self, leaf: u32) -> Leaf {
        let [ebx, ecx, edx] = abi::signature_registers();
        let version = (hcall_abi::VERSION_MAJOR as u32) << 16 | hcall_abi::VERSION_MINOR as u32;
        if let (Some(features), false) = (self.kvm, leaf >= abi::IMSVISOR_BASE) {
            return self.kvm_leaf(leaf, features);
        }
        match leaf.wrapping_sub(abi::IMSVISOR_BASE) {
            _ if !self.hypercalls => Leaf::ZERO,
            abi::LEAF_SIGNATURE => Leaf { eax: abi::IMSVISOR_BASE + abi::LEAF_MAX, ebx, ecx, edx },
            abi::LEAF_VERSION => Leaf { eax: version, ebx: abi::CALL_BASE, ..Leaf::ZERO },
            abi::LEAF_FEATURES => Leaf { eax: self.features.0, ..Leaf::ZERO },
            abi::LEAF_LIMITS => Leaf::new(self.limits.slots_per_device, self.limits.batch, self.limits.groups, 0),
            _ => Leaf::ZERO,
        }
    }

    /// The leaves before ours.
    fn kvm_leaf(&self, leaf: u32, features: KvmFeatures) -> Leaf {
        match leaf {
            abi::FIRST_BASE => kvm_signature(),
            KVM_FEATURES => Leaf { eax: features.0, ..Leaf::ZERO },
            TIMING => {
                // A frequency that is not known, or does not fit, is 0.
                let khz = self.tsc_hz.and_then(|hz| u32::try_from(hz / 1000).ok()).unwrap_or(0);
                Leaf { eax: khz, ebx: khz, ..Leaf::ZERO }
            }
            _ => Leaf::ZERO,
        }
    }
}

fn kvm_signature() -> Leaf {
    let [b, c, d] = [0, 4, 8].map(|at| {
        let s = &KVM_SIGNATURE;
        u32::from_le_bytes([s[at], s[at + 1], s[at + 2], s[at + 3]])
    });
    Leaf::new(TIMING, b, c, d)
}

/// Leaf 0xD: x87, SSE and AVX only, no supervisor states. Sizes are those of the standard layout (SDM vol. 1, 13.4):
/// AVX is at 576, both in the standard and in the compacted format, because nothing lies before it.
fn xsave(subleaf: u32, vcpu: &VcpuState, host: &dyn Fn(u32, u32) -> Leaf) -> Leaf {
    const LEGACY_AND_HEADER: u32 = 576;
    const AVX: u32 = 256;
    if host(1, 0).ecx & LEAF1_ECX_XSAVE == 0 {
        return Leaf::ZERO;
    }
    let size = |xcr0: u64| LEGACY_AND_HEADER + if xcr0 & 4 != 0 { AVX } else { 0 };
    let allowed = host(0xd, 0).eax & XCR0_ALLOWED as u32;
    match subleaf {
        0 => Leaf { eax: allowed, ebx: size(vcpu.xcr0), ecx: size(allowed as u64), edx: 0 },
        // XSAVEOPT, XSAVEC, XGETBV with ECX = 1; not XSAVES, not XFD.
        1 => Leaf { eax: host(0xd, 1).eax & 7, ebx: size(vcpu.xcr0), ..Leaf::ZERO },
        2 if allowed & 4 != 0 => Leaf { eax: AVX, ebx: LEGACY_AND_HEADER, ..Leaf::ZERO },
        _ => Leaf::ZERO,
    }
}

/// Whether XSETBV may set XCR0 to `value` (SDM vol. 1, 13.3), given the `allowed` bits of leaf 0xD.
pub const fn is_valid_xcr0(value: u64, allowed: u64) -> bool {
    let known = value & !(allowed & XCR0_ALLOWED) == 0;
    known && value & 1 != 0 && (value & 4 == 0 || value & 2 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        vcpus: 3,
        tsc_hz: Some(2_000_000_000),
        rdtscp: true,
        invpcid: true,
        monitor: false,
        kvm: None,
        hypercalls: true,
        features: Features::ARRAY_STORE.union(Features::BATCH),
        limits: Limits { slots_per_device: 4096, batch: 256, groups: 16 },
    };
    const VCPU: VcpuState = VcpuState { apic_id: 2, cr4: 0, xcr0: 1 };

    /// A host that has everything.
    fn all(_: u32, _: u32) -> Leaf {
        Leaf::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX)
    }

    fn ask(leaf: u32, subleaf: u32) -> Leaf {
        POLICY.answer(leaf, subleaf, &VCPU, &all)
    }

    #[test]
    fn what_would_need_more_of_the_hypervisor_is_hidden() {
        let features = ask(1, 0);
        for (name, bit) in [("DTES", 2), ("MONITOR", 3), ("VMX", 5), ("SMX", 6), ("EIST", 7), ("PDCM", 15), ("DCA", 18)]
        {
            assert_eq!(features.ecx >> bit & 1, 0, "{name}");
        }
        for (name, bit) in [("DS", 21), ("ACPI", 22), ("TM", 29), ("PBE", 31)] {
            assert_eq!(features.edx >> bit & 1, 0, "{name}");
        }
        let extended = ask(7, 0);
        for (name, bit) in [("SGX", 2), ("MPX", 14), ("RDT", 15), ("AVX512F", 16), ("PT", 25)] {
            assert_eq!(extended.ebx >> bit & 1, 0, "{name}");
        }
        for (name, bit) in [("PKU", 3), ("WAITPKG", 5), ("CET", 7), ("LA57", 16), ("ENQCMD", 29)] {
            assert_eq!(extended.ecx >> bit & 1, 0, "{name}");
        }
        assert_eq!(extended.edx & !(1 << 4 | 1 << 10 | 1 << 14 | 0x1f << 26 | 1 << 31), 0);
        assert_eq!((extended.edx >> 30 & 1, ask(7, 2).edx), (0, 0x3f), "core capabilities");
        assert_eq!((extended.eax, ask(7, 1)), (2, Leaf::ZERO));
        for leaf in
            [3, 5, 9, 0xa, 0xf, 0x10, 0x12, 0x14, 0x17, 0x20, 0x8000_0005, 0x8000_0009, 0x8fff_ffff, 0x4000_0000]
        {
            assert_eq!(ask(leaf, 0), Leaf::ZERO, "leaf {leaf:#x}");
        }
    }

    /// All leaves of a host that has everything, by the manual's bit numbers (SDM vol. 2, CPUID) and not by the code's masks.
    #[test]
    fn these_leaves_and_bits_of_all_are_told_and_no_others() {
        let bits = |list: &[u32]| list.iter().fold(0u32, |all, bit| all | 1 << bit);
        const ALL: u32 = u32::MAX;
        let everything = Leaf::new(ALL, ALL, ALL, ALL);
        let leaf1_ecx = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 28, 29, 30, 31]);
        let leaf1_edx = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27, 28]);
        let leaf7 = Leaf::new(
            2,
            bits(&[0, 1, 3, 4, 5, 7, 8, 9, 10, 11, 13, 18, 19, 20, 23, 24, 29]),
            bits(&[2, 8, 9, 10, 22, 25, 27, 28]),
            bits(&[4, 10, 14, 26, 27, 28, 29, 31]),
        );
        let told = |leaf, subleaf| match (leaf, subleaf) {
            (0, _) => Some(Leaf { eax: 0x1f, ..everything }),
            (1, _) => Some(Leaf::new(ALL, 2 << 24 | 4 << 16 | 0xff00, leaf1_ecx, leaf1_edx)),
            (2 | 0x8000_0002..=0x8000_0004 | 0x8000_0006, _) => Some(everything),
            (4, _) => Some(Leaf { eax: 3 << 26 | 3 << 14 | 0x3fff, ..everything }),
            (6, _) => Some(Leaf::new(1 << 2, 0, 0, 0)),
            (7, 0) => Some(leaf7),
            (7, 2) => Some(Leaf::new(0, 0, 0, 0x3f)),
            (0xb | 0x1f, 0) => Some(Leaf::new(0, 1, 0x100, 2)),
            (0xb | 0x1f, 1) => Some(Leaf::new(2, 3, 0x201, 2)),
            (0xb | 0x1f, n) => Some(Leaf::new(0, 0, n, 2)),
            (0xd, 0) => Some(Leaf::new(7, 576, 832, 0)),
            (0xd, 1) => Some(Leaf::new(7, 576, 0, 0)),
            (0xd, 2) => Some(Leaf::new(256, 576, 0, 0)),
            (0x15, _) => Some(Leaf::new(1, 1, 2_000_000_000, 0)),
            (0x16, _) => Some(Leaf::new(2000, 2000, 0, 0)),
            (0x4000_0100, _) => Some(Leaf::new(0x4000_0103, 0x7669_6d73, 0, 0)),
            (0x4000_0101..=0x4000_0103, _) => None,
            (0x8000_0000, _) => Some(Leaf::new(0x8000_0008, 0, 0, 0)),
            (0x8000_0001, _) => Some(Leaf::new(0, 0, bits(&[0, 5, 8]), bits(&[11, 20, 26, 27, 29]))),
            (0x8000_0007, _) => Some(Leaf::new(0, 0, 0, 1 << 8)),
            (0x8000_0008, _) => Some(Leaf::new(0xffff, 0, 0, 0)),
            _ => Some(Leaf::ZERO),
        };
        let leaves =
            (0..0x100).chain(0x4000_0000..0x4000_0400).chain(0x8000_0000..0x8000_0100).chain([ALL, 0xc000_0000]);
        for (leaf, subleaf) in leaves.flat_map(|leaf| (0..8).map(move |subleaf| (leaf, subleaf))) {
            match told(leaf, subleaf) {
                // The signature's letters are another test's.
                Some(expected) if leaf == 0x4000_0100 => assert_eq!(ask(leaf, subleaf).eax, expected.eax),
                Some(expected) => assert_eq!(ask(leaf, subleaf), expected, "leaf {leaf:#x}, {subleaf}"),
                None => assert_ne!(ask(leaf, subleaf), Leaf::ZERO, "leaf {leaf:#x}"),
            }
        }
    }

    #[test]
    fn what_every_64_bit_kernel_needs_is_there() {
        let features = ask(1, 0);
        for bit in [0, 3, 4, 5, 6, 8, 9, 11, 12, 13, 15, 16, 17, 19, 23, 24, 25, 26, 27] {
            assert_eq!(features.edx >> bit & 1, 1, "EDX bit {bit}");
        }
        for bit in [13, 21, 24, 26, 28, 31] {
            assert_eq!(features.ecx >> bit & 1, 1, "ECX bit {bit}");
        }
        assert_eq!(ask(0x8000_0001, 0).edx, 0x2c10_0800);
        assert_eq!(ask(0, 0).eax, 0x1f);
    }

    #[test]
    fn osxsave_follows_cr4() {
        let with = VcpuState { cr4: CR4_OSXSAVE, ..VCPU };
        assert_eq!(ask(1, 0).ecx >> 27 & 1, 0);
        assert_eq!(POLICY.answer(1, 0, &with, &all).ecx >> 27 & 1, 1);
    }

    #[test]
    fn instructions_that_the_vmcs_disables_are_not_offered() {
        let less = Policy { rdtscp: false, invpcid: false, ..POLICY };
        assert_eq!(less.answer(0x8000_0001, 0, &VCPU, &all).edx & EXT1_EDX_RDTSCP, 0);
        assert_eq!(less.answer(7, 0, &VCPU, &all).ebx & LEAF7_EBX_INVPCID, 0);
        assert_eq!(less.answer(1, 0, &VCPU, &all).ecx & LEAF1_ECX_PCID, 0);
    }

    #[test]
    fn the_topology_is_that_of_the_guest() {
        assert_eq!(ask(1, 0).ebx >> 16, 2 << 8 | 4);
        assert_eq!(ask(0xb, 0), Leaf::new(0, 1, 0x100, 2));
        assert_eq!(ask(0xb, 1), Leaf::new(2, 3, 0x201, 2));
        assert_eq!(ask(0x1f, 2), Leaf::new(0, 0, 2, 2));
        let level3 = POLICY.answer(4, 3, &VCPU, &|_, _| Leaf::new(0x163, 0, 0, 0));
        assert_eq!(level3.eax, 3 << 26 | 3 << 14 | 0x163);
        let level1 = POLICY.answer(4, 0, &VCPU, &|_, _| Leaf::new(0xfc00_0121, 0, 0, 0));
        assert_eq!(level1.eax, 3 << 26 | 0x121);
    }

    #[test]
    fn the_tsc_can_be_adjusted_on_every_processor() {
        assert_eq!(POLICY.answer(7, 0, &VCPU, &|_, _| Leaf::ZERO).ebx, 1 << 1);
    }

    #[test]
    fn state_components_end_with_avx() {
        let vcpu = VcpuState { xcr0: 7, ..VCPU };
        assert_eq!(POLICY.answer(0xd, 0, &vcpu, &all), Leaf::new(7, 832, 832, 0));
        assert_eq!(ask(0xd, 0), Leaf::new(7, 576, 832, 0));
        assert_eq!(ask(0xd, 1), Leaf::new(7, 576, 0, 0));
        assert_eq!(ask(0xd, 2), Leaf::new(256, 576, 0, 0));
        assert_eq!(ask(0xd, 5), Leaf::ZERO);
        assert_eq!(POLICY.answer(0xd, 0, &vcpu, &|_, _| Leaf::ZERO), Leaf::ZERO);
        assert!(is_valid_xcr0(7, 7) && is_valid_xcr0(1, 3));
        assert!(
            !is_valid_xcr0(5, 7) && !is_valid_xcr0(6, 7) && !is_valid_xcr0(7, 3) && !is_valid_xcr0(0x207, u64::MAX)
        );
    }

    #[test]
    fn the_interface_is_found_at_its_base() {
        let base = abi::IMSVISOR_BASE;
        let Leaf { eax, ebx, ecx, edx } = ask(base, 0);
        assert_eq!((eax, [ebx, ecx, edx]), (base + 3, abi::signature_registers()));
        assert_eq!(ask(base + 1, 0), Leaf::new(1 << 16 | 4, abi::CALL_BASE, 0, 0));
        assert_eq!(ask(base + 2, 0).eax, 9);
        assert_eq!(ask(base + 3, 0), Leaf::new(4096, 256, 16, 0));
        assert_eq!(ask(base + 4, 0), Leaf::ZERO);
    }

    #[test]
    fn the_frequency_in_mhz_is_the_nearest() {
        for (hz, mhz) in [(199_991_000, 200), (200_400_000, 200), (3_499_500_000, 3500)] {
            let policy = Policy { tsc_hz: Some(hz), ..POLICY };
            assert_eq!(policy.answer(0x16, 0, &VCPU, &all), Leaf::new(mhz, mhz, 0, 0));
        }
    }

    #[test]
    fn linux_finds_kvms_signature_the_features_that_are_served_and_ours_behind_it() {
        let kvm = Policy { kvm: Some(KvmFeatures::served(true)), ..POLICY };
        let ask = |policy: &Policy, leaf| policy.answer(leaf, 0, &VCPU, &all);
        assert_eq!(ask(&kvm, 0x4000_0000), Leaf::new(0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d));
        assert_eq!(ask(&kvm, 0x4000_0001), Leaf { eax: 1 << 1 | 1 << 6, ..Leaf::ZERO });
        assert_eq!(ask(&kvm, 0x4000_0010), Leaf::new(2_000_000, 2_000_000, 0, 0));
        assert_eq!(ask(&kvm, 0x4000_0002), Leaf::ZERO);
        let base = abi::IMSVISOR_BASE;
        assert_eq!(ask(&kvm, base), POLICY.answer(base, 0, &VCPU, &all));
        let without = Policy { kvm: Some(KvmFeatures::served(false)), hypercalls: false, tsc_hz: None, ..POLICY };
        assert_eq!(ask(&without, 0x4000_0001).eax, 1 << 1, "no PV EOI where the processor ends interrupts");
        assert_eq!((ask(&without, 0x4000_0010), ask(&without, base)), (Leaf::ZERO, Leaf::ZERO));
        assert_eq!(ask(&without, 0x4000_0000).eax, 0x4000_0010);
    }

    #[test]
    fn the_frequency_is_told_where_it_is_known() {
        assert_eq!(ask(0x15, 0), Leaf::new(1, 1, 2_000_000_000, 0));
        assert_eq!(ask(0x16, 0).eax, 2000);
        assert_eq!(Policy { tsc_hz: None, ..POLICY }.answer(0x15, 0, &VCPU, &all), Leaf::ZERO);
        assert_eq!(Policy { tsc_hz: Some(5 << 32), ..POLICY }.answer(0x15, 0, &VCPU, &all), Leaf::ZERO);
    }

    #[test]
    fn no_vcpu_count_breaks_the_arithmetic() {
        for vcpus in [0, 1, 2, 255, 256, 4096] {
            let policy = Policy { vcpus, ..POLICY };
            for leaf in [1, 4, 0xb] {
                policy.answer(leaf, 1, &VcpuState { apic_id: 5000, ..VCPU }, &all);
            }
        }
    }
}
