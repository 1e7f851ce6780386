//! The MSRs of a local APIC in x2APIC mode: SDM vol. 3, table 12-6. Ranges have a register for each 32 vectors, or LVT entry.

pub const ID: u32 = 0x802;
pub const VERSION: u32 = 0x803;
pub const TPR: u32 = 0x808;
pub const PPR: u32 = 0x80a;
/// End of interrupt.
pub const EOI: u32 = 0x80b;
pub const LDR: u32 = 0x80d;
pub const SVR: u32 = 0x80f;
pub const ISR_FIRST: u32 = 0x810;
pub const ISR_LAST: u32 = 0x817;
pub const TMR_FIRST: u32 = 0x818;
pub const TMR_LAST: u32 = 0x81f;
pub const IRR_FIRST: u32 = 0x820;
pub const IRR_LAST: u32 = 0x827;
pub const ESR: u32 = 0x828;
pub const ICR: u32 = 0x830;
pub const LVT_FIRST: u32 = 0x832;
pub const LVT_LAST: u32 = 0x837;
pub const INITIAL_COUNT: u32 = 0x838;
pub const CURRENT_COUNT: u32 = 0x839;
pub const DIVIDE: u32 = 0x83e;
/// Self-IPI: an interrupt for the processor itself.
pub const SELF_IPI: u32 = 0x83f;
/// The first and the last MSR of the APIC. The range includes MSRs that do not exist.
pub const FIRST: u32 = 0x800;
pub const LAST: u32 = 0x8ff;
