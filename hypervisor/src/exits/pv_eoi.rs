//! Paravirtual EOI: the guest ends an interrupt by a bit in its memory in place of an EOI, without an exit, as KVM does
//! (`KVM_FEATURE_PV_EOI`).
//!
//! The hypervisor sets the bit when it delivers an interrupt and none waits behind it. The guest clears the bit at the interrupt's end. The
//! emulated local APIC reads the bit when it next matters: when an interrupt waits for delivery, and before the guest's accesses to the
//! APIC. If an interrupt has come to wait meanwhile, the hypervisor takes the bit back. Then the guest ends the interrupt by an exit, at
//! which the waiting one is delivered.

use hcall_abi::call::PV_EOI_PENDING;

use crate::{addr::Gpa, memory::Ram, vdev::x2apic::X2Apic};

/// The interrupt that may end without an exit: the one in service with the highest priority.
#[derive(Clone, Copy, Debug, Default)]
pub struct PvEoi {
    /// The address of its bit.
    offered: Option<Gpa>,
}

impl PvEoi {
    /// Whether an interrupt may end without an exit.
    pub const fn is_offered(&self) -> bool {
        self.offered.is_some()
    }

    /// Offers the paravirtual EOI for the interrupt that is delivered now, if none waits behind it. Bytes outside of the guest's memory
    /// count as none.
    pub fn offer(&mut self, at: Gpa, apic: &X2Apic, ram: &Ram) {
        if apic.has_requests() {
            return;
        }
        self.offered = ram.swap_u32(at, PV_EOI_PENDING).is_ok().then_some(at);
    }

    /// Changes the address for paravirtual EOI to `now`, or to none. The guest may use the old bytes for anything, because they are not
    /// written any more.
    pub fn leave_for(&mut self, now: Option<Gpa>, apic: &mut X2Apic, ram: &Ram) {
        if self.offered != now
            && let Some(at) = self.offered.take()
        {
            take_back(at, apic, ram);
        }
    }

    /// Ends the interrupt if the guest has ended it; takes the offer back if another one waits.
    #[inline]
    pub fn settle(&mut self, apic: &mut X2Apic, ram: &Ram) {
        if let Some(at) = self.offered {
            self.offered = look(at, apic, ram);
        }
    }
}

/// The offer from now on.
#[inline(never)]
fn look(at: Gpa, apic: &mut X2Apic, ram: &Ram) -> Option<Gpa> {
    if take_back(at, apic, ram) || apic.has_requests() {
        return None;
    }
    ram.swap_u32(at, PV_EOI_PENDING).is_ok().then_some(at)
}

/// Takes the bit back, or ends the interrupt if the guest has cleared the bit. Returns whether the guest has.
#[inline]
fn take_back(at: Gpa, apic: &mut X2Apic, ram: &Ram) -> bool {
    let has_ended = ram.swap_u32(at, 0).is_ok_and(|word| word & PV_EOI_PENDING == 0);
    if has_ended {
        apic.end();
    }
    has_ended
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::{memory::testing::TestFrames, vdev::x2apic::Accepted};

    const AT: Gpa = Gpa::new(0x1000);
    const ELSEWHERE: Gpa = Gpa::new(0x1ffc);
    const FIRST: u8 = 0x50;
    const HIGHER: u8 = 0x61;
    const LOWER: u8 = 0x41;

    /// What the guest has where its bytes were.
    const MINE: [u8; 4] = [0x55, 0x66, 0x77, 0x88];

    struct Fixture {
        apic: X2Apic,
        eoi: PvEoi,
        ram: Ram,
        /// Where the guest has its bytes.
        at: Option<Gpa>,
        /// What the memory is of.
        _frames: TestFrames,
    }

    impl Fixture {
        fn new() -> Self {
            let frames = TestFrames::default();
            let ram = Ram::alloc(&frames, 2 << 20).unwrap();
            let mut apic = X2Apic::new(0, true);
            apic.write(0x80f, 0x1ff, 0).unwrap();
            Self { apic, eoi: PvEoi::default(), ram, at: Some(AT), _frames: frames }
        }

        /// Delivers what waits, as the run loop does.
        fn deliver(&mut self) -> Option<u8> {
            self.eoi.settle(&mut self.apic, &self.ram);
            let vector = self.apic.pending()?;
            assert!(self.apic.begin(vector));
            if let Some(at) = self.at {
                self.eoi.offer(at, &self.apic, &self.ram);
            }
            Some(vector)
        }

        fn comes(&mut self, vector: u8) -> Option<u8> {
            self.apic.accept(vector);
            self.deliver()
        }

        /// The guest's handler ends. Whether that took an exit.
        fn ends(&mut self) -> bool {
            let mut word = [0; 4];
            if let Some(at) = self.at {
                self.ram.read(at, &mut word).unwrap();
                self.ram.write(at, &[0; 4]).unwrap();
            }
            let exits = word == [0; 4];
            if exits {
                self.eoi.settle(&mut self.apic, &self.ram);
                self.apic.end();
            }
            exits
        }

        /// The guest has its bytes elsewhere from now on, or none, and uses the others for something else.
        fn moves(&mut self, at: Option<Gpa>) {
            self.eoi.leave_for(at, &mut self.apic, &self.ram);
            let own = [AT, ELSEWHERE].into_iter().filter(|other| at != Some(*other));
            own.for_each(|other| self.ram.write(other, &MINE).unwrap());
            if let Some(at) = at.filter(|at| self.at != Some(*at)) {
                self.ram.write(at, &[0; 4]).unwrap();
            }
            self.at = at;
        }

        fn is_idle(&mut self) -> bool {
            self.eoi.settle(&mut self.apic, &self.ram);
            self.apic.ppr() == 0 && !self.eoi.is_offered()
        }
    }

    #[test]
    fn an_interrupt_that_comes_alone_ends_without_an_exit() {
        let mut fixture = Fixture::new();
        for _ in 0..3 {
            assert_eq!(fixture.comes(FIRST), Some(FIRST));
            assert!(!fixture.ends());
        }
        assert!(fixture.is_idle());
    }

    #[test]
    fn one_that_waits_behind_it_is_delivered_at_its_end() {
        let mut fixture = Fixture::new();
        fixture.comes(FIRST);
        assert_eq!(fixture.comes(LOWER), None);
        assert!(fixture.ends(), "the offer is taken back");
        assert_eq!(fixture.deliver(), Some(LOWER));
        assert!(!fixture.ends() && fixture.is_idle());
    }

    #[test]
    fn one_that_interrupts_it_ends_by_itself_and_the_other_after_it() {
        let mut fixture = Fixture::new();
        fixture.comes(FIRST);
        assert_eq!(fixture.comes(HIGHER), Some(HIGHER));
        assert!(!fixture.ends());
        assert!(fixture.ends(), "the bit was the other one's");
        assert!(fixture.is_idle());
    }

    #[test]
    fn two_that_wait_come_one_after_the_other() {
        let mut fixture = Fixture::new();
        fixture.apic.accept(LOWER);
        assert_eq!(fixture.comes(FIRST), Some(FIRST));
        assert!(fixture.ends(), "there was no offer");
        assert_eq!(fixture.deliver(), Some(LOWER));
        assert!(!fixture.ends() && fixture.is_idle());
    }

    #[test]
    fn bytes_that_were_given_up_are_the_guests_own_again() {
        for ended in [false, true] {
            let mut fixture = Fixture::new();
            fixture.comes(FIRST);
            if ended {
                assert!(!fixture.ends());
            }
            fixture.moves(None);
            // An interrupt that is in service still has its end before it, by an exit.
            let exits = !ended && fixture.ends();
            assert!(fixture.is_idle() && exits != ended);
            fixture.apic.accept(LOWER);
            fixture.eoi.settle(&mut fixture.apic, &fixture.ram);
            assert_eq!(fixture.apic.pending(), Some(LOWER), "what the bytes say is not about interrupts");
            let mut word = [0; 4];
            fixture.ram.read(AT, &mut word).unwrap();
            assert_eq!(word, MINE);
        }
    }

    #[test]
    fn bytes_that_are_named_again_go_on() {
        let mut fixture = Fixture::new();
        fixture.comes(FIRST);
        fixture.moves(Some(AT));
        assert!(!fixture.ends() && fixture.is_idle());
    }

    #[test]
    fn whatever_the_guest_writes_there_it_harms_its_own_interrupts_at_most() {
        let mut fixture = Fixture::new();
        fixture.comes(FIRST);
        fixture.apic.end();
        fixture.ram.write(AT, &[0xfe; 4]).unwrap();
        assert_eq!(fixture.comes(FIRST), Some(FIRST));
        fixture.ram.write(AT, &[0xff; 4]).unwrap();
        assert_eq!(fixture.comes(LOWER), None);
        fixture.apic.end();
        assert_eq!(fixture.deliver(), Some(LOWER));
    }

    #[test]
    fn an_address_that_is_not_the_guests_is_as_none() {
        let mut fixture = Fixture::new();
        fixture.apic.accept(FIRST);
        fixture.apic.begin(FIRST);
        fixture.eoi.offer(Gpa::new(2 << 20), &fixture.apic, &fixture.ram);
        assert!(!fixture.eoi.is_offered());
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Comes(u8),
        Ends,
        Exits,
        Moves(Option<Gpa>),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0x4..0x8u8, 0..2u8).prop_map(|(class, n)| Step::Comes(class << 4 | n)),
            4 => Just(Step::Ends),
            1 => Just(Step::Exits),
            1 => prop::sample::select(vec![None, Some(AT), Some(ELSEWHERE)]).prop_map(Step::Moves),
        ]
    }

    proptest! {
        #[test]
        fn every_interrupt_is_delivered_once_and_ends_in_its_turn(steps in prop::collection::vec(any_step(), 0..60)) {
            let mut fixture = Fixture::new();
            fixture.moves(Some(AT));
            let (mut waits, mut runs): (Vec<u8>, Vec<u8>) = Default::default();
            // Whatever is left over is delivered, and ends, in the end.
            let rest = core::iter::repeat_n([Step::Ends, Step::Exits], 2 * steps.len()).flatten();
            for step in steps.iter().copied().chain(rest) {
                match step {
                    Step::Comes(vector) => {
                        let merged = waits.contains(&vector);
                        prop_assert_eq!(fixture.apic.accept(vector), if merged { Accepted::Merged } else { Accepted::New });
                        waits.extend((!merged).then_some(vector));
                    }
                    Step::Ends if runs.pop().is_some() => drop(fixture.ends()),
                    Step::Ends | Step::Exits => {}
                    Step::Moves(at) => fixture.moves(at),
                }
                // As at each exit, one at a time, and as soon as nothing as high is in service.
                let highest = waits.iter().copied().max().filter(|vector| runs.last().is_none_or(|runs| runs >> 4 < vector >> 4));
                let delivers = matches!(step, Step::Comes(_) | Step::Exits);
                if delivers {
                    prop_assert_eq!(fixture.deliver(), highest);
                    waits.retain(|vector| highest != Some(*vector));
                    runs.extend(highest);
                }
            }
            prop_assert!(waits.is_empty() && runs.is_empty() && fixture.is_idle());
            for at in [AT, ELSEWHERE].into_iter().filter(|at| fixture.at != Some(*at)) {
                let mut word = [0; 4];
                fixture.ram.read(at, &mut word).unwrap();
                prop_assert_eq!(word, MINE);
            }
        }
    }
}
