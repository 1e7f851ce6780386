//! Layouts of the VT-d specification ("Intel Virtualization Technology for Directed I/O", revision 4.1), and nothing else.

pub mod descriptor;
pub mod irte;
pub mod registers;
pub mod tables;

/// Declares a layout: a value of some width and its fields, each by one bit range `high, low`. A field has a getter and a
/// `with_` setter, which cuts the value to the field's width.
macro_rules! layout {
    ($(#[$doc:meta])+ $name:ident: $width:ty { $($(#[$field_doc:meta])+ $get:ident, $with:ident: $high:literal, $low:literal;)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(transparent)]
        pub struct $name(pub $width);

        impl $name {
            $(
                $(#[$field_doc])+
                pub const fn $get(self) -> $width {
                    const { assert!($high >= $low && $high < <$width>::BITS) };
                    self.0 >> $low & (<$width>::MAX >> (<$width>::BITS - 1 - ($high - $low)))
                }

                #[doc = concat!("Bits ", $high, ":", $low, " set to `value`.")]
                #[must_use]
                pub const fn $with(self, value: $width) -> Self {
                    let mask = <$width>::MAX >> (<$width>::BITS - 1 - ($high - $low));
                    Self(self.0 & !(mask << $low) | (value & mask) << $low)
                }
            )+
        }
    };
}
use layout;

#[cfg(test)]
mod tests {
    layout! {
        /// An example.
        Example: u64 {
            /// One bit.
            bit, with_bit: 63, 63;
            /// The middle.
            middle, with_middle: 11, 4;
            /// Everything.
            all, with_all: 63, 0;
        }
    }

    #[test]
    fn a_field_is_its_bits_and_no_others() {
        let value = Example(0).with_middle(0x1ff).with_bit(1);
        assert_eq!((value.0, value.middle(), value.bit()), (1 << 63 | 0xff0, 0xff, 1));
        assert_eq!(Example(u64::MAX).with_middle(0).0, !0xff0);
        assert_eq!(Example(0).with_all(u64::MAX).all(), u64::MAX);
    }
}
