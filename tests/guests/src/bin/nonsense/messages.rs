//! Messages that a guest must not be able to send: attacks 12 to 14, 20, 22, 25, and remappable format.

use guests::bare::dma::DmaBuffer;
use guests::bare::{apic, poke, vector};

use crate::Attacker;

/// The vector in the messages that are wrong otherwise.
const VECTOR: u32 = vector::FIRST as u32;
/// Slots that these attacks use: each message in a slot of its own, for a slot that was raised while it was wrong may send when
/// it is made right.
const FIRST_SLOT: u16 = 200;

/// A message to this address would change it.
static VICTIM: DmaBuffer<8> = DmaBuffer::new();
const UNTOUCHED: u64 = 0x5a5a_5a5a_a5a5_a5a5;

/// Tries all of them.
pub fn all(attacker: &mut Attacker) {
    let own = apic::message_address(apic::id());
    let mut next = FIRST_SLOT;
    let mut wrong = |attacker: &mut Attacker, what: &str, message: [u32; 3]| {
        raise(attacker, next, what, message);
        next += 1;
    };
    for mode in 2..8 {
        wrong(attacker, "delivery mode", [own, 0, mode << 8 | VECTOR]);
    }
    for exception in [0, 2, 8, 13, 14, 15] {
        wrong(attacker, "vector below 16", [own, 0, exception]);
    }
    for bit in [11, 12, 13, 15, 16, 31] {
        wrong(attacker, "data bit", [own, 0, 1 << bit | VECTOR]);
    }
    for destination in [apic::id() + 1, 0x7f, 0xfe, 0xff] {
        wrong(attacker, "foreign destination", [apic::message_address(destination), 0, VECTOR]);
    }
    for members in [0, 2, 3, 0xf0, 0xff].into_iter().filter(|&members| members != 1 << apic::id()) {
        wrong(attacker, "logical destination", [0xfee0_0004 | members << 12, 0, VECTOR]);
        wrong(attacker, "logical destination, redirected", [0xfee0_000c | members << 12, 0, VECTOR]);
    }
    // Handle 14:0 in bits 19:5, handle 15 in bit 2, SHV in bit 3, format in bit 4 (VT-d 5.1.2.2).
    for handle in [0, 1, 2, 0x10, 0xff, 0x7fff] {
        wrong(attacker, "remappable format", [0xfee0_0010 | handle << 5, 0, 0]);
        wrong(attacker, "remappable format with subhandle", [0xfee0_0018 | handle << 5, 0, handle]);
        wrong(attacker, "remappable format, upper handles", [0xfee0_0014 | handle << 5, 0, 0]);
    }
    for address in [0, 0x1000, 0xfed9_0000, 0xfec0_0000, 0xfef0_0000, 0xfed0_0000, 0xffff_fffc, 0x7ee0_0000] {
        wrong(attacker, "address outside of the window", [address, 0, VECTOR]);
    }
    for bit in [0, 1, 5, 8, 11] {
        wrong(attacker, "reserved address bit", [own | 1 << bit, 0, VECTOR]);
    }
    for high in [1, 0x8000_0000, 0xffff_ffff] {
        wrong(attacker, "upper half of the address", [own, high, VECTOR]);
    }
    VICTIM.write(0, UNTOUCHED);
    wrong(attacker, "address in memory", [VICTIM.address() as u32, 0, 0x1234_5678]);
    if VICTIM.read(0) != UNTOUCHED {
        attacker.error(format_args!("a message was written to memory"));
    }
    attacker.check_good();
    changed_while_unmasked(attacker, next);
    forged_pasid(attacker, next + 1);
    attacker.check_good();
}

fn raise(attacker: &mut Attacker, slot: u16, what: &str, [lo, hi, data]: [u32; 3]) {
    attacker.silently(format_args!("{what}: {hi:#x} {lo:#x} {data:#x}"), |attacker| {
        attacker.program(slot, [lo, hi, data, 0]);
        attacker.fire(slot);
        let read = [0, 1, 2].map(|n| attacker.dword(slot, n));
        if read != [lo, hi, data] {
            attacker.error(format_args!("slot {slot} reads {read:x?}, not what was written"));
        }
    });
}

/// Attack 20: a good message turns bad, dword by dword, while the slot is unmasked.
fn changed_while_unmasked(attacker: &mut Attacker, slot: u16) {
    attacker.program(slot, Attacker::good_message(vector::FIRST));
    for (offset, value) in [(8, 0x0430), (0, 0xfee0_0010), (4, 1), (0, 0)] {
        attacker.silently(format_args!("changed while unmasked: {value:#x} at {offset}"), |attacker| {
            let at = attacker.slot_address(slot);
            // SAFETY: a slot of the device's store.
            attacker.faulted += u32::from(unsafe { poke::store(at + offset, 4, value) }.is_some());
            attacker.fire(slot);
        });
    }
}

/// Attack 22: nobody gave the guest a PASID, so none may stay in a slot. The message is wrong besides, lest it be sent.
fn forged_pasid(attacker: &mut Attacker, slot: u16) {
    attacker.silently(format_args!("forged PASID"), |attacker| {
        attacker.program(slot, [0, 0, 0, 0xfffff << 12 | 1 << 3]);
        let control = attacker.dword(slot, 3);
        if control & !0b11 != 0 {
            attacker.error(format_args!("a forged PASID stays: {control:#x}"));
        }
        attacker.fire(slot);
    });
}
