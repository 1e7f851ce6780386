//! What a unit is capable of: the choices behind CAP and ECAP.

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
    /// ECAP.SMTS, SSTS and PASID: scalable mode with second-stage tables, for requests with and without PASID. RID_PASID is 0
    /// (ECAP.RPS = 0).
    pub scalable_mode: bool,
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
            first_stage: false,
            page_requests: false,
            first_stage_1g: true,
            scalable_walk_snoop: true,
            pasid_bits: 20,
            domain_id_bits: 16,
            host_address_width: 46,
            max_address_mask: 18,
            max_handle_mask: 15,
        }
    }
}
