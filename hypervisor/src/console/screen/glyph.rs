//! Bitmaps of characters.
#![forbid(unsafe_code)]

use core::convert::Infallible;

use embedded_graphics::{
    Pixel,
    draw_target::DrawTarget,
    geometry::{OriginDimensions, Point, Size},
    mono_font::{MonoTextStyle, ascii::FONT_9X15},
    pixelcolor::BinaryColor,
    text::{Baseline, renderer::TextRenderer},
};

/// Dots of a character's line, and its lines.
pub const WIDTH: usize = FONT_9X15.character_size.width as usize;
pub const HEIGHT: usize = FONT_9X15.character_size.height as usize;

/// A character's dots: a word for each line, the leftmost dot in bit 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glyph(pub [u16; HEIGHT]);

impl Glyph {
    /// The character of a byte; what is not printable ASCII looks like a question mark.
    pub fn of(byte: u8) -> Self {
        let mut glyph = Self::default();
        let character = char::from(if matches!(byte, b' '..=b'~') { byte } else { b'?' });
        let style = MonoTextStyle::new(&FONT_9X15, BinaryColor::On);
        // Drawing cannot fail.
        let _ = style.draw_string(character.encode_utf8(&mut [0; 4]), Point::zero(), Baseline::Top, &mut glyph);
        glyph
    }
}

impl OriginDimensions for Glyph {
    fn size(&self) -> Size {
        FONT_9X15.character_size
    }
}

impl DrawTarget for Glyph {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            let line = usize::try_from(y).ok().and_then(|y| self.0.get_mut(y));
            if let (Some(line), Ok(x)) = (line, u32::try_from(x))
                && colour.is_on()
                && x < WIDTH as u32
            {
                *line |= 1 << x;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_character_looks_different() {
        let glyphs: std::collections::BTreeSet<_> = (b' '..=b'~').map(|byte| Glyph::of(byte).0).collect();
        assert_eq!(glyphs.len(), 95);
        assert_eq!(Glyph::of(b' '), Glyph::default());
        assert_eq!((Glyph::of(0), Glyph::of(0xe9)), (Glyph::of(b'?'), Glyph::of(b'?')));
    }

    #[test]
    fn a_character_stands_upright() {
        // The hyphen is a line in the middle, the underscore one below it.
        let lines = |byte| {
            Glyph::of(byte).0.iter().enumerate().filter(|(_, line)| **line != 0).map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert!(lines(b'-') < lines(b'_') && lines(b'-').len() == 1);
        // An L has its stem to the left.
        assert!(Glyph::of(b'L').0.iter().filter(|line| **line != 0).all(|line| line.trailing_zeros() < 3));
    }
}
