//! The page below 1 MiB where application processors start.

use super::PhysRange;
use crate::addr::{Hpa, PAGE_SIZE};

/// The page that is taken if it is free: nothing of a PC's firmware lies there as a rule.
const USUAL: u64 = 0x8000;
/// Behind the last page that can be memory on a PC; a start-up command could name pages up to 1 MiB (SDM vol. 3, 10.4.4.1).
const END: u64 = 0xa_0000;

/// A page that is `usable` as a whole by the memory map, and of which nothing is `taken`: that of 0x8000, else the highest, as Linux takes
/// it. Never page 0, where the BIOS has its data.
pub fn start_page(
    usable: impl Iterator<Item = PhysRange> + Clone,
    taken: impl Iterator<Item = PhysRange> + Clone,
) -> Option<Hpa> {
    let page = |start| PhysRange::new(Hpa::new(start), PAGE_SIZE);
    let is_free = |start: &u64| {
        let is_usable = usable.clone().any(|range| range.start.as_u64() <= *start && range.end() >= page(*start).end());
        is_usable && !taken.clone().any(|range| range.len != 0 && range.overlaps(&page(*start)))
    };
    let highest_first = (1..END / PAGE_SIZE).rev().map(|number| number * PAGE_SIZE);
    [USUAL].into_iter().chain(highest_first).find(is_free).map(Hpa::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::real_map;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(Hpa::new(start), end - start)
    }

    fn page(usable: &[PhysRange], taken: &[PhysRange]) -> Option<u64> {
        start_page(usable.iter().copied(), taken.iter().copied()).map(Hpa::as_u64)
    }

    #[test]
    fn the_start_page_is_taken_from_the_map() {
        let all = [range(0, 0x9_fc00), range(1 << 20, 1 << 30)];
        assert_eq!(page(&all, &[]), Some(0x8000));
        assert_eq!(page(&all, &[range(0x8fff, 0x9000)]), Some(0x9_e000), "the last page is not whole");
        assert_eq!(page(&all, &[range(0x8000, 0x8000)]), Some(0x8000), "nothing is taken");
        assert_eq!(page(&all, &[range(0, 0x1_0000), range(0x1_2000, 0xa_0000)]), Some(0x1_1000));
        assert_eq!(page(&[range(0, 0x1000), range(1 << 20, 1 << 30)], &[]), None, "page 0 is the BIOS'");
        assert_eq!(page(&[range(0x1800, 0x2800)], &[]), None, "no whole page");
        assert_eq!(page(&[range(0xa_0000, 1 << 20)], &[]), None);
    }

    #[test]
    fn a_reserved_page_of_a_workstation_is_left_alone() {
        let (usable, reserved) = real_map(include_str!("../acpi/real/e820-workstation-uefi.txt"));
        assert_eq!(page(&usable, &reserved), Some(0x8000));
        assert_eq!(
            page(&usable, &[&reserved[..], &[range(0, 0x5_8000), range(0x5_a000, 1 << 20)]].concat()),
            Some(0x5_9000)
        );
        let (usable, reserved) = real_map(include_str!("../acpi/real/e820-six-tebibytes.txt"));
        assert_eq!(page(&usable, &reserved), Some(0x8000));
    }
}
