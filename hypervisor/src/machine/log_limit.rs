//! Lines of one kind: no table of a firmware's, however odd, floods the console.
#![forbid(unsafe_code)]

/// Lines of a kind. How many more there are is a line of its own.
const MOST: usize = 16;

/// Counts what there is of a kind, and tells of the first.
#[derive(Debug, Default)]
pub struct LogLimit(usize);

impl LogLimit {
    /// One more of the kind: `tell` writes its line, if it gets one.
    pub fn tell(&mut self, tell: impl FnOnce()) {
        if self.0 < MOST {
            tell();
        }
        self.0 += 1;
    }

    /// How many had no line.
    pub fn untold(&self) -> usize {
        self.0.saturating_sub(MOST)
    }

    /// That was all of the kind: a line for those that had none. `what` says what it is about.
    pub fn end(self, what: &str) {
        if self.untold() > 0 {
            log::warn!("{what}: {} more of these", self.untold());
        }
    }
}

/// Tells of the first of these, and how many more there are.
pub fn each<T>(what: &str, all: impl Iterator<Item = T>, tell: impl Fn(T)) {
    let mut log_limit = LogLimit::default();
    all.for_each(|one| log_limit.tell(|| tell(one)));
    log_limit.end(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_have_a_line_and_the_others_are_counted() {
        for (count, untold) in [(0, 0), (16, 0), (17, 1), (500, 484)] {
            let (mut log_limit, mut lines) = (LogLimit::default(), 0);
            (0..count).for_each(|_| log_limit.tell(|| lines += 1));
            assert_eq!((lines, log_limit.untold()), (count - untold, untold));
        }
    }
}
