//! A picture of a machine's screen, read back to text by the font's own dots.

use std::convert::Infallible;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle, ascii::FONT_9X15};
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::text::{Baseline, renderer::TextRenderer};
use imsvisor_boot::machine::MONITOR;
use serde_json::{Value, json};

/// The hypervisor's font.
const FONT: MonoFont<'_> = FONT_9X15;
/// QEMU answers in this time, on a busy host as well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A picture: which of its pixels are not black.
#[derive(Debug, Clone)]
pub struct Picture {
    width: usize,
    dots: Vec<bool>,
}

impl Picture {
    /// Takes the screen of a QEMU, by its monitor in a run's directory.
    pub fn take(directory: &Path) -> Result<Self> {
        const FILE: &str = "screen.ppm";
        monitor(directory, "screendump", &json!({ "filename": FILE }))?;
        Self::parse(&fs::read(directory.join(FILE)).context("no picture of the screen")?)
    }

    /// Reads a picture in the format PPM, `P6` with 255 as the brightest (ppm(5)).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut words = bytes.splitn(5, |byte| byte.is_ascii_whitespace());
        let mut number = |what| {
            let word = words.next().context("a picture without a size")?;
            let word = std::str::from_utf8(word)?;
            if what == "P6" {
                ensure!(word == what, "a picture of the kind {word}");
                return Ok(0);
            }
            word.parse::<usize>().with_context(|| format!("{what}: {word}"))
        };
        let (_, width, height, most) = (number("P6")?, number("width")?, number("height")?, number("brightest")?);
        let pixels = words.next().unwrap_or_default();
        ensure!(
            most == 255 && width != 0 && pixels.len() == width * height * 3,
            "{width} by {height}, {} bytes",
            pixels.len()
        );
        Ok(Self { width, dots: pixels.chunks(3).map(|pixel| pixel.iter().any(|&colour| colour != 0)).collect() })
    }

    /// The lines of text that the picture shows, from its upper left corner on. What is no character of the font is U+FFFD.
    pub fn lines(&self) -> Vec<String> {
        let font: Vec<(char, Dots)> = (' '..='~').map(|character| (character, Dots::of(character))).collect();
        let Size { width, height } = FONT.character_size;
        let (width, height) = (width as usize, height as usize);
        let character = |column: usize, row: usize| {
            let dots = Dots((0..height).map(|y| self.word(column * width, row * height + y, width)).collect());
            font.iter().find(|(_, other)| *other == dots).map_or('\u{fffd}', |(character, _)| *character)
        };
        let (columns, rows) = (self.width / width, self.dots.len() / self.width / height);
        (0..rows).map(|row| (0..columns).map(|column| character(column, row)).collect()).collect()
    }

    /// The text as one: a line that goes on in the next row is put together again.
    pub fn text(&self) -> String {
        let whole = |line: String| if line.ends_with(' ') { format!("{}\n", line.trim_end()) } else { line };
        self.lines().into_iter().map(whole).collect()
    }

    fn word(&self, x: usize, y: usize, width: usize) -> u32 {
        let dot = |at: usize| self.dots.get(y * self.width + x + at).is_some_and(|dot| *dot);
        (0..width).map(|at| u32::from(dot(at)) << at).sum()
    }
}

/// A character's dots, a word for each line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dots(Vec<u32>);

impl Dots {
    fn of(character: char) -> Self {
        let mut dots = Self(vec![0; FONT.character_size.height as usize]);
        let style = MonoTextStyle::new(&FONT, BinaryColor::On);
        let drawn = style.draw_string(character.encode_utf8(&mut [0; 4]), Point::zero(), Baseline::Top, &mut dots);
        drawn.map(|_| dots).unwrap_or_else(|never| match never {})
    }
}

impl OriginDimensions for Dots {
    fn size(&self) -> Size {
        FONT.character_size
    }
}

impl DrawTarget for Dots {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            if let Some(line) = usize::try_from(y).ok().and_then(|y| self.0.get_mut(y))
                && colour.is_on()
            {
                *line |= 1 << x;
            }
        }
        Ok(())
    }
}

/// Gives QEMU's monitor a command. Returns its answer.
pub fn monitor(directory: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let mut socket = UnixStream::connect(directory.join(MONITOR)).context("no monitor")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(socket.try_clone()?).lines();
    let mut give = |command: &str, arguments: &Value| {
        writeln!(socket, "{}", json!({ "execute": command, "arguments": arguments }))?;
        answer(&mut lines).with_context(|| format!("the monitor's command {command}"))
    };
    give("qmp_capabilities", &json!({}))?;
    give(command, arguments)
}

/// Passes over the greeting and events.
fn answer(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<Value> {
    for line in lines {
        let mut line: Value = serde_json::from_str(&line?)?;
        if let Some(error) = line.get("error") {
            bail!("{error}");
        }
        if let Some(answer) = line.get_mut("return") {
            return Ok(answer.take());
        }
    }
    bail!("the monitor hung up")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture with these lines.
    fn picture(lines: &[&str], columns: usize) -> Vec<u8> {
        let Size { width, height } = FONT.character_size;
        let mut bytes =
            format!("P6\n{} {}\n255\n", columns * width as usize + 3, lines.len() * height as usize + 2).into_bytes();
        for y in 0..lines.len() * height as usize + 2 {
            for x in 0..columns * width as usize + 3 {
                let character = lines.get(y / height as usize).and_then(|line| line.chars().nth(x / width as usize));
                let dots = Dots::of(character.unwrap_or(' ')).0[y % height as usize];
                let on = x < columns * width as usize && dots >> (x % width as usize) & 1 != 0;
                bytes.extend([if on { 0xbf } else { 0 }; 3]);
            }
        }
        bytes
    }

    #[test]
    fn text_is_read_back_from_a_picture() {
        let picture = Picture::parse(&picture(&["refused", "what=vmx {~}", "done"], 12)).unwrap();
        assert_eq!(picture.lines(), ["refused     ", "what=vmx {~}", "done        "]);
        assert_eq!(picture.text(), "refused\nwhat=vmx {~}done\n", "a full row goes on in the next one");
    }

    #[test]
    fn a_dot_too_many_is_seen() {
        let mut bytes = picture(&["a"], 1);
        let last = bytes.len() - 1 - 3 * 3 - 2 * 3 * 12;
        bytes[last] = 1;
        assert_eq!(Picture::parse(&bytes).unwrap().lines(), ["\u{fffd}"]);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for bytes in [&b"P5\n1 1\n255\n\0\0\0"[..], b"P6\n1 1\n255\n\0\0", b"P6\nx 1\n255\n", b"", b"P6\n0 9\n255\n"] {
            assert!(Picture::parse(bytes).is_err());
        }
    }
}
