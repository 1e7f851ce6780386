//! What the same costs elsewhere.

/// Where the figures of [`KVM`] come from.
pub const SOURCE: &str = "Linux 6.1 KVM under Bochs 2.7, same instruction counting";

/// A figure of the peer: what was done, and its instructions. One VM exit each.
pub struct Peer {
    /// What was done.
    pub what: &'static str,
    /// Instructions, from the guest's side.
    pub instructions: f64,
}

/// KVM (Linux 6.1.192, `kvm_intel`, one vCPU, `mitigations=off`). Those that end in userspace do no device work there, so that a
/// real device model costs more.
pub const KVM: [Peer; 5] = [
    Peer { what: "cpuid", instructions: 985.0 },
    Peer { what: "vmcall", instructions: 1023.0 },
    Peer { what: "MMIO write emulated in the kernel (IOAPIC)", instructions: 3689.0 },
    Peer { what: "MMIO write, EPT violation on a read-only slot, in the kernel", instructions: 4220.0 },
    Peer { what: "the same in userspace: the floor of an MSI-X write under VFIO", instructions: 5832.0 },
];
