//! Paints text into a screen's memory.
//!
//! Reads of a screen's memory are slow, and writes are not fast. So the painter keeps a copy of the screen's contents, never reads the
//! screen, and writes only characters that have changed.

use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

use super::{
    framebuffer::{Format, Framebuffer},
    glyph::{self, Glyph},
    grid::{BRIGHT, Cell, MOST_COLUMNS, MOST_ROWS},
};

/// A screen of pixels has so many columns and lines of text at least, where its size permits: characters grow with the screen.
const COLUMNS: usize = 100;
const ROWS: usize = 30;

/// Attributes of a character on a text screen: light grey, and white, on black.
const EGA_GREY: u16 = 0x0700;
const EGA_WHITE: u16 = 0x0f00;

/// The memory of a screen.
struct Memory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: `Painter::new`'s caller vouched that writing the memory is safe; nothing in Rust refers to it.
unsafe impl Send for Memory {}

impl Memory {
    /// Writes a value at an offset. What lies outside, or is not aligned, is not written.
    fn write<T>(&self, offset: usize, value: T) {
        if offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len) {
            // SAFETY: the offset lies inside of the memory.
            let place = unsafe { self.base.add(offset) }.cast::<T>();
            if place.is_aligned() {
                // SAFETY: the place is inside and aligned, and `Painter::new`'s caller vouched for the memory.
                unsafe { place.write_volatile(value) };
            }
        }
    }
}

/// Paints the text of a grid.
pub struct Painter {
    memory: Memory,
    framebuffer: Framebuffer,
    /// Pixels for a dot, in both directions; 1 on a text screen.
    scale: usize,
    columns: usize,
    rows: usize,
    /// What the screen shows; 0 where that is not known.
    shown: &'static [AtomicU16],
}

impl Painter {
    /// Takes the screen. `shown` has room for all cells, and nobody else uses it.
    ///
    /// # Safety
    /// The framebuffer's memory is a screen's, or nobody's else, and is mapped whenever [`Self::paint_row`] is called.
    pub unsafe fn new(framebuffer: Framebuffer, shown: &'static [AtomicU16]) -> Option<Self> {
        let memory = Memory { base: NonNull::new(framebuffer.base.as_u64() as *mut u8)?, len: framebuffer.bytes() };
        let (scale, columns, rows) = match framebuffer.format {
            Format::Text => (1, framebuffer.width, framebuffer.height),
            Format::Pixels { .. } => {
                let fits =
                    (framebuffer.width / (COLUMNS * glyph::WIDTH)).min(framebuffer.height / (ROWS * glyph::HEIGHT));
                let scale = fits.max(1);
                (scale, framebuffer.width / (scale * glyph::WIDTH), framebuffer.height / (scale * glyph::HEIGHT))
            }
        };
        if columns == 0 || rows == 0 {
            return None;
        }
        shown.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
        Some(Self { memory, framebuffer, scale, columns: columns.min(MOST_COLUMNS), rows: rows.min(MOST_ROWS), shown })
    }

    /// Characters of a line, and lines.
    pub fn size(&self) -> (usize, usize) {
        (self.columns, self.rows)
    }

    /// Paints those characters of a line that have changed. `wanted` are the grid's cells.
    pub fn paint_row(&self, row: usize, wanted: &[AtomicU16]) {
        for column in 0..self.columns {
            let place = row * self.columns + column;
            let (Some(wanted), Some(shown)) = (wanted.get(place), self.shown.get(place)) else { return };
            let cell = wanted.load(Ordering::Relaxed);
            if shown.swap(cell, Ordering::Relaxed) != cell {
                self.paint(column, row, cell);
            }
        }
    }

    fn paint(&self, column: usize, row: usize, cell: Cell) {
        let bright = cell & BRIGHT != 0;
        match self.framebuffer.format {
            Format::Text => {
                let attribute = if bright { EGA_WHITE } else { EGA_GREY };
                self.memory.write(row * self.framebuffer.pitch + 2 * column, cell & 0xff | attribute);
            }
            Format::Pixels { bytes, grey, white } => {
                self.paint_glyph(column, row, &Glyph::of(cell as u8), bytes, if bright { white } else { grey });
            }
        }
    }

    fn paint_glyph(&self, column: usize, row: usize, glyph: &Glyph, bytes: usize, colour: u32) {
        let (left, top) = (column * glyph::WIDTH * self.scale, row * glyph::HEIGHT * self.scale);
        for y in 0..glyph::HEIGHT * self.scale {
            let dots = glyph.0.get(y / self.scale).copied().unwrap_or(0);
            let line = (top + y) * self.framebuffer.pitch + left * bytes;
            for x in 0..glyph::WIDTH * self.scale {
                let pixel = if dots >> (x / self.scale) & 1 != 0 { colour } else { 0 };
                self.pixel(line + x * bytes, bytes, pixel);
            }
        }
    }

    fn pixel(&self, offset: usize, bytes: usize, pixel: u32) {
        if bytes == size_of::<u32>() {
            self.memory.write(offset, pixel);
        } else {
            (0..).zip(pixel.to_le_bytes()).take(bytes).for_each(|(at, byte)| self.memory.write(offset + at, byte));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            framebuffer::tests::{BGR, tag},
            grid::{CELLS, Grid},
        },
        *,
    };

    /// A screen in ordinary memory, with a line of bytes behind it that is not its.
    struct Screen {
        memory: &'static [u64],
        painter: Painter,
        grid: Grid,
        wanted: &'static [AtomicU16],
    }

    fn cells() -> &'static [AtomicU16] {
        Vec::leak((0..CELLS).map(|_| AtomicU16::new(0)).collect())
    }

    impl Screen {
        fn new([width, height]: [u32; 2], bits: u8, kind: u8) -> Self {
            let pitch = width * u32::from(bits) / 8 + 16;
            let memory: &'static mut [u64] = Vec::leak(vec![u64::MAX; (pitch * (height + 1)) as usize / 8 + 1]);
            let base = memory.as_mut_ptr() as u64;
            let framebuffer =
                Framebuffer::new(&tag(base, [pitch, width, height], bits, kind, &BGR), |_, _| false).unwrap();
            // SAFETY: the memory is leaked, and is read between calls of the painter only.
            let painter = unsafe { Painter::new(framebuffer, cells()) }.unwrap();
            let (wanted, (columns, rows)) = (cells(), painter.size());
            Self { memory, painter, grid: Grid::new(wanted, columns, rows), wanted }
        }

        fn show(&mut self, text: &str) {
            text.chars().for_each(|character| self.grid.put(character, false));
            (0..self.painter.rows).for_each(|row| self.painter.paint_row(row, self.wanted));
        }

        fn byte(&self, offset: usize) -> u8 {
            // SAFETY: the memory stays, and nobody writes it now.
            unsafe { self.memory.as_ptr().cast::<u8>().add(offset).read_volatile() }
        }

        /// Reads a character back from its dots.
        fn character(&self, column: usize, row: usize) -> Option<char> {
            let Format::Pixels { bytes, .. } = self.painter.framebuffer.format else { return None };
            let scale = self.painter.scale;
            let on = |x: usize, y: usize| {
                let offset = y * self.painter.framebuffer.pitch + x * bytes;
                u16::from((0..3).any(|at| self.byte(offset + at) != 0))
            };
            let mut glyph = Glyph::default();
            for (y, line) in glyph.0.iter_mut().enumerate() {
                let top = (row * glyph::HEIGHT + y) * scale;
                *line = (0..glyph::WIDTH).map(|x| on((column * glyph::WIDTH + x) * scale, top) << x).sum();
            }
            (b' '..=b'~').find(|byte| Glyph::of(*byte) == glyph).map(char::from)
        }

        fn line(&self, row: usize) -> String {
            (0..self.painter.columns).map(|column| self.character(column, row).unwrap_or('\u{fffd}')).collect()
        }
    }

    #[test]
    fn text_can_be_read_from_the_pixels_with_either_depth_and_any_size() {
        for ([width, height], bits, columns) in
            [([198, 100], 24, 22), ([1024, 768], 32, 113), ([1920, 1080], 32, 106), ([3840, 2160], 32, 106)]
        {
            let mut screen = Screen::new([width, height], bits, 1);
            assert_eq!(screen.painter.columns, columns);
            screen.show("refused what=vmx\n\nok ~!\n");
            assert_eq!(screen.line(0).trim_end(), "refused what=vmx", "{width}");
            assert_eq!(screen.line(1).trim_end(), "ok ~!");
            // The bytes behind each line, and behind the last one, are not the screen's.
            let Framebuffer { pitch, .. } = screen.painter.framebuffer;
            let end = width as usize * usize::from(bits) / 8;
            assert!(
                (0..height as usize)
                    .all(|y| screen.byte(y * pitch + end) == 0xff && screen.byte((y + 1) * pitch - 1) == 0xff)
            );
            assert_eq!(screen.byte(pitch * height as usize), 0xff);
        }
    }

    #[test]
    fn what_scrolls_is_painted_anew() {
        let mut screen = Screen::new([200, 45], 32, 1);
        screen.show("a\nb\nc\nd\n");
        assert_eq!([0, 1, 2].map(|row| screen.line(row).trim_end().to_owned()), ["b", "c", "d"]);
    }

    #[test]
    fn what_has_not_changed_is_not_written_again() {
        let mut screen = Screen::new([200, 45], 32, 1);
        screen.show("abc");
        // Somebody else scribbles over the first and the fourth character's place.
        let scribble = |column: usize| screen.painter.memory.write(column * glyph::WIDTH * 4, 0x11_2233u32);
        scribble(0);
        scribble(3);
        screen.show("d");
        assert_eq!((screen.character(0, 0), screen.character(3, 0)), (None, Some('d')));
    }

    #[test]
    fn a_text_screen_gets_characters_with_attributes() {
        let mut screen = Screen::new([80, 25], 16, 2);
        screen.show("hi\n");
        screen.grid.put('!', true);
        screen.show("");
        assert_eq!([0, 1, 2, 3, 4].map(|at| screen.byte(at)), [b'h', 7, b'i', 7, b' ']);
        let second = screen.painter.framebuffer.pitch;
        assert_eq!((screen.byte(second), screen.byte(second + 1)), (b'!', 15));
    }

    #[test]
    fn a_screen_that_holds_no_character_is_none() {
        let framebuffer = Framebuffer::new(&tag(0x8000_0000, [64, 8, 600], 32, 1, &BGR), |_, _| false).unwrap();
        // SAFETY: nothing is painted.
        assert!(unsafe { Painter::new(framebuffer, cells()) }.is_none());
    }
}
