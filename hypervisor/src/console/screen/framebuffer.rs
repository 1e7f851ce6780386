//! The screen as the boot loader describes it. Multiboot2 specification, 3.6.12.
#![forbid(unsafe_code)]

use core::fmt;

use crate::addr::Hpa;

/// The widest and the highest screen, in pixels.
const MOST: u32 = 16 * 1024;
/// Colour fields of more bits do not fit into a 32-bit pixel with three of them.
const WIDEST_FIELD: u8 = 10;
/// The boot loader's kinds of screen.
const RGB: u8 = 1;
const EGA_TEXT: u8 = 2;

/// Where a colour is in a pixel: its lowest bit, and its number of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    position: u8,
    size: u8,
}

/// How a place on the screen is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Pixels of this many bytes (3 or 4); a grey and white in them.
    Pixels {
        /// Bytes of a pixel.
        bytes: usize,
        /// The colour of ordinary text.
        grey: u32,
        /// The colour of what matters.
        white: u32,
    },
    /// Characters with attributes, two bytes each, as EGA and VGA have them.
    Text,
}

/// A screen that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framebuffer {
    /// The first byte of the first line.
    pub base: Hpa,
    /// From a line's first byte to the next one's.
    pub pitch: usize,
    /// Pixels of a line; characters of a text screen.
    pub width: usize,
    /// Lines of pixels, or of text.
    pub height: usize,
    /// What is written.
    pub format: Format,
}

/// Why a screen is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The description is too short.
    Short,
    /// Its kind, or its bits for a pixel: a palette, or less than 24 bits.
    Kind(u8, u8),
    /// Its size is 0, or beyond any screen's.
    Size(u32, u32),
    /// A line is shorter than its pixels, or the whole wraps.
    Pitch(u32),
    /// A colour lies outside of a pixel.
    Colours,
    /// It lies in memory that is the hypervisor's to use, or in page 0.
    Memory(u64),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("its description is too short"),
            Self::Kind(kind, bits) => {
                write!(f, "kind {kind} with {bits} bits: 24 or 32 bits of direct colour are needed, or text")
            }
            Self::Size(width, height) => write!(f, "{width} by {height}"),
            Self::Pitch(pitch) => write!(f, "lines of {pitch} bytes"),
            Self::Colours => f.write_str("a colour is not inside of a pixel"),
            Self::Memory(address) => write!(f, "memory at {address:#x}"),
        }
    }
}

impl Framebuffer {
    /// From the tag's bytes behind its header. `is_ram` says whether a range, of an address and a length, touches usable memory.
    pub fn new(tag: &[u8], is_ram: impl Fn(Hpa, u64) -> bool) -> Result<Self, Unusable> {
        let word = |at: usize| Some(u32::from_le_bytes(*tag.get(at..)?.first_chunk()?));
        let (Some(low), Some(high), Some(pitch), Some(width), Some(height)) =
            (word(0), word(4), word(8), word(12), word(16))
        else {
            return Err(Unusable::Short);
        };
        let &[bits, kind] = tag.get(20..22).and_then(|pair| pair.first_chunk()).ok_or(Unusable::Short)?;
        let (format, bytes) = format(kind, bits, tag.get(24..).unwrap_or(&[]))?;
        if width == 0 || height == 0 || width > MOST || height > MOST {
            return Err(Unusable::Size(width, height));
        }
        // A line may be longer than its pixels, but not without end.
        if u64::from(pitch) < u64::from(width) * bytes || pitch > MOST * 8 {
            return Err(Unusable::Pitch(pitch));
        }
        let (base, len) = (u64::from(high) << 32 | u64::from(low), u64::from(pitch) * u64::from(height));
        let base = Hpa::new(base);
        let apart = base.as_u64() >= crate::addr::PAGE_SIZE && base.checked_add(len).is_some() && !is_ram(base, len);
        if !apart {
            return Err(Unusable::Memory(base.as_u64()));
        }
        Ok(Self { base, pitch: pitch as usize, width: width as usize, height: height as usize, format })
    }

    /// How many bytes its memory has.
    pub fn bytes(&self) -> usize {
        self.pitch * self.height
    }
}

/// The format, and the bytes of a pixel or character.
fn format(kind: u8, bits: u8, colours: &[u8]) -> Result<(Format, u64), Unusable> {
    match (kind, bits) {
        (RGB, 24 | 32) => {
            let fields: [u8; 6] = *colours.first_chunk().ok_or(Unusable::Short)?;
            let fields = [0, 2, 4].map(|at| Field { position: fields[at], size: fields[at + 1] });
            let inside = |field: &Field| {
                (1..=WIDEST_FIELD).contains(&field.size)
                    && field.position.checked_add(field.size).is_some_and(|end| end <= bits)
            };
            if !fields.iter().all(inside) {
                return Err(Unusable::Colours);
            }
            let bytes = usize::from(bits / 8);
            Ok((Format::Pixels { bytes, grey: colour(&fields, 3), white: colour(&fields, 4) }, bytes as u64))
        }
        (EGA_TEXT, _) => Ok((Format::Text, 2)),
        _ => Err(Unusable::Kind(kind, bits)),
    }
}

/// A pixel in which every colour has so many quarters of its brightness.
fn colour(fields: &[Field; 3], quarters: u32) -> u32 {
    fields.iter().fold(0, |pixel, field| {
        let full = (1u32 << field.size) - 1;
        pixel | (full * quarters / 4) << field.position
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A tag's bytes.
    pub fn tag(address: u64, [pitch, width, height]: [u32; 3], bits: u8, kind: u8, colours: &[u8]) -> Vec<u8> {
        let mut tag = address.to_le_bytes().to_vec();
        [pitch, width, height].iter().for_each(|value| tag.extend(value.to_le_bytes()));
        tag.extend([bits, kind, 0, 0]);
        tag.extend(colours);
        tag
    }

    /// Blue, green, red, from the lowest byte on: as firmware has it.
    pub const BGR: [u8; 6] = [16, 8, 8, 8, 0, 8];

    fn no_ram(_: Hpa, _: u64) -> bool {
        false
    }

    #[test]
    fn a_screen_of_pixels_is_taken_with_24_and_32_bits() {
        let framebuffer = Framebuffer::new(&tag(0x8000_0000, [4096, 1024, 768], 32, 1, &BGR), no_ram).unwrap();
        let format = Format::Pixels { bytes: 4, grey: 0xbf_bfbf, white: 0xff_ffff };
        assert_eq!(
            framebuffer,
            Framebuffer { base: Hpa::new(0x8000_0000), pitch: 4096, width: 1024, height: 768, format }
        );
        let framebuffer = Framebuffer::new(&tag(0x60_0000_0000, [2400, 800, 600], 24, 1, &BGR), no_ram).unwrap();
        assert!(matches!(framebuffer.format, Format::Pixels { bytes: 3, .. }));
        let wide =
            Framebuffer::new(&tag(0x8000_0000, [4096, 1024, 768], 32, 1, &[20, 10, 10, 10, 0, 10]), no_ram).unwrap();
        assert!(matches!(wide.format, Format::Pixels { white: 0x3fff_ffff, .. }));
    }

    #[test]
    fn a_screen_of_text_is_taken() {
        let framebuffer = Framebuffer::new(&tag(0xb8000, [160, 80, 25], 16, 2, &[]), no_ram).unwrap();
        assert_eq!((framebuffer.format, framebuffer.bytes()), (Format::Text, 4000));
    }

    #[test]
    fn what_cannot_be_a_screen_is_refused() {
        let (at, size) = (0x8000_0000, [4096, 1024, 768]);
        for (tag, why) in [
            (tag(at, size, 8, 0, &[0, 0]), Unusable::Kind(0, 8)),
            (tag(at, size, 16, 1, &BGR), Unusable::Kind(1, 16)),
            (tag(at, [4096, 0, 768], 32, 1, &BGR), Unusable::Size(0, 768)),
            (tag(at, [u32::MAX, u32::MAX, 1], 32, 1, &BGR), Unusable::Size(u32::MAX, 1)),
            (tag(at, [4095, 1024, 768], 32, 1, &BGR), Unusable::Pitch(4095)),
            (tag(at, [u32::MAX, 1024, 768], 32, 1, &BGR), Unusable::Pitch(u32::MAX)),
            (tag(at, size, 32, 1, &[25, 8, 8, 8, 0, 8]), Unusable::Colours),
            (tag(at, size, 32, 1, &[255, 8, 8, 8, 0, 8]), Unusable::Colours),
            (tag(at, size, 32, 1, &[16, 0, 8, 8, 0, 8]), Unusable::Colours),
            (tag(at, size, 32, 1, &BGR[..5]), Unusable::Short),
            (tag(0, size, 32, 1, &BGR), Unusable::Memory(0)),
            (tag(u64::MAX - 5, size, 32, 1, &BGR), Unusable::Memory(u64::MAX - 5)),
            (vec![0; 21], Unusable::Short),
        ] {
            assert_eq!(Framebuffer::new(&tag, no_ram), Err(why));
        }
        let in_ram = |base: Hpa, len: u64| base.as_u64() == at && len == 4096 * 768;
        assert_eq!(Framebuffer::new(&tag(at, size, 32, 1, &BGR), in_ram), Err(Unusable::Memory(at)));
    }

    proptest! {
        #[test]
        fn whatever_is_taken_has_its_pixels_in_its_bytes(tag in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(framebuffer) = Framebuffer::new(&tag, no_ram) {
                let bytes = match framebuffer.format { Format::Pixels { bytes, .. } => bytes, Format::Text => 2 };
                prop_assert!((framebuffer.height - 1) * framebuffer.pitch + framebuffer.width * bytes <= framebuffer.bytes());
                prop_assert!(framebuffer.base.checked_add(framebuffer.bytes() as u64).is_some());
            }
        }
    }
}
