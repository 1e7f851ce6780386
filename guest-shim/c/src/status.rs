//! How functions tell how a call went: 0 or more, or minus a status code.

use guest_shim::hcall_abi::Status;

pub(crate) fn code(status: Status) -> i32 {
    -(status.code() as i32)
}

pub(crate) fn result(result: Result<(), Status>) -> i32 {
    result.map_or_else(code, |()| 0)
}
