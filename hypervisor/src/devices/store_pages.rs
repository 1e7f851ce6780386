//! The pages of a message store, and the other registers in them. All ranges are bytes of one BAR.
#![forbid(unsafe_code)]

use core::ops::Range;

use crate::addr::PAGE_SIZE;

/// Whether a store fills its pages.
pub fn fills_its_pages(store: &Range<u64>) -> bool {
    store.start.is_multiple_of(PAGE_SIZE) && store.end.is_multiple_of(PAGE_SIZE)
}

/// Whether, of all `tables`, the store alone has bytes in its pages. The store is one of the tables; a device may name the same bytes for
/// two of them.
pub fn is_alone_in_its_pages(store: &Range<u64>, tables: impl Iterator<Item = Range<u64>>) -> bool {
    let pages = store.start / PAGE_SIZE * PAGE_SIZE..store.end.next_multiple_of(PAGE_SIZE);
    let reaches_in = |table: &Range<u64>| table.start < pages.end && pages.start < table.end;
    tables.filter(reaches_in).count() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_its_pages_alone_only_if_no_table_reaches_into_them() {
        let store = 0x2000..0x2090;
        let alone =
            |others: &[Range<u64>]| is_alone_in_its_pages(&store, others.iter().cloned().chain([store.clone()]));
        assert!(alone(&[0..0x200, 0x1000..0x2000, 0x3000..0x3008]));
        for other in [0x1000..0x2001, 0..0x8000, 0x2090..0x2098, 0x2ff8..0x3008, 0x2000..0x2008] {
            assert!(!alone(&[0..0x200, other.clone()]), "{other:?}");
        }
        assert!(!alone(std::slice::from_ref(&store)), "another table of the same bytes");
        let fills = |store| fills_its_pages(&store);
        assert!(fills(0x4000..0xc000) && !fills(store.clone()) && !fills(0x2800..0x3000));
    }
}
