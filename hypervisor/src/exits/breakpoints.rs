//! Breakpoints of a guest on data and ports that an emulated access touches: SDM vol. 3, 18.2.4 and 18.2.5.
//!
//! The processor checks for them only at accesses that it carries out itself, so the hypervisor checks at the accesses that it emulates.
#![forbid(unsafe_code)]

/// The kind of access that breaks: bits 17:16 of DR7 and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A read of data.
    Read,
    /// A write of data.
    Write,
    /// A port.
    Port,
}

/// DR7, and the addresses in DR0 to DR3.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breakpoints {
    dr7: u64,
    addresses: [u64; 4],
}

/// R/W of a breakpoint: on writes, on ports (with CR4.DE), on reads and writes.
const ON_WRITE: u64 = 1;
const ON_PORT: u64 = 2;
const ON_ACCESS: u64 = 3;

/// Whether a breakpoint is armed that is not on execution. The processor serves breakpoints on execution by itself.
#[inline]
pub const fn are_armed(dr7: u64) -> bool {
    const ENABLED: u64 = 0xff;
    const KINDS: u64 = 0x3333_0000;
    dr7 & ENABLED != 0 && dr7 & KINDS != 0
}

impl Breakpoints {
    /// The registers' values.
    pub const fn new(dr7: u64, addresses: [u64; 4]) -> Self {
        Self { dr7, addresses }
    }

    /// The breakpoints that an access to `bytes` bytes from `from` hits: bits 3:0 as in DR6, and the further bits of the VMCS's pending
    /// debug exceptions (SDM vol. 3, table 26-4). 0 if it hits none.
    pub fn hit(&self, access: Access, from: u64, bytes: u64) -> u64 {
        const ENABLED_BREAKPOINT: u64 = 1 << 12;
        let hits = (0..4).filter(|&n| self.hits(n, access, from, bytes)).fold(0, |hits, n| hits | 1 << n);
        if hits == 0 { 0 } else { hits | ENABLED_BREAKPOINT }
    }

    fn hits(&self, n: usize, access: Access, from: u64, bytes: u64) -> bool {
        let field = self.dr7 >> (16 + 4 * n);
        let enabled = self.dr7 >> (2 * n) & 3 != 0;
        let kind = match access {
            Access::Write => matches!(field & 3, ON_WRITE | ON_ACCESS),
            Access::Read => field & 3 == ON_ACCESS,
            Access::Port => field & 3 == ON_PORT,
        };
        let len = [1, 2, 8, 4][(field >> 2 & 3) as usize];
        let start = self.addresses[n] & !(len - 1);
        // Either lies in the other's range, which may wrap.
        let meets = from.wrapping_sub(start) < len || start.wrapping_sub(from) < bytes;
        enabled && kind && meets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breakpoint `n` alone, with R/W and LEN.
    fn one(n: usize, kind: u64, len: u64, address: u64) -> Breakpoints {
        let mut addresses = [0x7777_0000; 4];
        addresses[n] = address;
        Breakpoints::new(1 << (2 * n) | (kind | len << 2) << (16 + 4 * n), addresses)
    }

    #[test]
    fn a_breakpoint_is_hit_by_any_byte_of_its_range_and_by_its_kinds_of_access() {
        for n in 0..4 {
            let hit = 1 << n | 1 << 12;
            let dword = one(n, ON_WRITE, 3, 0x1004);
            assert_eq!(dword.hit(Access::Write, 0x1007, 1), hit);
            assert_eq!(dword.hit(Access::Write, 0x1000, 5), hit);
            assert_eq!(dword.hit(Access::Write, 0x1000, 4), 0);
            assert_eq!(dword.hit(Access::Write, 0x1008, 8), 0);
            assert_eq!(dword.hit(Access::Read, 0x1004, 4), 0, "on writes only");
            let either = one(n, ON_ACCESS, 2, 0x2003);
            assert_eq!(either.hit(Access::Read, 0x2000, 1), hit, "8 bytes, aligned");
            assert_eq!(either.hit(Access::Write, 0x2007, 64), hit);
            let port = one(n, ON_PORT, 0, 0x80);
            assert_eq!((port.hit(Access::Port, 0x7f, 2), port.hit(Access::Write, 0x80, 1)), (hit, 0));
            assert_eq!(one(n, 0, 0, 0x1000).hit(Access::Read, 0x1000, 8), 0, "on execution");
        }
    }

    #[test]
    fn a_breakpoint_that_is_off_is_not_hit_and_not_armed() {
        let off = Breakpoints::new(0x1_0400, [0; 4]);
        assert_eq!(off.hit(Access::Write, 0, 8), 0);
        assert!(!are_armed(0x400) && !are_armed(0x1_0400) && !are_armed(0x402) && are_armed(0x1_0402));
    }
}
