//! The screen, which shows the console's lines to a person in front of the machine.
//!
//! Lines go into a grid of text at once, without an access to the screen. [`pump`] paints when a processor has time, one line of text at a
//! time, and no more often than every [`INTERVAL`]: a flood of lines scrolls in memory alone. After each line the screen rests for [`REST`]
//! times as long as painting took, which limits the processor time that a guest's output costs others.

mod framebuffer;
mod glyph;
mod grid;
mod painter;

use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    time::Duration,
};

pub use self::framebuffer::{Framebuffer, Unusable};
use self::{
    grid::{CELLS, Grid},
    painter::Painter,
};
use crate::{
    clock::{self, Timeout},
    cpu,
    sync::Mutex,
};

/// Between the end of a painting and the beginning of the next one.
const INTERVAL: Duration = Duration::from_millis(50);

/// How much longer than a line of text took to paint the screen rests behind it.
const REST: u64 = 20;

static WANTED: [AtomicU16; CELLS] = [const { AtomicU16::new(0) }; CELLS];
static SHOWN: [AtomicU16; CELLS] = [const { AtomicU16::new(0) }; CELLS];

/// Whether there is a screen that can be painted now: runs without one take no lock for it.
static ON: AtomicBool = AtomicBool::new(false);
/// Whether the grid has changed since a painting began.
static CHANGED: AtomicBool = AtomicBool::new(false);

/// Under it no other lock is taken.
static PAINTING: Mutex<Option<Painting>> = Mutex::new(None);

/// A painter, and where it is.
struct Painting {
    painter: Painter,
    /// The next row, while a painting is under way.
    row: Option<usize>,
    /// The TSC at which the next row is due.
    due: u64,
    /// Until when nothing is painted.
    rest: Option<Timeout<'static>>,
}

impl Painting {
    /// Paints a row, if it is time. Returns whether there is more to paint.
    fn step(&mut self) -> bool {
        if self.row.is_none() && CHANGED.load(Ordering::Acquire) && self.rest.as_mut().is_none_or(Timeout::is_over) {
            // What changes from now on is for the next painting.
            CHANGED.store(false, Ordering::Release);
            self.row = Some(0);
        }
        if let Some(row) = self.row.filter(|_| cpu::tsc() >= self.due) {
            let began = cpu::tsc();
            self.painter.paint_row(row, &WANTED);
            let ended = cpu::tsc();
            self.due = ended.saturating_add(ended.saturating_sub(began).saturating_mul(REST));
            let (_, rows) = self.painter.size();
            self.row = Some(row + 1).filter(|next| *next < rows);
            if self.row.is_none() {
                self.rest = Some(Timeout::new(clock::current(), INTERVAL));
            }
        }
        self.row.is_some() || CHANGED.load(Ordering::Acquire)
    }

    /// Paints all that is to be painted, at once.
    fn finish(&mut self) {
        let (_, rows) = self.painter.size();
        CHANGED.store(false, Ordering::Release);
        (0..rows).for_each(|row| self.painter.paint_row(row, &WANTED));
        self.row = None;
    }
}

/// Writes text for the screen. There is one, under the console's lock.
pub(super) struct Screen {
    grid: Grid,
    /// Whether what follows matters.
    pub bright: bool,
}

impl Screen {
    /// Takes the screen for good; none if it holds no character. Nothing is painted before [`resume`].
    ///
    /// # Safety
    /// The framebuffer's memory is a screen's, and is mapped whenever the screen is on.
    pub unsafe fn open(framebuffer: Framebuffer) -> Option<Self> {
        // SAFETY: the caller vouches for the memory.
        let painter = unsafe { Painter::new(framebuffer, &SHOWN) }?;
        let (columns, rows) = painter.size();
        *PAINTING.lock() = Some(Painting { painter, row: None, due: 0, rest: None });
        Some(Self { grid: Grid::new(&WANTED, columns, rows), bright: false })
    }
}

impl fmt::Write for Screen {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().for_each(|character| self.grid.put(character, self.bright));
        CHANGED.store(true, Ordering::Release);
        Ok(())
    }
}

/// The screen's memory is mapped: it can be painted from now on.
pub(super) fn resume() {
    ON.store(true, Ordering::Release);
}

/// Paints a line of text, if something has changed, it is time, and no other processor paints. Returns whether there is more to do.
pub(super) fn pump() -> bool {
    ON.load(Ordering::Acquire)
        && PAINTING.try_lock().is_some_and(|mut painting| painting.as_mut().is_some_and(Painting::step))
}

/// Paints all that is to be painted.
pub(super) fn drain() {
    if ON.load(Ordering::Acquire)
        && let Some(painting) = PAINTING.lock().as_mut()
    {
        painting.finish();
    }
}

/// See [`super::take_over`].
///
/// # Safety
/// As for that.
pub(super) unsafe fn take_over() {
    // SAFETY: the caller vouches for it.
    unsafe { super::release_all(&PAINTING) }
}

/// See [`super::break_lock`].
///
/// # Safety
/// As for that.
pub(super) unsafe fn break_lock() {
    // SAFETY: the caller vouches for it. A row is painted in a few milliseconds.
    unsafe { super::break_open(&PAINTING, clock::current()) }
}
