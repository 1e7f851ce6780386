//! The states of a guest's life, and when it is started again. Nothing here touches hardware; times are ticks of the TSC.
//!
//! ```text
//! stopped, failed --start--> starting --made--> running --stop--> stopping --released--> stopped
//!        ^                   |      ^              |                                       |
//!        |             memory lacks |              +--it ends by itself--> stopping -------+--> starting, if it is to run again
//!        |                   v      |
//!        +--stop, tries over-- waiting --memory comes back
//! ```
#![forbid(unsafe_code)]

use hcall_abi::GuestState;

use crate::guest::options::Restart;

/// Ticks of the TSC from the release of what a guest held to its restart, after a life that was not short or after the first short one.
pub const FIRST_DELAY: u64 = 10_000_000;

/// Ticks of the TSC beyond which a life is no short one.
pub const SHORT_LIFE: u64 = 1_000_000_000;

/// Short lives in a row after which a guest is not restarted any more, but by a manager.
pub const SHORT_LIVES: u32 = 10;

/// How often a guest that lacks memory is made once more, each time when others have released theirs, before it has failed.
pub const MEMORY_TRIES: u32 = 10;

/// What somebody has to do for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Make it.
    Make,
    /// Ask it to stop.
    Ask,
    /// End it.
    Force,
}

/// What became of making a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Making {
    /// It is made.
    Good,
    /// There was not enough memory for it.
    LacksMemory,
    /// It cannot be made: what it lacks it would lack the next time.
    Bad,
}

/// How a guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With exit code 0.
    Good,
    /// In any other way, but by a manager.
    Bad,
    /// Its manager has forced it.
    Forced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has no resources. Whether it failed, and when it is to be started again.
    Off { failed: bool, restart_at: Option<u64> },
    /// It is being made. Whether it is to be ended when it is.
    Starting { stops: bool },
    /// It lacked memory when it was to be made, and is made again when others have released theirs.
    Waiting,
    /// It runs.
    Running,
    /// It was asked to stop, and is ended at this time.
    Asked { force_at: u64 },
    /// It is ended, and its resources are released.
    Ending { outcome: Outcome },
}

/// A guest's life.
#[derive(Clone, Debug)]
pub struct LifeCycle {
    policy: Restart,
    state: State,
    /// It is started again when it has ended, whatever its policy says.
    again: bool,
    /// A manager has stopped it: its policy does not hold.
    is_asked: bool,
    /// When it began to run, and how many short lives it has had in a row.
    began: u64,
    short_lives: u32,
    /// How often it was made once more for lack of memory.
    memory_tries: u32,
    starts: u64,
    last: Option<Outcome>,
}

impl LifeCycle {
    /// A guest that has not been started.
    pub const fn new(policy: Restart) -> Self {
        let state = State::Off { failed: false, restart_at: None };
        let [again, is_asked] = [false; 2];
        Self { policy, state, again, is_asked, began: 0, short_lives: 0, memory_tries: 0, starts: 0, last: None }
    }

    /// The state as a manager sees it.
    pub const fn state(&self) -> GuestState {
        match self.state {
            State::Off { failed: false, .. } => GuestState::Stopped,
            State::Off { failed: true, .. } => GuestState::Failed,
            State::Starting { .. } | State::Waiting => GuestState::Starting,
            State::Running => GuestState::Running,
            State::Asked { .. } | State::Ending { .. } => GuestState::Stopping,
        }
    }

    /// How often it was started.
    pub const fn starts(&self) -> u64 {
        self.starts
    }

    /// How it has ended last, if it has.
    pub const fn last(&self) -> Option<Outcome> {
        self.last
    }

    /// Whether it holds nothing and nothing is due, so that only a manager can change that, or another guest that releases memory.
    pub const fn is_over(&self) -> bool {
        matches!(self.state, State::Off { restart_at: None, .. } | State::Waiting)
    }

    /// Whether it waits for memory.
    pub const fn waits_for_memory(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// Whether somebody has to make it.
    pub const fn is_to_be_made(&self) -> bool {
        matches!(self.state, State::Starting { .. })
    }

    /// A manager starts it. One that is being stopped starts again after that; one that runs goes on.
    pub fn start(&mut self) -> Action {
        self.short_lives = 0;
        match &mut self.state {
            State::Off { .. } | State::Waiting => self.begin(),
            State::Asked { .. } | State::Ending { .. } => {
                self.again = true;
                Action::None
            }
            State::Starting { stops } => {
                *stops = false;
                self.is_asked = false;
                Action::None
            }
            State::Running => Action::None,
        }
    }

    /// A manager stops it: it is asked, and ended after `grace` ticks. It is ended at once if that is 0. One that is off stays so.
    pub fn stop(&mut self, now: u64, grace: u64) -> Action {
        self.again = false;
        self.is_asked = true;
        match &mut self.state {
            State::Off { restart_at, .. } => {
                *restart_at = None;
                Action::None
            }
            State::Waiting => {
                self.state = State::Off { failed: true, restart_at: None };
                Action::None
            }
            State::Starting { stops } => {
                *stops = true;
                Action::None
            }
            State::Ending { .. } => Action::None,
            State::Running | State::Asked { .. } if grace == 0 => {
                self.state = State::Asked { force_at: now };
                Action::Force
            }
            State::Running => {
                self.state = State::Asked { force_at: now.saturating_add(grace) };
                Action::Ask
            }
            State::Asked { force_at } => {
                *force_at = now.saturating_add(grace).min(*force_at);
                Action::Ask
            }
        }
    }

    /// As [`Self::stop`], and then it is started; one that is off is started.
    pub fn restart(&mut self, now: u64, grace: u64) -> Action {
        if let State::Off { .. } | State::Starting { .. } | State::Waiting = self.state {
            return self.start();
        }
        let action = self.stop(now, grace);
        (self.again, self.short_lives) = (true, 0);
        action
    }

    /// It has been made, or could not be. One that lacks memory waits until [`Self::memory_came`], unless it was to be stopped.
    pub fn made(&mut self, making: Making, now: u64) -> Action {
        let State::Starting { stops } = self.state else { return Action::None };
        if making != Making::Good {
            let waits = making == Making::LacksMemory && !stops && self.memory_tries < MEMORY_TRIES;
            self.state = if waits { State::Waiting } else { State::Off { failed: true, restart_at: None } };
            self.last = Some(Outcome::Bad);
            return Action::None;
        }
        self.began = now;
        if stops {
            self.state = State::Asked { force_at: now };
            return Action::Force;
        }
        self.state = State::Running;
        Action::None
    }

    /// Others have released memory: if it waits for that, it is made once more. [`MEMORY_TRIES`] such tries follow a start.
    pub fn memory_came(&mut self) -> Action {
        if !self.waits_for_memory() {
            return Action::None;
        }
        self.memory_tries += 1;
        self.state = State::Starting { stops: false };
        Action::Make
    }

    /// Its last virtual processor has left. Its resources are to be released.
    pub fn ended(&mut self, outcome: Outcome, now: u64) {
        let is_short = now.saturating_sub(self.began) < SHORT_LIFE;
        self.short_lives = if is_short { self.short_lives.saturating_add(1) } else { 0 };
        self.state = State::Ending { outcome };
        self.last = Some(outcome);
    }

    /// Its resources have been released.
    pub fn released(&mut self, now: u64) -> Action {
        let State::Ending { outcome } = self.state else { return Action::None };
        let failed = outcome == Outcome::Bad;
        self.state = State::Off { failed, restart_at: None };
        if core::mem::take(&mut self.again) {
            return self.begin();
        }
        let wants = match self.policy {
            Restart::Never => false,
            Restart::OnFailure => failed,
            Restart::Always => true,
        };
        if wants && !self.is_asked && self.short_lives < SHORT_LIVES {
            let delay = FIRST_DELAY << self.short_lives.saturating_sub(1).min(SHORT_LIVES);
            self.state = State::Off { failed, restart_at: Some(now.saturating_add(delay)) };
        }
        Action::None
    }

    /// What is due `now`.
    pub fn due(&mut self, now: u64) -> Action {
        match self.state {
            State::Off { restart_at: Some(at), .. } if at <= now => self.begin(),
            State::Asked { force_at } if force_at <= now => Action::Force,
            _ => Action::None,
        }
    }

    /// When something is due, if it is.
    pub const fn next_due(&self) -> Option<u64> {
        match self.state {
            State::Off { restart_at, .. } => restart_at,
            State::Asked { force_at } => Some(force_at),
            _ => None,
        }
    }

    fn begin(&mut self) -> Action {
        self.state = State::Starting { stops: false };
        (self.again, self.is_asked, self.memory_tries) = (false, false, 0);
        self.starts += 1;
        Action::Make
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: u64 = 1_000;

    fn running(policy: Restart) -> LifeCycle {
        let mut life = LifeCycle::new(policy);
        assert_eq!((life.state(), life.is_over()), (GuestState::Stopped, true));
        assert_eq!((life.start(), life.state()), (Action::Make, GuestState::Starting));
        assert_eq!((life.made(Making::Good, 0), life.state()), (Action::None, GuestState::Running));
        life
    }

    #[test]
    fn a_guest_is_asked_to_stop_and_ended_when_its_time_is_over() {
        let mut life = running(Restart::Always);
        assert_eq!((life.stop(50, GRACE), life.state()), (Action::Ask, GuestState::Stopping));
        assert_eq!((life.next_due(), life.due(50 + GRACE - 1)), (Some(50 + GRACE), Action::None));
        assert_eq!(life.due(50 + GRACE), Action::Force);
        life.ended(Outcome::Forced, 2_000);
        assert_eq!((life.released(3_000), life.state()), (Action::None, GuestState::Stopped));
        assert!(life.is_over(), "a manager has stopped it: its policy does not hold");
    }

    #[test]
    fn asking_again_makes_the_time_shorter_but_never_longer() {
        let mut life = running(Restart::Never);
        life.stop(0, GRACE);
        assert_eq!((life.stop(10, 5 * GRACE), life.next_due()), (Action::Ask, Some(GRACE)));
        assert_eq!((life.stop(10, 20), life.next_due()), (Action::Ask, Some(30)));
        assert_eq!(life.stop(11, 0), Action::Force);
    }

    #[test]
    fn a_guest_that_is_being_made_stops_when_it_is_made() {
        let mut life = LifeCycle::new(Restart::Never);
        life.start();
        assert_eq!(life.stop(0, GRACE), Action::None);
        assert_eq!(life.made(Making::Good, 5), Action::Force);
        life.start();
        life.start();
        assert_eq!(life.starts(), 1);
    }

    #[test]
    fn a_restart_is_a_stop_and_a_start() {
        let mut life = running(Restart::Never);
        assert_eq!(life.restart(0, GRACE), Action::Ask);
        life.ended(Outcome::Good, 1);
        assert_eq!((life.released(2), life.state(), life.starts()), (Action::Make, GuestState::Starting, 2));
        life.made(Making::Good, 3);
        life.ended(Outcome::Good, 4);
        assert_eq!((life.released(5), life.is_over()), (Action::None, true));
        assert_eq!(life.restart(6, GRACE), Action::Make, "one that is off is started");
    }

    #[test]
    fn the_policy_says_which_ends_lead_to_a_restart() {
        for (policy, outcome, restarts) in [
            (Restart::Never, Outcome::Bad, false),
            (Restart::OnFailure, Outcome::Good, false),
            (Restart::OnFailure, Outcome::Bad, true),
            (Restart::Always, Outcome::Good, true),
            (Restart::Always, Outcome::Bad, true),
        ] {
            let mut life = running(policy);
            life.ended(outcome, 10);
            assert_eq!(life.released(20), Action::None);
            assert_eq!(life.next_due(), restarts.then_some(20 + FIRST_DELAY), "{policy:?} {outcome:?}");
            assert_eq!(life.is_over(), !restarts);
        }
    }

    #[test]
    fn a_guest_that_fails_at_once_waits_twice_as_long_each_time_and_is_given_up() {
        let (mut life, mut now, mut waits) = (running(Restart::OnFailure), 0, Vec::new());
        for _ in 0..2 * SHORT_LIVES {
            life.ended(Outcome::Bad, now);
            life.released(now);
            let Some(at) = life.next_due() else { break };
            assert_eq!(life.due(at - 1), Action::None);
            waits.push(at - now);
            now = at;
            assert_eq!(life.due(now), Action::Make);
            life.made(Making::Good, now);
        }
        assert_eq!(waits.len() as u32, SHORT_LIVES - 1);
        assert!(waits.is_sorted_by(|a, b| *b == 2 * a) && waits[0] == FIRST_DELAY, "{waits:?}");
        assert_eq!((life.state(), life.is_over()), (GuestState::Failed, true));
        assert_eq!(life.start(), Action::Make, "a manager can start it all the same");
    }

    #[test]
    fn a_long_life_is_forgiven() {
        let (mut life, mut now) = (running(Restart::Always), 0);
        for _ in 0..3 * SHORT_LIVES {
            now += SHORT_LIFE;
            life.ended(Outcome::Bad, now);
            life.released(now);
            assert_eq!(life.next_due(), Some(now + FIRST_DELAY));
            now += FIRST_DELAY;
            assert_eq!(life.due(now), Action::Make);
            life.made(Making::Good, now);
        }
    }

    #[test]
    fn a_guest_that_cannot_be_made_has_failed_and_is_not_tried_again() {
        let mut life = LifeCycle::new(Restart::Always);
        life.start();
        assert_eq!((life.made(Making::Bad, 0), life.state(), life.is_over()), (Action::None, GuestState::Failed, true));
    }

    #[test]
    fn a_guest_that_lacks_memory_is_made_again_when_others_have_released_theirs_and_not_without_end() {
        let mut life = LifeCycle::new(Restart::Never);
        life.start();
        for _ in 0..MEMORY_TRIES {
            assert_eq!((life.made(Making::LacksMemory, 0), life.state()), (Action::None, GuestState::Starting));
            assert!(life.waits_for_memory() && life.is_over() && !life.is_to_be_made());
            assert_eq!((life.memory_came(), life.memory_came()), (Action::Make, Action::None));
        }
        life.made(Making::LacksMemory, 0);
        assert_eq!((life.state(), life.memory_came(), life.starts()), (GuestState::Failed, Action::None, 1));
        // A start begins the count anew, and so does one while it waits.
        life.start();
        life.made(Making::LacksMemory, 0);
        assert_eq!((life.start(), life.starts()), (Action::Make, 3));
        life.made(Making::Good, 0);
        assert_eq!(life.state(), GuestState::Running);
    }

    #[test]
    fn a_guest_that_waits_for_memory_can_be_stopped() {
        let mut life = LifeCycle::new(Restart::Always);
        life.start();
        life.made(Making::LacksMemory, 0);
        assert_eq!(
            (life.stop(0, GRACE), life.state(), life.memory_came()),
            (Action::None, GuestState::Failed, Action::None)
        );
        life.start();
        life.stop(0, GRACE);
        assert_eq!((life.made(Making::LacksMemory, 0), life.waits_for_memory()), (Action::None, false));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Start,
        Stop(u64),
        Restart(u64),
        Made(Making),
        MemoryCame,
        Ended(Outcome),
        Released,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Start),
            (0..2_000u64).prop_map(Step::Stop),
            (0..2_000u64).prop_map(Step::Restart),
            prop_oneof![Just(Making::Good), Just(Making::LacksMemory), Just(Making::Bad)].prop_map(Step::Made),
            Just(Step::MemoryCame),
            prop_oneof![Just(Outcome::Good), Just(Outcome::Bad), Just(Outcome::Forced)].prop_map(Step::Ended),
            Just(Step::Released),
            (0..FIRST_DELAY * 3).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever a manager does and whenever: resources are made only for a guest that holds none, and a guest that is not over can
        /// always come to its end.
        #[test]
        fn no_guest_is_made_twice_and_none_is_forgotten(steps in proptest::collection::vec(step(), 0..200)) {
            let (mut life, mut now) = (LifeCycle::new(Restart::Always), 0);
            // Whether it is being made, and whether it holds resources.
            let (mut makes, mut holds, mut forced, mut left) = (false, false, false, false);
            for step in steps {
                let action = match step {
                    Step::Start => life.start(),
                    Step::Stop(grace) => life.stop(now, grace),
                    Step::Restart(grace) => life.restart(now, grace),
                    Step::Made(making) if makes => {
                        makes = false;
                        holds = making == Making::Good;
                        life.made(making, now)
                    }
                    Step::MemoryCame => life.memory_came(),
                    Step::Ended(outcome) if holds && !left => {
                        left = true;
                        life.ended(outcome, now);
                        Action::None
                    }
                    Step::Released if left => {
                        (holds, left, forced) = (false, false, false);
                        life.released(now)
                    }
                    Step::Wait(ticks) => {
                        now += ticks;
                        life.due(now)
                    }
                    _ => Action::None,
                };
                match action {
                    Action::Make => {
                        prop_assert!(!makes && !holds);
                        makes = true;
                    }
                    Action::Ask | Action::Force => {
                        prop_assert!(holds && !left, "only one that runs can end");
                        forced |= action == Action::Force;
                    }
                    Action::None => {}
                }
                prop_assert_eq!(makes, life.is_to_be_made());
                prop_assert!(!life.is_over() || !(makes || holds));
                if life.state() == GuestState::Stopping && !left && !forced {
                    prop_assert!(life.next_due().is_some(), "nobody would end it");
                }
            }
        }
    }
}
