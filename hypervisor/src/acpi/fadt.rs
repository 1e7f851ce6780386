//! The fixed ACPI description table: ACPI 6.5, section 5.2.9. The power management timer and the CMOS clock matter here.

use super::{
    bytes::{u8_at, u32_at},
    fadt_spec::{CENTURY, FLAGS, IAPC_BOOT_ARCH, PM_TMR_BLK, PM_TMR_LEN, X_PM_TMR_BLK},
    generic_address::{self, GenericAddress, IO, MEMORY},
};
use crate::addr::Hpa;

/// Flags: the timer has 32 bits; the hardware is reduced, so there are no such registers (table 5.10).
const TMR_VAL_EXT: u32 = 1 << 8;
const HW_REDUCED_ACPI: u32 = 1 << 20;

/// IAPC_BOOT_ARCH: the CMOS clock is not there (table 5.11).
const CMOS_RTC_NOT_PRESENT: u8 = 1 << 5;
/// Offset of the table's revision, and the first revision with that bit (ACPI 5.0).
const REVISION: usize = 8;
const FIRST_WITH_CMOS_RTC_BIT: u8 = 5;

/// Bytes of the timer's register.
const BYTES: u8 = 4;
/// Access sizes by which the timer can be read: undefined, or dwords.
const DWORDS: [u8; 2] = [0, 3];

/// Ports below are the system board's own (DMA, 8259, 8254, keyboard, …): a read there could change something.
const FIRST_PORT: u64 = 0x100;
/// The last port at which the timer's register can begin.
const LAST_PORT: u64 = generic_address::LAST_PORT - (BYTES as u64 - 1);

/// Where a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// At a port.
    Port(u16),
    /// In memory, at a multiple of 4.
    Memory(Hpa),
}

/// The power management timer: a counter at 3.579545 MHz (4.8.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// Its register, of 32 bits.
    pub register: Register,
    /// Bits of it that count: 24 or 32.
    pub bits: u32,
}

impl PmTimer {
    /// Parses the FADT (ACPI 5.2.9). `None` if the table is too short, the hardware is reduced, or neither field names a register that can
    /// be there. X_PM_TMR_BLK takes precedence over PM_TMR_BLK.
    pub fn parse(fadt: &[u8]) -> Option<Self> {
        let flags = u32_at(fadt, FLAGS)?;
        if flags & HW_REDUCED_ACPI != 0 {
            return None;
        }
        let bits = if flags & TMR_VAL_EXT != 0 { 32 } else { 24 };
        let register = extended(fadt).or_else(|| legacy(fadt))?;
        Some(Self { register, bits })
    }
}

/// What the firmware says of the CMOS clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmosClock {
    /// There is none.
    Absent,
    /// There is one, as on every PC.
    Present {
        /// The index of the byte with the year's first two digits. `None`: no byte has them.
        century: Option<u8>,
    },
}

impl Default for CmosClock {
    /// Where the firmware says nothing.
    fn default() -> Self {
        Self::Present { century: None }
    }
}

impl CmosClock {
    /// Parses the FADT. What a table is too short for it does not say.
    pub fn parse(fadt: &[u8]) -> Self {
        let knows = u8_at(fadt, REVISION).is_some_and(|revision| revision >= FIRST_WITH_CMOS_RTC_BIT);
        if knows && u8_at(fadt, IAPC_BOOT_ARCH).is_some_and(|flags| flags & CMOS_RTC_NOT_PRESENT != 0) {
            return Self::Absent;
        }
        // The clock's own registers are the first 14, and it has 128 bytes in all.
        Self::Present { century: u8_at(fadt, CENTURY).filter(|index| (14..128).contains(index)) }
    }
}

/// The register that X_PM_TMR_BLK names.
fn extended(fadt: &[u8]) -> Option<Register> {
    let GenericAddress { space, bit_width, bit_offset, access_size, address } =
        GenericAddress::parse(fadt, X_PM_TMR_BLK)?;
    if bit_width != 8 * BYTES || bit_offset != 0 || !DWORDS.contains(&access_size) {
        return None;
    }
    match space {
        MEMORY => memory(address),
        IO => port(address),
        _ => None,
    }
}

fn legacy(fadt: &[u8]) -> Option<Register> {
    if u8_at(fadt, PM_TMR_LEN)? != BYTES {
        return None;
    }
    port(u32_at(fadt, PM_TMR_BLK)?.into())
}

fn port(address: u64) -> Option<Register> {
    let valid = (FIRST_PORT..=LAST_PORT).contains(&address);
    u16::try_from(address).ok().filter(|_| valid).map(Register::Port)
}

fn memory(address: u64) -> Option<Register> {
    // Nothing of a machine is in the first MiB that is not memory or firmware.
    let valid = (1 << 20..1 << 52).contains(&address) && address.is_multiple_of(BYTES.into());
    valid.then(|| Register::Memory(Hpa::new(address)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table of revision 1, of 116 bytes.
    fn old(port: u32, len: u8, flags: u32) -> Vec<u8> {
        let mut fadt = vec![0; 116];
        fadt[PM_TMR_BLK..PM_TMR_BLK + 4].copy_from_slice(&port.to_le_bytes());
        fadt[PM_TMR_LEN] = len;
        fadt[FLAGS..FLAGS + 4].copy_from_slice(&flags.to_le_bytes());
        fadt
    }

    /// A table of revision 6, with this generic address structure.
    fn new(mut fadt: Vec<u8>, structure: [u8; 4], address: u64) -> Vec<u8> {
        fadt.resize(276, 0);
        fadt[X_PM_TMR_BLK..X_PM_TMR_BLK + 4].copy_from_slice(&structure);
        fadt[X_PM_TMR_BLK + 4..X_PM_TMR_BLK + 12].copy_from_slice(&address.to_le_bytes());
        fadt
    }

    fn register(fadt: &[u8]) -> Option<Register> {
        PmTimer::parse(fadt).map(|timer| timer.register)
    }

    #[test]
    fn the_timer_is_found_in_tables_of_both_kinds() {
        let timer = |register, bits| Some(PmTimer { register, bits });
        assert_eq!(PmTimer::parse(&old(0xb008, 4, 0)), timer(Register::Port(0xb008), 24));
        assert_eq!(PmTimer::parse(&old(0xb008, 4, TMR_VAL_EXT)), timer(Register::Port(0xb008), 32));
        let both = new(old(0x608, 4, TMR_VAL_EXT), [IO, 32, 0, 3], 0x1808);
        assert_eq!(PmTimer::parse(&both), timer(Register::Port(0x1808), 32));
        let memory = new(old(0, 0, 0), [MEMORY, 32, 0, 0], 0xfed8_0808);
        assert_eq!(PmTimer::parse(&memory), timer(Register::Memory(Hpa::new(0xfed8_0808)), 24));
    }

    #[test]
    fn where_the_firmware_says_that_there_is_none_there_is_none() {
        assert_eq!(register(&old(0, 0, 0)), None);
        assert_eq!(register(&old(0, 4, 0)), None);
        assert_eq!(register(&new(old(0, 0, 0), [0; 4], 0)), None);
        assert_eq!(register(&new(old(0, 4, 0), [IO, 32, 0, 3], 0)), None);
        assert_eq!(register(&old(0xb008, 4, HW_REDUCED_ACPI)), None);
        assert_eq!(register(&new(old(0xb008, 4, HW_REDUCED_ACPI), [IO, 32, 0, 3], 0x1808)), None);
    }

    #[test]
    fn the_cmos_clock_is_there_unless_the_firmware_says_otherwise() {
        let present = |century| CmosClock::Present { century };
        let mut fadt = old(0, 0, 0);
        assert_eq!(CmosClock::parse(&fadt), present(None));
        for (index, century) in [(0x32, Some(0x32)), (0x0d, None), (0x0e, Some(0x0e)), (0x80, None), (0xff, None)] {
            fadt[CENTURY] = index;
            assert_eq!(CmosClock::parse(&fadt), present(century));
        }
        fadt[IAPC_BOOT_ARCH] = !CMOS_RTC_NOT_PRESENT;
        fadt[REVISION] = 6;
        assert_eq!(CmosClock::parse(&fadt), present(None));
        fadt[IAPC_BOOT_ARCH] = CMOS_RTC_NOT_PRESENT;
        assert_eq!(CmosClock::parse(&fadt), CmosClock::Absent);
        // In older tables the bit means nothing.
        fadt[REVISION] = 4;
        assert_eq!(CmosClock::parse(&fadt), present(None));
        assert_eq!(CmosClock::parse(&[]), CmosClock::default());
    }

    #[test]
    fn places_where_it_cannot_be_are_refused() {
        for port in [0x20, 0x60, 0xff, 0xfffd, 0x1_0000, 0xb008_0000] {
            assert_eq!(register(&old(port, 4, 0)), None, "{port:#x}");
            assert_eq!(register(&new(old(0, 0, 0), [IO, 32, 0, 3], port.into())), None, "{port:#x}");
        }
        for len in [0, 2, 3, 8, 255] {
            assert_eq!(register(&old(0xb008, len, 0)), None, "{len}");
        }
        for address in [0, 0x1000, 0xf_fffc, 0xfed8_0809, 0xfed8_080a, 1 << 52, u64::MAX - 3] {
            assert_eq!(register(&new(old(0, 0, 0), [MEMORY, 32, 0, 3], address)), None, "{address:#x}");
        }
        // PCI configuration space, an embedded controller, fixed hardware: no such timer is there.
        for space in [2, 3, 0x7f, 0xff] {
            assert_eq!(register(&new(old(0, 0, 0), [space, 32, 0, 3], 0x1808)), None, "{space}");
        }
    }

    #[test]
    fn an_extended_field_that_cannot_be_leaves_the_older_one() {
        for structure in [[0; 4], [IO, 0, 0, 3], [IO, 16, 0, 2], [IO, 32, 8, 3], [IO, 32, 0, 1], [7, 32, 0, 3]] {
            assert_eq!(register(&new(old(0xb008, 4, 0), structure, 0x1808)), Some(Register::Port(0xb008)));
        }
    }

    #[test]
    fn a_table_that_is_too_short_has_none() {
        let whole = new(old(0xb008, 4, 0), [IO, 32, 0, 3], 0x1808);
        for len in 0..FLAGS + 4 {
            assert_eq!(register(&whole[..len]), None, "{len}");
        }
        for len in FLAGS + 4..X_PM_TMR_BLK + 12 {
            assert_eq!(register(&whole[..len]), Some(Register::Port(0xb008)), "{len}");
        }
    }

    proptest! {
        #[test]
        fn random_tables_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            CmosClock::parse(&bytes);
            if let Some(PmTimer { register: Register::Memory(at), .. }) = PmTimer::parse(&bytes) {
                prop_assert!(at.as_u64().is_multiple_of(4));
            }
        }
    }
}
