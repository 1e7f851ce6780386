//! The unit's capabilities, which CAP and ECAP report.

/// The capabilities of a unit. [`Config::default`] is like a recent server's unit that has no scalable mode, with each
/// choice that the manual leaves open taken strictly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// CAP.PI: posted interrupts.
    pub posted_interrupts: bool,
    /// ECAP.EIM: 32-bit destinations (x2APIC).
    pub extended_interrupt_mode: bool,
    /// ECAP.IR: interrupt remapping at all.
    pub interrupt_remapping: bool,
    /// Number of fault recording registers (CAP.NFR + 1), 1 to 160.
    pub fault_records: usize,
    /// VT-d 7.2.1: a fault of a requester that has a record pending already is dropped (hardware may, or may not).
    pub fault_compression: bool,
    /// CAP.SAGAW bit 1: 39-bit, three-level second-stage tables.
    pub three_level: bool,
    /// CAP.SAGAW bit 2: 48-bit, four-level second-stage tables.
    pub four_level: bool,
    /// CAP.SSLPS bit 0: 2 MiB pages.
    pub pages_2m: bool,
    /// CAP.SSLPS bit 1: 1 GiB pages.
    pub pages_1g: bool,
    /// CAP.ESIRTPS: setting the interrupt-remapping table pointer flushes the interrupt entry cache.
    pub flush_on_sirtp: bool,
    /// CAP.ESRTPS: setting the root table pointer flushes the context cache and the IOTLB.
    pub flush_on_srtp: bool,
    /// ECAP.C: table accesses snoop the processors' caches.
    pub coherent: bool,
    /// ECAP.SC: snoop control, which is SNP in second-stage leaves and PGSNP in PASID-table entries.
    pub snoop_control: bool,
    /// ECAP.DT: device-TLBs, their invalidation descriptor and translation type 01b.
    pub device_tlb: bool,
    /// ECAP.PT: pass-through translation type 10b.
    pub pass_through: bool,
    /// ECAP.QI: queued invalidation.
    pub queued_invalidation: bool,
    /// ECAP.SMTS and SSTS: scalable mode with second-stage tables. RID_PASID is 0 (ECAP.RPS = 0).
    pub scalable_mode: bool,
    /// ECAP.PASID: requests with PASIDs, in scalable mode. Without it PASIDE is reserved in context entries.
    pub pasids: bool,
    /// ECAP.FSTS: first-stage tables of four levels in scalable mode.
    pub first_stage: bool,
    /// ECAP.PRS and ECAP.PDS: page requests of devices with device-TLBs in scalable mode.
    pub page_requests: bool,
    /// CAP.FS1GP: pages of 1 GiB in first-stage tables.
    pub first_stage_1g: bool,
    /// ECAP.SMPWCS: walks from a PASID-table entry with PWSNP snoop the processors' caches.
    pub scalable_walk_snoop: bool,
    /// ECAP.PSS + 1: bits of a PASID.
    pub pasid_bits: u32,
    /// CAP.MGAW + 1: bits of a device's address, if the tables' levels cover more.
    pub guest_address_width: u32,
    /// Width of a domain id in bits: 4, 6, 8, 10, 12, 14 or 16 (CAP.ND).
    pub domain_id_bits: u32,
    /// The platform's host address width in bits; address bits above it are reserved. The DMAR table reports it.
    pub host_address_width: u32,
    /// CAP.MAMV: the greatest address mask of a page-selective IOTLB invalidation.
    pub max_address_mask: u32,
    /// ECAP.MHMV: the greatest index mask of an index-selective interrupt entry cache invalidation.
    pub max_handle_mask: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            posted_interrupts: true,
            extended_interrupt_mode: true,
            interrupt_remapping: true,
            fault_records: 8,
            fault_compression: false,
            three_level: true,
            four_level: true,
            pages_2m: true,
            pages_1g: true,
            flush_on_sirtp: false,
            flush_on_srtp: false,
            coherent: true,
            snoop_control: true,
            device_tlb: false,
            pass_through: true,
            queued_invalidation: true,
            scalable_mode: false,
            pasids: true,
            first_stage: false,
            page_requests: false,
            first_stage_1g: true,
            scalable_walk_snoop: true,
            pasid_bits: 20,
            guest_address_width: 57,
            domain_id_bits: 16,
            host_address_width: 46,
            max_address_mask: 18,
            max_handle_mask: 15,
        }
    }
}

impl Config {
    /// A unit of a Sapphire Rapids server as its kernel log shows it: CAP 19ed008c40780c66, ECAP 3ee9e86f050df. It has scalable mode with
    /// tables of both stages and **no PASIDs**; setting a table pointer flushes nothing; there is one fault record.
    ///
    /// What the model does not implement is left out: five levels, protected memory, nesting, supervisor requests, RID_PASID, and dirty
    /// bits. Where registers lie stays the model's own choice.
    pub fn sapphire_rapids() -> Self {
        Config {
            fault_records: 1,
            three_level: false,
            device_tlb: true,
            scalable_mode: true,
            first_stage: true,
            pasids: false,
            host_address_width: 52,
            max_address_mask: 45,
            ..Config::default()
        }
    }

    /// The unit that a Sapphire Rapids server has for its accelerators where firmware lets `idxd` use PASIDs: the same with ECAP.PASID.
    pub fn sapphire_rapids_accelerators() -> Self {
        Config { pasids: true, ..Config::sapphire_rapids() }
    }

    /// A unit of a Meteor Lake client: CAP c9de008cee690462, ECAP 12ca9a00f0ef5e. It does not snoop, walks included, has scalable mode
    /// without PASIDs and domain ids of 8 bits; setting a table pointer flushes. What is left out is as for
    /// [`sapphire_rapids`](Self::sapphire_rapids).
    pub fn meteor_lake() -> Self {
        Config {
            flush_on_sirtp: true,
            flush_on_srtp: true,
            coherent: false,
            snoop_control: false,
            scalable_walk_snoop: false,
            domain_id_bits: 8,
            guest_address_width: 42,
            host_address_width: 42,
            max_address_mask: 30,
            ..Config::sapphire_rapids()
        }
    }
}
