//! Stores of every width and kind: attacks 15 to 18 and 21.

use core::fmt;

use guests::bare::poke::{self, Direction, Odd};
use guests::random::Random;
use guests::store_image::{self, BYTES, StoreImage};

use crate::{Attacker, PAGE};

/// Where the image's slots begin: they lie across a page's end, at slot 256.
const FIRST_SLOT: u16 = 252;
/// MOVs at random places.
const POKES: usize = 300;
/// Dwords that a string instruction writes.
const STRING: u64 = 12;

/// Tries all of them.
pub fn all(attacker: &mut Attacker) {
    let mut window = Window { base: attacker.slot_address(FIRST_SLOT), image: StoreImage::new() };
    for slot in FIRST_SLOT..FIRST_SLOT + store_image::SLOTS as u16 {
        attacker.program(slot, [0, 0, 0, 1]);
    }
    attacker.silently(format_args!("MOV at random places"), |attacker| window.random_moves(attacker));
    attacker.silently(format_args!("string instructions"), |attacker| window.strings(attacker));
    attacker.silently(format_args!("read-modify-write and SSE"), |attacker| window.odd(attacker));
    attacker.check_good();
    last_slot(attacker);
    attacker.check_good();
}

/// Some slots, and what they must read as.
struct Window {
    base: u64,
    image: StoreImage,
}

impl Window {
    fn random_moves(&mut self, attacker: &mut Attacker) {
        let mut random = Random::new(15 + attacker.seed);
        for _ in 0..POKES {
            let width = 1 << (random.next() % 4);
            let offset = random.next() as usize % (BYTES - width + 1);
            let value = random.next();
            // SAFETY: a slot of the device's store.
            match unsafe { poke::store(self.base + offset as u64, width, value) } {
                None => self.image.write(offset, width, value),
                Some(_) => attacker.faulted += 1,
            }
            if !self.check(attacker, format_args!("{width} bytes at {offset:#x}")) {
                return;
            }
        }
    }

    fn strings(&mut self, attacker: &mut Attacker) {
        for (n, direction) in [Direction::Up, Direction::Down].into_iter().enumerate() {
            let value = 0x1111_1111 * (n as u32 + 1);
            let first = Self::first(direction);
            // SAFETY: slots of the device's store.
            let fault = unsafe { poke::rep_stosd(self.base + first, STRING, value, direction) };
            self.string(attacker, fault, direction, |_| value);
            self.check(attacker, format_args!("REP STOSD {direction:?}"));

            for k in 0..STRING {
                PAGE.write(k as usize / 2 * 8, k << 32 | k | 0x7000_0000);
            }
            let source = PAGE.address() + if direction == Direction::Up { 0 } else { (STRING - 1) * 4 };
            let word = |k: u64| {
                let place = if direction == Direction::Up { k } else { STRING - 1 - k };
                (PAGE.read(place as usize / 2 * 8) >> (place % 2 * 32)) as u32
            };
            // SAFETY: slots of the device's store.
            let fault = unsafe { poke::rep_movsd(self.base + first, source, STRING, direction) };
            self.string(attacker, fault, direction, word);
            self.check(attacker, format_args!("REP MOVSD {direction:?}"));
        }
    }

    /// Where a string begins.
    const fn first(direction: Direction) -> u64 {
        match direction {
            Direction::Up => 16,
            Direction::Down => 16 + (STRING - 1) * 4,
        }
    }

    fn string(&mut self, attacker: &mut Attacker, fault: Option<u8>, direction: Direction, word: impl Fn(u64) -> u32) {
        if fault.is_some() {
            attacker.faulted += 1;
            return;
        }
        for k in 0..STRING {
            let at = match direction {
                Direction::Up => Self::first(direction) + k * 4,
                Direction::Down => Self::first(direction) - k * 4,
            };
            self.image.write(at as usize, 4, word(k).into());
        }
    }

    /// Each at an address of a slot, and at one that is not aligned.
    fn odd(&mut self, attacker: &mut Attacker) {
        for odd in Odd::ALL {
            for offset in [0x20, 0x2c, 0x36, 0x3e] {
                let value = 0x0102_0304;
                let old = self.image.read(offset, 8);
                // SAFETY: a slot of the device's store.
                let fault = unsafe { odd.execute(self.base + offset as u64, value) };
                attacker.cases += 1;
                if fault.is_some() {
                    attacker.faulted += 1;
                } else if let Some((result, width)) = odd.result(old, value) {
                    self.image.write(offset, width, result);
                } else {
                    self.adopt(attacker);
                }
                self.check(attacker, format_args!("{odd:?} at {offset:#x}"));
            }
        }
    }

    /// Takes over what is there.
    fn adopt(&mut self, attacker: &Attacker) {
        for n in 0..StoreImage::dwords() {
            let read = attacker.dword(FIRST_SLOT, n as u64);
            self.image.write(n * 4, 4, read.into());
        }
    }

    /// Whether the slots read as they must; if not, that is told once, and taken over.
    fn check(&mut self, attacker: &mut Attacker, what: fmt::Arguments) -> bool {
        let differs = |n: &usize| attacker.dword(FIRST_SLOT, *n as u64) != self.image.dword(*n);
        let Some(n) = (0..StoreImage::dwords()).find(differs) else { return true };
        let read = attacker.dword(FIRST_SLOT, n as u64);
        attacker.error(format_args!("{what}: dword {n} reads {read:#x}, not {:#x}", self.image.dword(n)));
        self.adopt(attacker);
        false
    }
}

/// Attacks 16 and 17: the last slot, and what lies beyond it. A fault is an answer.
fn last_slot(attacker: &mut Attacker) {
    let slots = attacker.device.dsa.ims_slots();
    let last = (slots - 1) as u16;
    let end = attacker.slot_address(last) + 16;
    attacker.silently(format_args!("beyond the last slot"), |attacker| {
        attacker.program(last, [0x11, 0x22, 0x33, 1]);
        for (address, width) in [(end - 1, 2), (end - 2, 4), (end - 4, 8), (end, 4), (end + 2, 8), (end + 4096, 4)] {
            // SAFETY: at the end of the device's BAR.
            let fault = unsafe { poke::store(address, width, 0xffff_ffff_ffff_ffff) };
            attacker.faulted += u32::from(fault.is_some());
        }
        let read = [0, 1, 2].map(|n| attacker.dword(last, n));
        if read != [0x11, 0x22, 0x33] {
            attacker.error(format_args!("the last slot reads {read:x?}"));
        }
        attacker.fire(last);
    });
}
