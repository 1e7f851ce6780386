use proptest::prelude::*;

use super::*;

/// A guest of the simulation: it runs for `work` ticks, then sleeps for `sleep`, and so on; without sleep it always can run.
#[derive(Clone, Copy, Debug)]
struct Load {
    shares: Shares,
    work: u64,
    sleep: u64,
}

const fn busy(shares: Shares) -> Load {
    Load { shares, work: u64::MAX, sleep: 0 }
}

fn weight(weight: u16) -> Shares {
    Shares::new(weight, None).unwrap()
}

#[derive(Clone, Debug)]
struct Guest {
    load: Load,
    /// Ticks that it ran.
    got: u64,
    left: u64,
    /// When it wakes; `None` while it can run.
    asleep: Option<u64>,
    /// The longest time that it could run and did not.
    waited: u64,
    since: u64,
}

/// A processor with guests, and a clock of its own.
struct Simulation {
    now: u64,
    queue: RunQueue,
    guests: Vec<Guest>,
}

impl Simulation {
    fn new(loads: &[Load]) -> Self {
        let mut queue = RunQueue::default();
        for (id, load) in (0..).zip(loads) {
            queue.add(GuestId(id), load.shares, 0);
            queue.set_ready(GuestId(id), true);
        }
        let guest = |&load: &Load| Guest { load, got: 0, left: load.work, asleep: None, waited: 0, since: 0 };
        Self { now: 0, queue, guests: loads.iter().map(guest).collect() }
    }

    /// Wakes who is to wake by now. Returns whether one of them comes before `running`.
    fn wake(&mut self, running: Option<usize>) -> bool {
        let mut preempts = false;
        for (n, guest) in self.guests.iter_mut().enumerate() {
            if guest.asleep.is_some_and(|until| until <= self.now) {
                (guest.asleep, guest.left, guest.since) = (None, guest.load.work, self.now);
                self.queue.set_ready(id(n), true);
                preempts |= running.is_some_and(|running| self.queue.preempts(id(n), id(running)));
            }
        }
        preempts
    }

    fn run(&mut self, time: u64) {
        while self.now < time {
            self.wake(None);
            let sleeping = self.guests.iter().filter_map(|guest| guest.asleep).min();
            match self.queue.next(self.now) {
                Some(GuestId(n)) => self.turn(n.into(), sleeping),
                None => self.now = sleeping.into_iter().chain(self.queue.next_event()).min().unwrap().max(self.now + 1),
            }
        }
    }

    fn turn(&mut self, n: usize, sleeping: Option<u64>) {
        let began = self.now;
        let guest = &mut self.guests[n];
        guest.waited = guest.waited.max(began - guest.since);
        let mut end = self.queue.turn_end(id(n), began, sleeping);
        while self.now < end {
            let next = self.guests.iter().filter_map(|guest| guest.asleep).filter(|&at| at > self.now).min();
            let until = next.map_or(end, |next| next.min(end));
            let guest = &mut self.guests[n];
            let ran = guest.left.min(until - self.now);
            (guest.got, self.now) = (guest.got + ran, self.now + ran);
            self.queue.charge(id(n), ran);
            if guest.load.sleep != 0 {
                guest.left -= ran;
                if guest.left == 0 {
                    guest.asleep = Some(self.now + guest.load.sleep);
                    return self.queue.set_ready(id(n), false);
                }
            }
            if self.wake(Some(n)) {
                end = end.min(self.now.max(began + LEAST_TURN));
            }
        }
        self.guests[n].since = self.now;
    }
}

fn id(n: usize) -> GuestId {
    GuestId(n as u16)
}

fn simulate(loads: &[Load], time: u64) -> Vec<Guest> {
    let mut simulation = Simulation::new(loads);
    simulation.run(time);
    simulation.guests
}

#[test]
fn those_that_always_can_run_get_the_same_share() {
    for count in 1..=9u64 {
        let time = 200 * LATENCY;
        for guest in simulate(&vec![busy(Shares::default()); count as usize], time) {
            assert!(guest.got.abs_diff(time / count) <= ROUND / count + LEAST_TURN, "{count}: {guest:?}");
            assert!(guest.waited <= ROUND, "{guest:?}");
        }
    }
}

#[test]
fn a_timer_that_fires_without_end_leaves_the_others_their_turns() {
    let mut queue = RunQueue::default();
    queue.add(GuestId(0), Shares::default(), 0);
    queue.set_ready(GuestId(0), true);
    assert_eq!(queue.turn_end(GuestId(0), 1000, Some(0)), 1000 + LEAST_TURN);
    assert_eq!(queue.turn_end(GuestId(0), 1000, Some(1000 + ROUND / 2)), 1000 + ROUND / 2);
    assert_eq!(queue.turn_end(GuestId(0), 1000, None), 1000 + ROUND);
    assert_eq!(queue.turn_end(GuestId(0), u64::MAX - 5, None), u64::MAX);
}

/// Without the limit, one that had slept for a day would run for a day.
#[test]
fn a_guest_that_has_slept_long_is_ahead_by_its_part_of_the_head_start_and_no_more() {
    let sleeper = Load { shares: Shares::default(), work: 50 * ROUND, sleep: 100 * ROUND };
    let guests = simulate(&[busy(Shares::default()), sleeper], 1000 * ROUND);
    assert!(guests[0].waited <= LATENCY, "{:?}", guests[0]);
}

#[test]
fn a_guest_with_many_virtual_processors_is_one_guest() {
    let mut queue = RunQueue::default();
    (0..8).for_each(|_| queue.add(GuestId(0), Shares::default(), 0));
    queue.add(GuestId(1), Shares::default(), 0);
    assert_eq!(queue.accounts.len(), 2);
}

#[test]
fn a_virtual_processor_that_starts_late_does_not_keep_its_siblings_waiting() {
    let mut queue = RunQueue::default();
    queue.add(GuestId(0), Shares::default(), 0);
    assert_eq!(queue.next_sibling(GuestId(0), [(0, 5_000)].into_iter()), Some(0));
    // The first one sleeps; another one starts.
    let late = queue.wake_sibling(GuestId(0), 0);
    assert_eq!(late, 5_000);
    assert_eq!(queue.next_sibling(GuestId(0), [(0, 5_100), (1, late)].into_iter()), Some(1));
    assert_eq!(queue.wake_sibling(GuestId(0), 7_000), 7_000, "what it has run it has run");
    assert_eq!(queue.next_sibling(GuestId(0), core::iter::empty()), None);
}

#[test]
fn a_cap_holds_even_if_nobody_else_can_run() {
    for percent in [1, 25, 99, 100] {
        let time = 100 * CAP_PERIOD;
        let got = simulate(&[busy(Shares::new(256, Some(percent)).unwrap())], time)[0].got;
        assert!(got.abs_diff(time / 100 * u64::from(percent)) <= time / 100, "{percent}: {got} of {time}");
    }
}

#[test]
fn what_a_capped_guest_leaves_is_the_others() {
    let time = 100 * CAP_PERIOD;
    let capped = Shares::new(10_000, Some(10)).unwrap();
    let guests = simulate(&[busy(capped), busy(weight(1))], time);
    assert!(guests[1].got.abs_diff(time / 100 * 90) <= time / 100, "{guests:?}");
}

/// What a guest takes from others' turns is charged to it, and ends at a part of its share.
#[test]
fn interrupts_of_all_guests_together_take_a_twentieth_of_a_turn_and_are_charged() {
    for hostile in 1..=20u16 {
        let mut queue = RunQueue::default();
        (0..=hostile).for_each(|n| queue.add(GuestId(n), Shares::default(), 0));
        queue.set_ready(GuestId(0), true);
        let (mut now, mut interrupting) = (0, 0);
        // Each of them interrupts as soon as it may, for 500 ticks.
        while now < 100 * INTERRUPTION_PERIOD {
            while queue.take_unmuted(now).is_some() {}
            for n in 1..=hostile {
                if !queue.is_muted(GuestId(n)) {
                    queue.charge_interruption(GuestId(n), 500, now);
                    (now, interrupting) = (now + 500, interrupting + 500);
                }
            }
            now += 500;
        }
        assert!(interrupting <= now / 20 + 500 * 101 * u64::from(hostile), "{hostile}: {interrupting} of {now}");
        assert!(interrupting >= now / 50, "it may take something: {interrupting} of {now}");
        // Without a choice no period of a cap begins, so that is all.
        let charged: u64 = queue.accounts.iter().map(|account| account.used).sum();
        assert_eq!(charged, interrupting);
        assert_eq!(queue.next_event().is_some(), queue.accounts.iter().any(|account| account.is_muted));
    }
}

#[test]
fn a_muted_guest_is_heard_again_after_the_period() {
    let mut queue = RunQueue::default();
    queue.add(GuestId(7), Shares::default(), 0);
    assert!(!queue.charge_interruption(GuestId(7), INTERRUPTION_LIMIT, 10), "as much as it may");
    assert!(queue.charge_interruption(GuestId(7), 1, 10) && queue.is_muted(GuestId(7)));
    assert!(
        !queue.charge_interruption(GuestId(7), 1, 2 * INTERRUPTION_PERIOD),
        "it is muted already, and nobody has said that it is heard again"
    );
    assert_eq!((queue.next_event(), queue.take_unmuted(INTERRUPTION_PERIOD - 1)), (Some(INTERRUPTION_PERIOD), None));
    assert_eq!(queue.take_unmuted(INTERRUPTION_PERIOD), Some(GuestId(7)));
    assert!(!queue.is_muted(GuestId(7)) && queue.take_unmuted(u64::MAX).is_none());
}

#[test]
fn a_guest_that_was_unmuted_while_nobody_ran_is_counted_anew() {
    let mut queue = RunQueue::default();
    queue.add(GuestId(7), Shares::default(), 0);
    assert!(queue.charge_interruption(GuestId(7), INTERRUPTION_LIMIT + 1, 10));
    assert_eq!((queue.unmute(1_000), queue.unmute(1_000)), (Some(GuestId(7)), None));
    assert_eq!((queue.is_muted(GuestId(7)), queue.next_event()), (false, None));
    for period in 1..10 {
        let now = 1_000 + period * INTERRUPTION_PERIOD;
        assert!(!queue.charge_interruption(GuestId(7), INTERRUPTION_LIMIT / 2, now), "in a period of its own");
    }
    assert!(queue.charge_interruption(GuestId(7), INTERRUPTION_LIMIT, 1_000 + 9 * INTERRUPTION_PERIOD + 1));
    assert_eq!(queue.next_event(), Some(1_000 + 10 * INTERRUPTION_PERIOD));
}

/// Two can run, one has a turn of half a round, and then four wake.
#[test]
fn a_guest_that_had_a_long_turn_does_not_wait_for_as_long_a_turn_of_each_that_wakes() {
    let sleepers = [(7725940, 7976115), (1732948, 6697743), (4938559, 6235392), (2821945, 680901), (791117, 7706984)];
    let load = |(work, sleep)| Load { shares: Shares::default(), work, sleep };
    let loads = [vec![busy(Shares::default())], sleepers.map(load).to_vec()].concat();
    for guest in simulate(&loads, 400 * LATENCY) {
        assert!(guest.waited <= LATENCY + 6 * LEAST_TURN, "{guest:?}");
    }
}

#[test]
fn virtual_time_does_not_end() {
    let mut queue = RunQueue::default();
    for id in [1, 2] {
        queue.add(GuestId(id), weight(1), 0);
    }
    queue.set_ready(GuestId(1), true);
    for day in 0..1000 {
        queue.charge(GuestId(1), 1 << 44);
        assert_eq!(queue.next(day << 44), Some(GuestId(1)));
    }
    queue.set_ready(GuestId(2), true);
    let mut ran = [0; 2];
    for turn in 0..1000 {
        let GuestId(next) = queue.next((1000 << 44) + turn * 1_000_000).unwrap();
        queue.charge(GuestId(next), 1_000_000);
        ran[usize::from(next) - 1] += 1;
    }
    assert!(ran[0] >= 498 && ran[1] >= 498, "{ran:?}");
}

/// A capped guest with a large weight would make up for what its cap kept from it, whenever a period begins.
#[test]
fn a_guest_whose_cap_is_renewed_does_not_keep_others_waiting() {
    let capped = Shares::new(10_000, Some(30)).unwrap();
    let guests = simulate(&[busy(Shares::default()), busy(capped)], 100 * CAP_PERIOD);
    assert!(guests[0].waited <= 10 * LATENCY, "{:?}", guests[0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn shares_are_as_the_weights_within_a_hundredth(weights in prop::collection::vec(1..=1000u16, 1..8)) {
        let all: u64 = weights.iter().map(|&one| u64::from(one)).sum();
        let time = 4000 * LATENCY;
        let loads: Vec<_> = weights.iter().map(|&one| busy(weight(one))).collect();
        for guest in simulate(&loads, time) {
            let due = time / all * u64::from(guest.load.shares.weight());
            prop_assert!(guest.got.abs_diff(due) <= time / 100, "{guest:?}: {due}");
            // The smallest shares are served by the least turns.
            let wait = LATENCY.max(ROUND + LEAST_TURN * all / u64::from(guest.load.shares.weight()));
            prop_assert!(guest.waited <= wait + LEAST_TURN * 8, "{guest:?}: {wait}");
        }
    }

    #[test]
    fn no_guest_starves_whatever_the_others_do(
        loads in prop::collection::vec((1..8 * ROUND, 0..8 * ROUND), 1..8),
    ) {
        let load = |(work, sleep)| Load { shares: Shares::default(), work, sleep: sleep + 1 };
        let loads = [vec![busy(Shares::default())], loads.into_iter().map(load).collect()].concat();
        let (time, count) = (400 * LATENCY, loads.len() as u64);
        let guests = simulate(&loads, time);
        prop_assert!(guests[0].got * 100 >= time / count * 90, "{:?}", guests[0]);
        for guest in &guests {
            prop_assert!(guest.waited <= LATENCY + count * LEAST_TURN, "{guest:?} of {count}");
        }
    }
}
