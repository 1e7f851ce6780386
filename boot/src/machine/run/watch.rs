//! The watchdog: it decides whether a machine that writes no line has hung.
//!
//! On a busy host a machine may need minutes for a second's work, so silence by the host's clock says little. The watchdog uses the
//! machine's own time: the emulator's time if our plugin reports it; else the processor time that the host counts for the emulator.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;

use super::super::PROGRESS;
use super::end::Silence;

/// A machine that stands still has no time of its own and has to end nevertheless: after so many times the silence that it may have, on the
/// host's clock, if it came no further meanwhile than this part of that silence. What moves faster is ended by its own time, or by the
/// limit of the whole run.
const PATIENCE: u32 = 10;

/// Follows one machine's silence. Times are from the machine's start; the caller has the clock.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// How long the machine may write no line, on the host's clock and in its own time.
    allowed: Duration,
    /// When the last line came.
    last_line: Duration,
    /// The machine's own time when it was quiet for the first time since its last line.
    quiet_since: Option<Duration>,
}

impl Watchdog {
    /// Begins at the machine's start.
    pub fn new(allowed: Duration) -> Self {
        Self { allowed, last_line: Duration::ZERO, quiet_since: None }
    }

    /// A line came at `now`.
    pub fn line(&mut self, now: Duration) {
        self.last_line = now;
        self.quiet_since = None;
    }

    /// No line has come until `now`. `own` is the machine's own time, which has any beginning; none where nobody counts it. Returns the
    /// silence if it is that of a machine that has hung.
    pub fn quiet(&mut self, now: Duration, own: Option<Duration>) -> Option<Silence> {
        if self.quiet_since.is_none() {
            self.quiet_since = own;
        }
        let own = own.zip(self.quiet_since).map(|(own, then)| own.saturating_sub(then));
        let silence = Silence { wall: now.saturating_sub(self.last_line), own, rips: Vec::new() };
        self.has_hung(&silence).then_some(silence)
    }

    fn has_hung(&self, silence: &Silence) -> bool {
        let (wall, own) = (silence.wall, silence.own);
        let stands_still = |own| own < self.allowed / PATIENCE && wall > self.allowed.saturating_mul(PATIENCE);
        // A host that does not count has its clock.
        wall > self.allowed && own.is_none_or(|own| own > self.allowed || stands_still(own))
    }
}

/// A machine's own time, as far as anybody tells.
#[derive(Debug, Default)]
pub(super) struct OwnTime {
    /// What the emulator told at the last look.
    told: Option<Progress>,
}

/// What our plugin tells of the emulator: how far it has come, and where its processors are, if it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Progress {
    time: Duration,
    rips: Vec<u64>,
}

impl OwnTime {
    /// How far the emulator has come, where our plugin tells it in a file of the run's directory; else the processor time of the process.
    pub fn look(&mut self, directory: &Path, process: u32) -> Option<Duration> {
        // A file that cannot be read for once leaves the emulator where it was: the two kinds of time have nothing in common.
        let told = fs::read_to_string(directory.join(PROGRESS)).ok().and_then(|text| Progress::parse(&text));
        self.told = told.or(self.told.take());
        self.told.as_ref().map(|told| told.time).or_else(|| processor_time(process))
    }

    /// The RIP of each processor at the last look; nothing where nobody tells.
    pub fn rips(&self) -> &[u64] {
        self.told.as_ref().map_or(&[], |told| &told.rips)
    }
}

impl Progress {
    /// Reads the line that the plugin writes: milliseconds, then RIPs in hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix('\n')?.split(' ');
        let time = words.next()?.parse().ok().map(Duration::from_millis)?;
        let rips = words.map(|word| u64::from_str_radix(word, 16).ok()).collect::<Option<_>>()?;
        Some(Self { time, rips })
    }
}

/// The processor time of all threads of a process so far; none where the host does not say.
fn processor_time(process: u32) -> Option<Duration> {
    processor_time_in(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?, clock_ticks_per_second())
}

/// The fields utime and stime of /proc/PID/stat (proc_pid_stat(5)), in ticks. The second field is a name in parentheses, which may hold
/// anything; utime is the twelfth after it.
fn processor_time_in(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let sum = ticks()?.checked_add(ticks()?)?;
    Some(Duration::from_millis(sum.checked_mul(1000)?.checked_div(ticks_per_second)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Duration = Duration::from_secs(30);

    /// Follows a machine with a fake clock: `speed` is how much of its own time, in thousandths, a second of the host's clock gives the
    /// machine. Returns the silence at which the watchdog ends it within `seconds`.
    fn follow(speed: Option<u64>, lines_every: Option<u64>, seconds: u64) -> Option<Silence> {
        let mut watchdog = Watchdog::new(ALLOWED);
        (1..=seconds).find_map(|second| {
            let now = Duration::from_secs(second);
            if lines_every.is_some_and(|every| second.is_multiple_of(every)) {
                watchdog.line(now);
                return None;
            }
            watchdog.quiet(now, speed.map(|speed| Duration::from_millis(second * speed)))
        })
    }

    #[test]
    fn an_emulator_that_progresses_slowly_on_a_busy_host_has_not_hung() {
        // A twentieth of its speed: half a minute of the machine's takes ten minutes.
        assert_eq!(follow(Some(50), None, 600), None);
        assert_eq!(follow(Some(50), Some(599), 6000), None, "a line now and then");
    }

    #[test]
    fn a_machine_hangs_when_its_own_time_and_the_hosts_are_over() {
        let silence = follow(Some(1000), None, 600).unwrap();
        assert!(silence.wall > ALLOWED && silence.wall <= ALLOWED + Duration::from_secs(2), "{silence:?}");
        // A tenth of its speed: ten times as long on the host's clock, and no patience ends it before.
        let silence = follow(Some(100), None, 600).unwrap();
        assert!(silence.own.unwrap() > ALLOWED && silence.wall > ALLOWED * 10, "{silence:?}");
        // An idle machine's time flies by, and the launcher gives it the host's.
        let silence = follow(Some(50_000), None, 600).unwrap();
        assert!(silence.wall > ALLOWED && silence.wall <= ALLOWED + Duration::from_secs(2), "{silence:?}");
    }

    #[test]
    fn a_machine_that_stands_still_ends_when_patience_does() {
        for speed in [0, 1] {
            let silence = follow(Some(speed), None, 600).unwrap();
            assert_eq!(silence.wall, ALLOWED * PATIENCE + Duration::from_secs(1), "{speed}");
        }
    }

    #[test]
    fn a_host_that_does_not_count_has_its_clock() {
        assert_eq!(
            follow(None, None, 600).unwrap(),
            Silence { wall: ALLOWED + Duration::from_secs(1), own: None, rips: Vec::new() }
        );
    }

    #[test]
    fn a_line_begins_anew() {
        assert_eq!(follow(Some(1000), Some(30), 600), None);
        assert!(follow(Some(1000), Some(33), 600).is_some());
    }

    #[test]
    fn without_a_limit_nothing_overflows() {
        let mut watchdog = Watchdog::new(Duration::MAX);
        assert_eq!(watchdog.quiet(Duration::MAX, Some(Duration::MAX)), None);
    }

    #[test]
    fn the_emulators_own_time_comes_before_the_hosts_count() {
        let directory = tempfile::tempdir().unwrap();
        let mut time = OwnTime::default();
        let mut own = || time.look(directory.path(), std::process::id());
        assert!(own().is_some());
        for (text, milliseconds) in [
            ("50\n", 50),
            ("123450 000000000000fff0 8000000000000000\n", 123_450),
            ("12", 123_450),
            ("", 123_450),
            ("x\n", 123_450),
            ("60 xyz\n", 123_450),
        ] {
            fs::write(directory.path().join(PROGRESS), text).unwrap();
            assert_eq!(own(), Some(Duration::from_millis(milliseconds)), "{text:?}");
        }
        // The last line that was whole.
        fs::remove_file(directory.path().join(PROGRESS)).unwrap();
        assert_eq!(own(), Some(Duration::from_millis(123_450)));
        assert_eq!(time.rips(), [0xfff0, 1 << 63]);
    }

    #[test]
    fn processor_time_is_read_whatever_the_programs_name_is() {
        let stat = "42 (a) b (c) R 1 42 42 0 -1 4194304 100 0 0 0 250 50 7 7 20 0 1 0 99 1 1";
        assert_eq!(processor_time_in(stat, 100), Some(Duration::from_secs(3)));
        assert_eq!(processor_time_in("42 (x) R 1", 100), None);
        assert!(processor_time(std::process::id()).is_some());
        assert_eq!(processor_time(u32::MAX), None);
    }
}
