//! Messages that masks hold back, and messages that are sent when the masks are gone (PCIe 6.1.4, 7.7.2).

use crate::function::{COUNTS, Vf, expect};

/// Entries that are masked and raised: from different words of pending bits where the table has so many.
const ENTRIES: [u16; 4] = [1, 31, 32, 63];

pub fn all(vf: &mut Vf) {
    each_by_its_own_mask(vf);
    all_by_the_function_mask(vf);
    all_by_disabling(vf);
    retargeted_while_masked(vf);
}

fn each_by_its_own_mask(vf: &mut Vf) {
    let last = vf.vectors - 1;
    for entry in ENTRIES.into_iter().chain([last]) {
        vf.set_mask(entry, true);
        expect(!vf.is_pending(entry), "pending, and nothing was raised");
        vf.raise_held(entry);
        vf.raise_held(entry);
        expect(vf.is_pending(entry), "not pending");
        expect(vf.read(entry)[3] == 1, "vector control has more than the mask");
        vf.expect_from(&[entry], |vf| vf.set_mask(entry, false));
        expect(!vf.is_pending(entry), "still pending");
    }
}

fn all_by_the_function_mask(vf: &mut Vf) {
    vf.set_mask(2, true);
    vf.set_msix(true, true);
    for entry in ENTRIES {
        vf.raise_held(entry);
    }
    vf.raise_held(2);
    expect(ENTRIES.iter().all(|&entry| vf.is_pending(entry) && vf.read(entry)[3] == 0), "not pending, or masked");
    // A mask bit that changes meanwhile counts when the function mask is gone.
    vf.set_mask(31, true);
    vf.set_mask(3, true);
    vf.set_mask(3, false);
    vf.expect_from(&[1, 32, 63], |vf| vf.set_msix(true, false));
    expect(vf.is_pending(31) && vf.is_pending(2) && !vf.is_pending(1), "the wrong ones are pending");
    vf.expect_from(&[31], |vf| vf.set_mask(31, false));
    vf.expect_from(&[2], |vf| vf.set_mask(2, false));
}

fn all_by_disabling(vf: &mut Vf) {
    let before = [1, 2].map(|entry| vf.read(entry));
    vf.set_msix(false, false);
    vf.raise_held(1);
    expect([1, 2].map(|entry| vf.read(entry)) == before, "disabling changed the table");
    vf.expect_from(&[1], |vf| vf.set_msix(true, false));
    vf.fire(1..3);
}

/// What is pending goes where the entry leads when it is unmasked.
fn retargeted_while_masked(vf: &mut Vf) {
    vf.set_mask(5, true);
    vf.raise_held(5);
    let [_, _, data, _] = vf.read(5);
    vf.write_data(5, data + 1);
    let before = COUNTS.strays();
    // The vector of its neighbour, which nobody raises.
    vf.expect_from(&[6], |vf| vf.set_mask(5, false));
    expect(COUNTS.strays() == before, "it went to the old vector as well");
    vf.write_data(5, data);
    vf.fire(5..6);
}
