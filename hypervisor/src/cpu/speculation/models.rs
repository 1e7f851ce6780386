//! Models of Intel's family 6 whose state no bit tells, as Linux has them (`cpu_vuln_whitelist` and `cpu_vuln_blacklist` in
//! arch/x86/kernel/cpu/common.c; model numbers by SDM vol. 4, table 2-1).

// Atoms that execute in order: Bonnell, Saltwell.
const BONNELL: u8 = 0x1c;
const BONNELL_MID: u8 = 0x26;
const SALTWELL: u8 = 0x36;
const SALTWELL_MID: u8 = 0x27;
const SALTWELL_TABLET: u8 = 0x35;
const SILVERMONT: u8 = 0x37;
const SILVERMONT_D: u8 = 0x4d;
const SILVERMONT_MID: u8 = 0x4a;
const AIRMONT: u8 = 0x4c;
const AIRMONT_MID: u8 = 0x5a;
const AIRMONT_NP: u8 = 0x75;
const KNIGHTS_LANDING: u8 = 0x57;
const KNIGHTS_MILL: u8 = 0x85;
const GOLDMONT: u8 = 0x5c;
const GOLDMONT_D: u8 = 0x5f;
const GOLDMONT_PLUS: u8 = 0x7a;
const TREMONT: u8 = 0x96;
const TREMONT_D: u8 = 0x86;
const TREMONT_L: u8 = 0x9c;
const GRACEMONT: u8 = 0xbe;
const HASWELL_X: u8 = 0x3f;
const BROADWELL_D: u8 = 0x56;
const BROADWELL_X: u8 = 0x4f;
const SKYLAKE_X: u8 = 0x55;
const SKYLAKE_L: u8 = 0x4e;
const SKYLAKE: u8 = 0x5e;
const KABYLAKE_L: u8 = 0x8e;
const KABYLAKE: u8 = 0x9e;
const COMETLAKE: u8 = 0xa5;
const COMETLAKE_L: u8 = 0xa6;
const ICELAKE_L: u8 = 0x7e;
const ICELAKE_D: u8 = 0x6c;
const ICELAKE_X: u8 = 0x6a;
const LAKEFIELD: u8 = 0x8a;
const ROCKETLAKE: u8 = 0xa7;
const TIGERLAKE_L: u8 = 0x8c;
const TIGERLAKE: u8 = 0x8d;
const ALDERLAKE: u8 = 0x97;
const ALDERLAKE_L: u8 = 0x9a;
const RAPTORLAKE: u8 = 0xb7;
const RAPTORLAKE_P: u8 = 0xba;
const RAPTORLAKE_S: u8 = 0xbf;

/// L1TF leaves these alone.
pub(super) const NO_L1TF: [u8; 16] = [
    BONNELL,
    BONNELL_MID,
    SALTWELL,
    SALTWELL_MID,
    SALTWELL_TABLET,
    SILVERMONT,
    SILVERMONT_D,
    SILVERMONT_MID,
    AIRMONT,
    AIRMONT_MID,
    AIRMONT_NP,
    KNIGHTS_LANDING,
    KNIGHTS_MILL,
    GOLDMONT,
    GOLDMONT_D,
    GOLDMONT_PLUS,
];

/// MDS leaves these alone.
pub(super) const NO_MDS: [u8; 8] =
    [BONNELL, BONNELL_MID, SALTWELL, SALTWELL_MID, SALTWELL_TABLET, GOLDMONT, GOLDMONT_D, GOLDMONT_PLUS];

/// iTLB multihit leaves these alone.
pub(super) const NO_MULTIHIT: [u8; 17] = [
    BONNELL,
    BONNELL_MID,
    SALTWELL,
    SALTWELL_MID,
    SALTWELL_TABLET,
    SILVERMONT,
    SILVERMONT_D,
    SILVERMONT_MID,
    AIRMONT,
    AIRMONT_MID,
    AIRMONT_NP,
    KNIGHTS_LANDING,
    KNIGHTS_MILL,
    GOLDMONT,
    GOLDMONT_D,
    GOLDMONT_PLUS,
    TREMONT_D,
];

/// Returns behind a VM exit leave these alone.
pub(super) const NO_PBRSB: [u8; 4] = [GOLDMONT_PLUS, TREMONT, TREMONT_D, TREMONT_L];

/// Device registers' stale data reaches programs on these, unless IA32_ARCH_CAPABILITIES says no.
pub(super) const MMIO: [u8; 18] = [
    HASWELL_X,
    BROADWELL_D,
    BROADWELL_X,
    SKYLAKE_X,
    SKYLAKE_L,
    SKYLAKE,
    KABYLAKE_L,
    KABYLAKE,
    COMETLAKE,
    COMETLAKE_L,
    ICELAKE_L,
    ICELAKE_D,
    ICELAKE_X,
    LAKEFIELD,
    ROCKETLAKE,
    TREMONT,
    TREMONT_D,
    TREMONT_L,
];

/// The same of the register files'.
pub(super) const RFDS: [u8; 12] = [
    ALDERLAKE,
    ALDERLAKE_L,
    RAPTORLAKE,
    RAPTORLAKE_P,
    RAPTORLAKE_S,
    GRACEMONT,
    TREMONT,
    TREMONT_D,
    TREMONT_L,
    GOLDMONT,
    GOLDMONT_D,
    GOLDMONT_PLUS,
];

/// The same of gathers'.
pub(super) const GDS: [u8; 13] = [
    SKYLAKE_X,
    SKYLAKE_L,
    SKYLAKE,
    KABYLAKE_L,
    KABYLAKE,
    COMETLAKE,
    COMETLAKE_L,
    ICELAKE_L,
    ICELAKE_D,
    ICELAKE_X,
    TIGERLAKE_L,
    TIGERLAKE,
    ROCKETLAKE,
];
