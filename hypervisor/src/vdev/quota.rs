//! The limit of a guest's lines on the console.

/// Lines that a guest may write before the hypervisor stops showing them: a guest cannot bury the others' (XSA-96).
pub const LINES: u32 = 10_000;

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is shown.
    Shown,
    /// The line is the first that is not shown. A message about that is shown in its place.
    FirstHidden,
    /// It is not shown.
    Hidden,
}

/// How many lines a guest has written.
#[derive(Clone, Debug, Default)]
pub struct Quota {
    written: u32,
}

impl Quota {
    /// Whether the next line may be shown.
    pub const fn has_room(&self) -> bool {
        self.written < LINES
    }

    /// The guest has written a line.
    pub fn take(&mut self) -> Fate {
        self.written = self.written.saturating_add(1);
        match self.written {
            ..LINES => Fate::Shown,
            LINES => Fate::FirstHidden,
            _ => Fate::Hidden,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_24_a_guest_that_writes_without_end_is_shown_for_ten_thousand_lines_and_told_of_once() {
        let mut quota = Quota::default();
        for line in 1..30_000 {
            let fate = match line {
                ..10_000 => Fate::Shown,
                10_000 => Fate::FirstHidden,
                _ => Fate::Hidden,
            };
            assert_eq!(quota.take(), fate, "{line}");
            assert_eq!(quota.has_room(), line < 10_000, "{line}");
        }
        let mut last = Quota { written: u32::MAX };
        assert_eq!((last.take(), last.has_room()), (Fate::Hidden, false));
    }
}
