use proptest::prelude::*;

use super::*;

/// A virtual processor of the simulation: it runs for `work` ticks, then sleeps for `sleep`, and so on; without sleep it always can run.
#[derive(Clone, Copy, Debug)]
struct Load {
    work: u64,
    sleep: u64,
}

#[derive(Debug)]
struct Simulated {
    load: Load,
    /// What the policy counts.
    ran: u64,
    /// What it really got.
    got: u64,
    left: u64,
    /// When it wakes; `None` while it can run.
    asleep: Option<u64>,
    /// The longest time between a wake-up, or the end of a turn, and the next turn.
    waited: u64,
    since: u64,
}

/// Runs the loads on one processor for `time` ticks by the policy.
fn simulate(loads: &[Load], time: u64) -> Vec<Simulated> {
    let start = |&load: &Load| Simulated { load, ran: 0, got: 0, left: load.work, asleep: None, waited: 0, since: 0 };
    let mut all: Vec<Simulated> = loads.iter().map(start).collect();
    let mut now = 0;
    while now < time {
        for n in 0..all.len() {
            if all[n].asleep.is_some_and(|until| until <= now) {
                let others = all.iter().enumerate().filter(|(other, one)| *other != n && one.asleep.is_none());
                if let Some(least) = others.map(|(_, one)| one.ran).min() {
                    all[n].ran = wake(all[n].ran, least);
                }
                (all[n].asleep, all[n].left, all[n].since) = (None, all[n].load.work, now);
            }
        }
        let sleeping = all.iter().filter_map(|one| one.asleep).min();
        let ready = all.iter().enumerate().filter(|(_, one)| one.asleep.is_none()).map(|(n, one)| (n, one.ran));
        let Some(n) = next(ready) else {
            now = sleeping.unwrap();
            continue;
        };
        let one = &mut all[n];
        one.waited = one.waited.max(now - one.since);
        let end = slice_end(now, sleeping);
        let ran = if one.load.sleep == 0 { end - now } else { one.left.min(end - now) };
        (one.ran, one.got, now) = (one.ran + ran, one.got + ran, now + ran);
        one.since = now;
        if one.load.sleep != 0 {
            one.left -= ran;
            if one.left == 0 {
                one.asleep = Some(now + one.load.sleep);
            }
        }
    }
    all
}

const BUSY: Load = Load { work: u64::MAX, sleep: 0 };

#[test]
fn those_that_always_can_run_get_the_same_share() {
    for count in 1..=9u64 {
        let time = 200 * SLICE;
        for one in simulate(&vec![BUSY; count as usize], time) {
            assert!(one.got.abs_diff(time / count) <= SLICE, "{count}: {one:?}");
            assert!(one.waited <= (count - 1) * SLICE, "{one:?}");
        }
    }
}

#[test]
fn a_timer_that_fires_without_end_leaves_the_others_their_turns() {
    assert_eq!(slice_end(1000, Some(0)), 1000 + MIN_SLICE);
    assert_eq!(slice_end(1000, Some(1000 + SLICE / 2)), 1000 + SLICE / 2);
    assert_eq!(slice_end(1000, Some(u64::MAX)), 1000 + SLICE);
    assert_eq!(slice_end(u64::MAX - 5, None), u64::MAX);
}

/// One that had slept for a day would run for a day.
#[test]
fn who_has_slept_long_is_ahead_by_the_head_start_and_no_more() {
    let all = simulate(&[BUSY, Load { work: 50 * SLICE, sleep: 100 * SLICE }], 1000 * SLICE);
    assert!(all[0].waited <= SLICE + SLEEPER_CREDIT, "{:?}", all[0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nobody_starves_whatever_the_others_do(
        loads in prop::collection::vec((1..8 * SLICE, 0..8 * SLICE), 1..8),
    ) {
        let loads: Vec<_> = loads.into_iter().map(|(work, sleep)| Load { work, sleep: sleep + 1 }).collect();
        let all = [&[BUSY][..], &loads].concat();
        let time = 400 * SLICE;
        let seen = simulate(&all, time);
        let count = all.len() as u64;
        // A head start of each of the others, each time that it wakes, is what the busy one may lose beside its share.
        prop_assert!(seen[0].got >= time / count - count * (SLICE + SLEEPER_CREDIT), "{:?}", seen[0]);
        for one in &seen {
            prop_assert!(one.waited <= 2 * count * SLICE, "{one:?} of {count}");
        }
    }
}
