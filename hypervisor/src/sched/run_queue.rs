//! Whose turn it is on a processor. `SCHEDULER.md` beside this file describes the policy; nothing here touches hardware. Times are ticks of
//! the TSC.
//!
//! Time is shared among guests, not among virtual processors: a guest's share does not grow with the number of its virtual processors. Each
//! guest has a virtual time, which advances by the ticks charged to the guest divided by the guest's weight. The guest with the least virtual
//! time, of those that can run, runs next (start-time fair queueing; the Linux scheduler's `vruntime`).
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use crate::{guest::shares::Shares, ims::GuestId};

/// Ticks that the turns of all guests that can run take together, if each of them uses its turn up.
pub const ROUND: u64 = 1_500_000;

/// Ticks that guests that have slept are served earlier than the others, all of them together.
pub const HEAD_START: u64 = 1_000_000;

/// The most ticks that a guest that can run waits for its turn, if its weight is not so small that its turns are the least ones: others catch up
/// with what its last turn has put it ahead, each of them begins one turn more, and those that have slept come first.
pub const LATENCY: u64 = 2 * ROUND + HEAD_START;

/// Ticks that a turn lasts in any case, unless its virtual processor stops by itself: what a change of guests costs is small beside it.
pub const LEAST_TURN: u64 = 100_000;

/// Ticks after which the interruptions of others' turns are counted anew.
pub const INTERRUPTION_PERIOD: u64 = 1_000_000;

/// Ticks of a period that interrupts may take from others' turns, those of all guests together.
pub const INTERRUPTION_LIMIT: u64 = INTERRUPTION_PERIOD / 20;

/// Ticks for which a cap holds.
pub const CAP_PERIOD: u64 = 20_000_000;

/// Virtual ticks for a tick at weight 1.
const SCALE: u64 = 1 << 16;

/// Where virtual times are taken back. A guest of weight 1 that is alone is there after 20 hours at 1 GHz.
const FAR: u64 = 1 << 62;

/// What a guest has had of this processor, and may have.
#[derive(Clone, Debug)]
struct Account {
    guest: GuestId,
    shares: Shares,
    /// Virtual time.
    time: u64,
    /// What the virtual processor had run that was chosen last, of those of the guest that can run the one that has run least.
    sibling_time: u64,
    /// One of the guest's virtual processors can run.
    is_ready: bool,
    /// Ticks used in the cap's period that began at `cap_since`; what exceeds the cap is taken over into the next period.
    used: u64,
    cap_since: u64,
    /// Ticks taken from others' turns in this period.
    interrupting: u64,
    is_muted: bool,
}

impl Account {
    fn virtual_ticks(&self, ticks: u64) -> u64 {
        ticks.saturating_mul(SCALE) / u64::from(self.shares.weight())
    }

    /// Ticks in a period that the cap allows.
    fn cap(&self) -> Option<u64> {
        self.shares.cap().map(|percent| CAP_PERIOD / 100 * u64::from(percent))
    }

    /// Begins a new period of its cap if the last one is over. `time` is the least virtual time.
    #[inline]
    fn renew(&mut self, now: u64, time: u64) {
        let Some(cap) = self.cap() else { return };
        let was_capped = self.is_capped();
        let periods = now.saturating_sub(self.cap_since) / CAP_PERIOD;
        if periods != 0 {
            self.cap_since += periods * CAP_PERIOD;
            self.used = self.used.saturating_sub(cap.saturating_mul(periods));
        }
        if was_capped && !self.is_capped() {
            // The guest does not make up for the time that its cap kept from it: others would wait for as long.
            self.time = self.time.max(time);
        }
    }

    fn is_capped(&self) -> bool {
        self.cap().is_some_and(|cap| self.used >= cap)
    }

    fn can_run(&self) -> bool {
        self.is_ready && !self.is_capped()
    }
}

/// The guests of a processor.
#[derive(Clone, Debug, Default)]
pub struct RunQueue {
    accounts: Vec<Account>,
    /// The number of guests that are muted.
    muted: usize,
    /// The least virtual time of a guest that could run when one was chosen last. It never goes back.
    time: u64,
    /// Ticks that interrupts have taken from others' turns in the period that began at `period_since`.
    interrupting: u64,
    period_since: u64,
}

impl RunQueue {
    /// A guest has a virtual processor here. Further ones change nothing, and it keeps its account when it ends: it can be started again.
    pub fn add(&mut self, guest: GuestId, shares: Shares, now: u64) {
        if self.accounts.iter().any(|account| account.guest == guest) {
            return;
        }
        let (time, [used, interrupting, sibling_time], cap_since) = (self.time, [0; 3], now);
        let [is_ready, is_muted] = [false; 2];
        self.accounts.push(Account {
            guest,
            shares,
            time,
            sibling_time,
            is_ready,
            used,
            cap_since,
            interrupting,
            is_muted,
        });
    }

    /// Whether one of the guest's virtual processors can run. A guest that has slept does not keep the time that it has not used: see
    /// [`Self::waking_time`].
    pub fn set_ready(&mut self, guest: GuestId, is_ready: bool) {
        let Some(at) = self.accounts.iter().position(|account| account.guest == guest) else { return };
        if self.accounts[at].is_ready == is_ready {
            return;
        }
        if is_ready {
            let least = self.waking_time(self.accounts[at].shares.weight().into());
            self.accounts[at].time = self.accounts[at].time.max(least);
        }
        self.accounts[at].is_ready = is_ready;
    }

    /// The virtual time with which a guest of this weight wakes: the larger of the least time of those that can run and the largest less the guest's
    /// part of [`ROUND`], minus its part of [`HEAD_START`]. The second bound keeps a guest that has had a long turn among few from waiting for as
    /// long a turn of each guest that wakes behind it.
    fn waking_time(&self, weight: u64) -> u64 {
        let all = (self.weight_of_ready() + weight).max(1);
        let part = |ticks: u64| ticks.saturating_mul(SCALE) / all;
        let times = || self.accounts.iter().filter(|account| account.can_run()).map(|account| account.time);
        let before_most = times().max().unwrap_or(0).saturating_sub(part(ROUND));
        self.time.max(times().min().unwrap_or(0)).max(before_most).saturating_sub(part(HEAD_START))
    }

    /// Says of each guest whether one of its virtual processors can run: see [`Self::set_ready`].
    pub fn refresh(&mut self, is_ready: impl Fn(GuestId) -> bool) {
        for number in 0..self.accounts.len() {
            let guest = self.accounts[number].guest;
            self.set_ready(guest, is_ready(guest));
        }
    }

    /// Whether only one guest has virtual processors here.
    pub fn has_one_guest(&self) -> bool {
        self.accounts.len() == 1
    }

    /// Charges time to a guest.
    pub fn charge(&mut self, guest: GuestId, ticks: u64) {
        let Some(account) = self.account(guest) else { return };
        account.time = account.time.saturating_add(account.virtual_ticks(ticks));
        account.used = account.used.saturating_add(ticks);
        if account.time >= FAR {
            self.rebase();
        }
    }

    /// Takes the same from all virtual times, because the largest is about to end.
    #[cold]
    fn rebase(&mut self) {
        self.time = self.time.saturating_sub(FAR / 2);
        self.accounts.iter_mut().for_each(|account| account.time = account.time.saturating_sub(FAR / 2));
    }

    /// Charges time that a guest's interrupts have taken from another guest's turn. Returns true if that was too much, so that the guest is muted
    /// from now on: its share of [`INTERRUPTION_LIMIT`] among the guests that can run, or what is left of it.
    pub fn charge_interruption(&mut self, guest: GuestId, ticks: u64, now: u64) -> bool {
        self.charge(guest, ticks);
        if now.saturating_sub(self.period_since) >= INTERRUPTION_PERIOD && self.muted == 0 {
            self.begin_period(now);
        }
        self.interrupting = self.interrupting.saturating_add(ticks);
        let is_all = self.interrupting > INTERRUPTION_LIMIT;
        let all = self.accounts.iter().filter(|account| account.guest == guest || account.is_ready);
        let all: u64 = all.map(|account| u64::from(account.shares.weight())).sum();
        let Some(account) = self.account(guest) else { return false };
        account.interrupting = account.interrupting.saturating_add(ticks);
        let is_its_part = account.interrupting > INTERRUPTION_LIMIT * u64::from(account.shares.weight()) / all.max(1);
        let mutes = !account.is_muted && (is_all || is_its_part);
        account.is_muted |= mutes;
        self.muted += usize::from(mutes);
        mutes
    }

    fn begin_period(&mut self, now: u64) {
        (self.interrupting, self.period_since) = (0, now);
        self.accounts.iter_mut().for_each(|account| account.interrupting = 0);
    }

    /// Whether the guest's interrupts must not interrupt others now.
    pub fn is_muted(&self, guest: GuestId) -> bool {
        self.muted != 0 && self.accounts.iter().any(|account| account.guest == guest && account.is_muted)
    }

    /// Whether a guest other than this one is muted.
    pub fn is_other_muted(&self, guest: GuestId) -> bool {
        self.muted != 0 && self.accounts.iter().any(|account| account.is_muted && account.guest != guest)
    }

    /// The next guest that was muted and is so no longer.
    pub fn take_unmuted(&mut self, now: u64) -> Option<GuestId> {
        if now < self.unmute_at()? {
            return None;
        }
        let guest = self.end_muting()?;
        if self.unmute_at().is_none() {
            self.begin_period(now);
        }
        Some(guest)
    }

    /// Nobody can run, so nobody is interrupted: the next guest that was muted and is so no longer.
    pub fn unmute(&mut self, now: u64) -> Option<GuestId> {
        let guest = self.end_muting()?;
        self.begin_period(now);
        Some(guest)
    }

    fn end_muting(&mut self) -> Option<GuestId> {
        if self.muted == 0 {
            return None;
        }
        let account = self.accounts.iter_mut().find(|account| account.is_muted)?;
        (account.is_muted, account.interrupting) = (false, 0);
        self.muted -= 1;
        Some(account.guest)
    }

    /// When those that are muted, if there are any, are so no longer.
    fn unmute_at(&self) -> Option<u64> {
        (self.muted != 0).then(|| self.period_since.saturating_add(INTERRUPTION_PERIOD))
    }

    /// The guest that runs next: the one with the least virtual time, of those that can run.
    pub fn next(&mut self, now: u64) -> Option<GuestId> {
        let time = self.time;
        self.accounts.iter_mut().for_each(|account| account.renew(now, time));
        let next = self.accounts.iter().filter(|account| account.can_run()).min_by_key(|account| account.time)?;
        self.time = self.time.max(next.time);
        Some(next.guest)
    }

    /// A virtual processor of a guest has woken that has run `ran` ticks, and no other guest can run: as [`Self::set_ready`],
    /// [`Self::wake_sibling`] and [`Self::next`] together. Returns whether the guest runs next.
    #[inline]
    pub fn wakes_alone(&mut self, guest: GuestId, ran: &mut u64, now: u64) -> bool {
        let time = self.time;
        let Some(account) = self.account(guest) else { return false };
        if !account.is_ready {
            let head_start = HEAD_START * SCALE / u64::from(account.shares.weight());
            (account.is_ready, account.time) = (true, account.time.max(time.saturating_sub(head_start)));
        }
        account.renew(now, time);
        *ran = account.sibling_time.max(*ran);
        if !account.can_run() {
            return false;
        }
        account.sibling_time = *ran;
        self.time = time.max(account.time);
        true
    }

    /// Of a guest's virtual processors, each with a number and the ticks that it has run, the one whose turn the guest's is: that has run least.
    pub fn next_sibling(&mut self, guest: GuestId, ready: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
        let (number, ran) = ready.min_by_key(|(_, ran)| *ran)?;
        let account = self.account(guest)?;
        account.sibling_time = account.sibling_time.max(ran);
        Some(number)
    }

    /// What a virtual processor of a guest counts as having run that has run `ran` ticks and wakes: what it has slept through is lost. Else it
    /// would keep its siblings waiting for as long.
    pub fn wake_sibling(&self, guest: GuestId, ran: u64) -> u64 {
        let account = self.accounts.iter().find(|account| account.guest == guest);
        account.map_or(ran, |account| ran.max(account.sibling_time))
    }

    /// When the turn of a guest ends that begins `now`: early enough for `timer`, when others have to be looked at, though not before
    /// [`LEAST_TURN`], or a timer that fires without end would leave the others nothing.
    pub fn turn_end(&self, guest: GuestId, now: u64, timer: Option<u64>) -> u64 {
        let turn = ROUND.saturating_mul(self.weight(guest)) / self.weight_of_ready().max(1);
        let least = now.saturating_add(LEAST_TURN);
        let timer = timer.map_or(u64::MAX, |timer| timer.max(least));
        timer.min(now.saturating_add(turn.clamp(LEAST_TURN, ROUND)))
    }

    /// Whether `woken` is to run before `running` has used its turn up.
    pub fn preempts(&self, woken: GuestId, running: GuestId) -> bool {
        let time = |guest| self.accounts.iter().find(|account| account.guest == guest).map(|account| account.time);
        time(woken) < time(running)
    }

    /// When a guest may run again that has used up what its cap allows, or is muted no longer.
    pub fn next_event(&self) -> Option<u64> {
        let mut next = self.unmute_at();
        for account in self.accounts.iter().filter(|account| account.is_ready && account.is_capped()) {
            let renewed = account.cap_since.saturating_add(CAP_PERIOD);
            next = Some(next.map_or(renewed, |next| next.min(renewed)));
        }
        next
    }

    fn account(&mut self, guest: GuestId) -> Option<&mut Account> {
        self.accounts.iter_mut().find(|account| account.guest == guest)
    }

    fn weight(&self, guest: GuestId) -> u64 {
        self.accounts.iter().find(|account| account.guest == guest).map_or(0, |account| account.shares.weight().into())
    }

    fn weight_of_ready(&self) -> u64 {
        self.accounts.iter().filter(|account| account.is_ready).map(|account| u64::from(account.shares.weight())).sum()
    }
}

#[cfg(test)]
mod tests;
