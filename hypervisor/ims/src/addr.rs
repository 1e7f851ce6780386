//! Addresses of four kinds that never mix.

use core::fmt;

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this number.
            pub const fn new(address: u64) -> Self {
                Self(address)
            }

            /// Its number.
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The address `offset` bytes further, unless that wraps around.
            pub const fn checked_add(self, offset: u64) -> Option<Self> {
                match self.0.checked_add(offset) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Bytes from `base` to this address, unless `base` is higher.
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// The start of its page.
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// Its offset in its page.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// Whether it is a multiple of `alignment`, a power of two.
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & (alignment - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// Guest-physical.
    Gpa
}
address! {
    /// Guest-linear.
    Gva
}
address! {
    /// Host-physical.
    Hpa
}

/// Identifies a PCI function: segment 31:16, bus 15:8, device 7:3, function 2:0. The lower half is the requester ID of what the function
/// sends ([`Bdf::requester_id`]); a remapping unit serves one segment and never sees the upper half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Bdf(pub u32);

impl Bdf {
    /// From its parts, in segment 0; `device` and `function` are cut to 5 and 3 bits.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u32) << 8 | ((device & 0x1f) as u32) << 3 | (function & 7) as u32)
    }

    /// The same bus, device and function in another segment.
    pub const fn in_segment(self, segment: u16) -> Self {
        Self((segment as u32) << 16 | self.requester_id() as u32)
    }

    /// Its segment.
    pub const fn segment(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Bus 15:8, device 7:3, function 2:0 (VT-d 3.4.1).
    pub const fn requester_id(self) -> u16 {
        self.0 as u16
    }

    /// Its bus.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device and function: the low byte.
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }

    /// Its device number.
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 0x1f
    }

    /// Its function number.
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segment() != 0 {
            write!(f, "{:04x}:", self.segment())?;
        }
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_do_not_wrap() {
        assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
        assert_eq!(Gpa::new(4).offset_from(Gpa::new(5)), None);
    }

    #[test]
    fn a_bdf_is_its_parts() {
        let bdf = Bdf::new(0x12, 0x1e, 3);
        assert_eq!((bdf.bus(), bdf.device(), bdf.function()), (0x12, 0x1e, 3));
        assert_eq!(bdf.to_string(), "12:1e.3");
        let other = bdf.in_segment(0x1f);
        assert_eq!((other.segment(), other.bus(), other.devfn()), (0x1f, 0x12, bdf.devfn()));
        assert_eq!((other.requester_id(), other == bdf), (bdf.requester_id(), false));
        assert_eq!(other.to_string(), "001f:12:1e.3");
    }
}
