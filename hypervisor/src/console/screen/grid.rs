//! The text on a screen: cells, a cursor, and scrolling.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU16, Ordering};

/// Most columns and lines of text.
pub const MOST_COLUMNS: usize = 160;
pub const MOST_ROWS: usize = 64;
/// Cells of the largest grid.
pub const CELLS: usize = MOST_COLUMNS * MOST_ROWS;

/// A character of the screen in its low byte, printable ASCII, and in its high byte whether it is [`BRIGHT`].
pub type Cell = u16;
/// In the high byte of a cell: text that matters.
pub const BRIGHT: Cell = 1 << 8;
const BLANK: Cell = b' ' as Cell;

/// Text as it should be on the screen. The one who writes has it alone; others may read the cells meanwhile, and see a line that is not
/// whole.
pub struct Grid {
    cells: &'static [AtomicU16],
    columns: usize,
    rows: usize,
    /// Where the next character goes. Beyond the last column it goes to the next line, so that a full line and its end are one step.
    at: (usize, usize),
}

impl Grid {
    /// Blanks. `cells` has room for all of them; there is one column and one row at least.
    pub fn new(cells: &'static [AtomicU16], columns: usize, rows: usize) -> Self {
        let columns = columns.clamp(1, MOST_COLUMNS).min(cells.len());
        let rows = rows.clamp(1, MOST_ROWS).min(cells.len() / columns);
        let grid = Self { cells, columns, rows, at: (0, 0) };
        grid.cells.iter().for_each(|cell| cell.store(BLANK, Ordering::Relaxed));
        grid
    }

    /// Writes a character. Everything but printable ASCII and the end of a line is a question mark.
    pub fn put(&mut self, character: char, bright: bool) {
        if character == '\n' {
            // The screen moves with the next character: the last line is not always empty.
            self.at = (self.columns, self.at.1);
            return;
        }
        if self.at.0 == self.columns {
            self.at = (0, self.at.1 + 1);
        }
        if self.at.1 == self.rows {
            self.scroll();
        }
        let (column, row) = self.at;
        let byte = if matches!(character, ' '..='~') { character as Cell } else { b'?'.into() };
        self.set(row * self.columns + column, byte | if bright { BRIGHT } else { 0 });
        self.at.0 += 1;
    }

    fn scroll(&mut self) {
        for place in 0..self.columns * self.rows {
            // Below the last row are blanks, or no cells at all.
            let below = self.cells.get(place + self.columns);
            self.set(place, below.map_or(BLANK, |cell| cell.load(Ordering::Relaxed)));
        }
        self.at.1 -= 1;
    }

    fn set(&self, place: usize, value: Cell) {
        if let Some(cell) = self.cells.get(place) {
            cell.store(value, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grid(columns: usize, rows: usize) -> Grid {
        Grid::new(Vec::leak((0..columns * rows + 5).map(|_| AtomicU16::new(0)).collect()), columns, rows)
    }

    fn text(grid: &Grid) -> Vec<String> {
        let cells: Vec<u8> = grid.cells.iter().map(|cell| cell.load(Ordering::Relaxed) as u8).collect();
        cells
            .chunks(grid.columns)
            .take(grid.rows)
            .map(|row| String::from_utf8_lossy(row).trim_end().to_owned())
            .collect()
    }

    fn write(grid: &mut Grid, text: &str) {
        text.chars().for_each(|character| grid.put(character, false));
    }

    #[test]
    fn the_last_lines_stay_and_all_rows_are_used() {
        let mut grid = grid(5, 3);
        write(&mut grid, "one\ntwo\nthree\n");
        assert_eq!(text(&grid), ["one", "two", "three"]);
        write(&mut grid, "four\n");
        assert_eq!(text(&grid), ["two", "three", "four"]);
    }

    #[test]
    fn a_long_line_goes_on_below_and_an_empty_one_is_one() {
        let mut grid = grid(4, 4);
        write(&mut grid, "abcdef\n\ngh\n");
        assert_eq!(text(&grid), ["abcd", "ef", "gh", ""], "what is empty is left out: rows are few");
    }

    #[test]
    fn what_is_not_printable_is_a_question_mark() {
        let mut grid = grid(8, 1);
        write(&mut grid, "a\u{7}\u{1b}é→~");
        assert_eq!(text(&grid), ["a????~"]);
    }

    #[test]
    fn what_matters_is_bright_wherever_it_scrolls_to() {
        let mut grid = grid(3, 2);
        write(&mut grid, "a\nb\n");
        grid.put('c', true);
        write(&mut grid, "\nd");
        let cells: Vec<_> = grid.cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
        assert_eq!(cells[..4], [b'c' as Cell | BRIGHT, BLANK, BLANK, b'd'.into()]);
    }

    proptest! {
        #[test]
        fn any_text_fits_into_any_grid(columns in 1usize..9, rows in 1usize..5, written in "[a-z\n]{0,60}") {
            let mut grid = grid(columns, rows);
            write(&mut grid, &written);
            let lines = written.split('\n').filter(|line| !line.is_empty()).flat_map(|line| {
                line.as_bytes().chunks(columns).map(|piece| String::from_utf8_lossy(piece).into_owned()).collect::<Vec<_>>()
            });
            let lines: Vec<_> = lines.collect();
            let shown: Vec<_> = text(&grid).into_iter().filter(|line| !line.is_empty()).collect();
            prop_assert_eq!(&shown[..], &lines[lines.len().saturating_sub(rows)..]);
        }
    }
}
