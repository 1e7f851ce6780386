//! Limits the lines that a defective firmware table can put on the console.
#![forbid(unsafe_code)]

/// Lines of one kind that are logged.
const MOST: usize = 16;

/// At most 16 lines of one kind are logged; one more line gives the number of the others.
#[derive(Debug, Default)]
pub struct LogLimit(usize);

impl LogLimit {
    /// Logs a line by `log`, unless 16 lines were logged.
    pub fn log(&mut self, log: impl FnOnce()) {
        if self.0 < MOST {
            log();
        }
        self.0 += 1;
    }

    /// The number of lines that were not logged.
    fn left_out(&self) -> usize {
        self.0.saturating_sub(MOST)
    }

    /// Logs the number of lines that were not logged, if there are some. `what` names their subject.
    pub fn finish(self, what: &str) {
        if self.left_out() > 0 {
            log::warn!("{what}: {} more of these", self.left_out());
        }
    }
}

/// Logs a line by `log` for each of the first 16 items, and the number of the others. `what` names the subject.
pub fn log_first<T>(what: &str, items: impl Iterator<Item = T>, log: impl Fn(T)) {
    let mut log_limit = LogLimit::default();
    items.for_each(|item| log_limit.log(|| log(item)));
    log_limit.finish(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_lines_are_logged_and_the_others_counted() {
        for (count, left_out) in [(0, 0), (16, 0), (17, 1), (500, 484)] {
            let (mut log_limit, mut lines) = (LogLimit::default(), 0);
            (0..count).for_each(|_| log_limit.log(|| lines += 1));
            assert_eq!((lines, log_limit.left_out()), (count - left_out, left_out));
        }
    }
}
