//! Memory type range registers, which keep a guest's values and have no effect (SDM vol. 3, 13.11).
//!
//! EPT makes a guest's memory write-back and its devices uncached, whatever these registers say.

use super::Gp;

/// Variable ranges.
const VARIABLE: usize = 8;
/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const CAPABILITY: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;
const WRITE_BACK: u64 = 6;
/// Default type 7:0, fixed enable 10, enable 11.
const DEF_TYPE_WRITABLE: u64 = 0xcff;
const MASK_VALID: u64 = 1 << 11;

const MTRRCAP: u32 = 0xfe;
const PHYS_FIRST: u32 = 0x200;
const PHYS_LAST: u32 = PHYS_FIRST + 2 * VARIABLE as u32 - 1;
const DEF_TYPE: u32 = 0x2ff;

/// The registers of one vCPU.
#[derive(Clone, Debug)]
pub struct Mtrrs {
    def_type: u64,
    fixed: [u64; 11],
    variable: [u64; 2 * VARIABLE],
    /// Address bits above the guest's width.
    reserved_address: u64,
}

impl Mtrrs {
    /// All memory write-back, as a firmware would leave it. `address_width` is that of CPUID leaf 0x8000_0008.
    pub fn new(address_width: u8) -> Self {
        Self {
            def_type: 3 << 10 | WRITE_BACK,
            fixed: [0x0606_0606_0606_0606; 11],
            variable: [0; 2 * VARIABLE],
            reserved_address: u64::MAX.checked_shl(address_width as u32).unwrap_or(0),
        }
    }

    /// RDMSR.
    pub fn read(&self, msr: u32) -> Result<u64, Gp> {
        match msr {
            MTRRCAP => Ok(CAPABILITY),
            DEF_TYPE => Ok(self.def_type),
            PHYS_FIRST..=PHYS_LAST => self.variable.get((msr - PHYS_FIRST) as usize).copied().ok_or(Gp),
            _ => fixed_index(msr).and_then(|index| self.fixed.get(index)).copied().ok_or(Gp),
        }
    }

    /// WRMSR: types and reserved bits are checked.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), Gp> {
        let place = match msr {
            DEF_TYPE if value & !DEF_TYPE_WRITABLE == 0 && is_type(value as u8) => &mut self.def_type,
            PHYS_FIRST..=PHYS_LAST if self.is_valid_variable(msr, value) => {
                self.variable.get_mut((msr - PHYS_FIRST) as usize).ok_or(Gp)?
            }
            _ => {
                let index = fixed_index(msr).filter(|_| value.to_le_bytes().into_iter().all(is_type)).ok_or(Gp)?;
                self.fixed.get_mut(index).ok_or(Gp)?
            }
        };
        *place = value;
        Ok(())
    }

    /// Even registers are bases with a type, odd ones masks with a valid bit.
    const fn is_valid_variable(&self, msr: u32, value: u64) -> bool {
        let low = value & 0xfff;
        let low_valid = if msr & 1 == 0 { low <= 0xff && is_type(low as u8) } else { low & !MASK_VALID == 0 };
        low_valid && value & self.reserved_address == 0
    }
}

/// Uncacheable, write-combining, write-through, write-protected, write-back.
const fn is_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

const fn fixed_index(msr: u32) -> Option<usize> {
    match msr {
        0x250 => Some(0),
        0x258 | 0x259 => Some(msr as usize - 0x258 + 1),
        0x268..=0x26f => Some(msr as usize - 0x268 + 3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut mtrrs = Mtrrs::new(39);
        for (msr, value) in
            [(0x2ff, 0xc06), (0x200, 0x8000_0000), (0x20f, 0x7f_8000_0800), (0x250, 0), (0x26f, 0x0505_0505_0505_0505)]
        {
            assert_eq!(mtrrs.write(msr, value), Ok(()), "{msr:#x}");
            assert_eq!(mtrrs.read(msr), Ok(value));
        }
    }

    #[test]
    fn reserved_bits_and_types_are_refused() {
        let mut mtrrs = Mtrrs::new(39);
        let wrong =
            [(0x2ff, 0x1006), (0x2ff, 2), (0x200, 3), (0x200, 0x106), (0x201, 0x400), (0x201, 1 << 39), (0x250, 7)];
        for (msr, value) in wrong.into_iter().chain([(0xfe, 0x508), (0x210, 0), (0x251, 0)]) {
            assert_eq!(mtrrs.write(msr, value), Err(Gp), "{msr:#x} {value:#x}");
        }
        for not_one in [0x210, 0x277] {
            assert_eq!((mtrrs.read(not_one), mtrrs.write(not_one, 0)), (Err(Gp), Err(Gp)), "{not_one:#x}");
        }
    }
}
