//! What a check ends with.

use alloc::string::String;

use imsvisor::event;

/// What a check that went to its end has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The unit does what the manual says.
    Agreed,
    /// The unit does not look at what was checked, so it says nothing about our code: what it did instead.
    Unchecked(&'static str),
}

/// A check's result; an error says what was otherwise than the manual has it.
pub type Checked = Result<Found, String>;

/// Ends a check with an error, unless something holds.
macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(alloc::format!($($why)+));
        }
    };
}
pub(crate) use ensure;

/// Writes a check's line. Returns whether it did not fail.
pub fn tell(group: &str, name: &str, checked: &Checked) -> bool {
    match checked {
        Ok(Found::Agreed) => event!("check group={group} name={name} result=ok"),
        Ok(Found::Unchecked(why)) => event!("check group={group} name={name} result=unchecked why=\"{why}\""),
        Err(why) => event!("check group={group} name={name} result=failed why=\"{}\"", why.replace('"', "'")),
    }
    checked.is_ok()
}
