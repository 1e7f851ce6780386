//! Single stores of every width and kind, which may fault.

use crate::may_fault;

/// Writes the low `width` bytes (1, 2, 4 or 8) of `value` to any address. Returns the exception that came.
///
/// # Safety
/// No memory of the program is at `address`.
pub unsafe fn store(address: u64, width: usize, value: u64) -> Option<u8> {
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            1 => may_fault!(["mov [{address}], {value}"], address = in(reg) address, value = in(reg_byte) value as u8),
            2 => may_fault!(["mov [{address}], {value:x}"], address = in(reg) address, value = in(reg) value as u16),
            4 => may_fault!(["mov [{address}], {value:e}"], address = in(reg) address, value = in(reg) value as u32),
            _ => may_fault!(["mov [{address}], {value}"], address = in(reg) address, value = in(reg) value),
        }
    }
}

/// Which way a string instruction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To higher addresses.
    Up,
    /// To lower addresses.
    Down,
}

/// REP STOSD: `count` dwords from `address`, up or down.
///
/// # Safety
/// No memory of the program is there.
pub unsafe fn rep_stosd(address: u64, count: u64, value: u32, direction: Direction) -> Option<u8> {
    // SAFETY: the caller's promise.
    unsafe {
        match direction {
            Direction::Up => may_fault!(
                ["rep stosd"],
                inout("rdi") address => _,
                inout("rcx") count => _,
                in("eax") value,
            ),
            Direction::Down => may_fault!(
                ["std", "rep stosd"],
                inout("rdi") address => _,
                inout("rcx") count => _,
                in("eax") value,
            ),
        }
    }
}

/// REP MOVSD: `count` dwords from `source` to `address`, up or down.
///
/// # Safety
/// The source can be read, and no memory of the program is at the destination.
pub unsafe fn rep_movsd(address: u64, source: u64, count: u64, direction: Direction) -> Option<u8> {
    // SAFETY: the caller's promise.
    unsafe {
        match direction {
            Direction::Up => may_fault!(
                ["rep movsd"],
                inout("rdi") address => _,
                inout("rsi") source => _,
                inout("rcx") count => _,
            ),
            Direction::Down => may_fault!(
                ["std", "rep movsd"],
                inout("rdi") address => _,
                inout("rsi") source => _,
                inout("rcx") count => _,
            ),
        }
    }
}

/// A store that is more than MOV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// LOCK OR with a dword.
    LockOr,
    /// XCHG with a dword, which locks by itself.
    Xchg,
    /// ADD to a dword.
    Add,
    /// NOT of a byte.
    NotByte,
    /// LOCK XADD with a dword.
    LockXadd,
    /// LOCK CMPXCHG of a dword that compares unequal to 0xDEADBEEF.
    LockCmpxchg,
    /// MOVNTI of a quadword.
    Movnti,
    /// MOVUPS of 16 zero bytes.
    Movups,
}

impl Odd {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::LockOr,
        Self::Xchg,
        Self::Add,
        Self::NotByte,
        Self::LockXadd,
        Self::LockCmpxchg,
        Self::Movnti,
        Self::Movups,
    ];

    /// What lies at the address afterwards, where `old` was: the value, and its width. `None` when nothing changes, or when the
    /// instruction is one that only some hypervisors emulate and that may therefore fault or do its work.
    pub const fn result(self, old: u64, value: u32) -> Option<(u64, usize)> {
        let low = old as u32;
        match self {
            Self::LockOr => Some(((low | value) as u64, 4)),
            Self::Xchg => Some((value as u64, 4)),
            Self::Add | Self::LockXadd => Some((low.wrapping_add(value) as u64, 4)),
            Self::NotByte => Some((!low as u8 as u64, 1)),
            Self::Movnti => Some((value as u64, 8)),
            Self::LockCmpxchg | Self::Movups => None,
        }
    }

    /// Executes it.
    ///
    /// # Safety
    /// No memory of the program is at `address`.
    pub unsafe fn execute(self, address: u64, value: u32) -> Option<u8> {
        let wide = u64::from(value);
        // SAFETY: the caller's promise. The target has no SSE registers for the compiler to use, so XMM0 is free.
        unsafe {
            match self {
                Self::LockOr => may_fault!(["lock or [{a}], {v:e}"], a = in(reg) address, v = in(reg) value),
                Self::Xchg => may_fault!(["xchg [{a}], {v:e}"], a = in(reg) address, v = inout(reg) value => _),
                Self::Add => may_fault!(["add [{a}], {v:e}"], a = in(reg) address, v = in(reg) value),
                Self::NotByte => may_fault!(["not byte ptr [{a}]"], a = in(reg) address),
                Self::LockXadd => {
                    may_fault!(["lock xadd [{a}], {v:e}"], a = in(reg) address, v = inout(reg) value => _)
                }
                Self::LockCmpxchg => may_fault!(
                    ["lock cmpxchg [{a}], {v:e}"],
                    a = in(reg) address,
                    v = in(reg) value,
                    inout("eax") 0xdead_beefu32 => _,
                ),
                Self::Movnti => may_fault!(["movnti [{a}], {v}"], a = in(reg) address, v = in(reg) wide),
                Self::Movups => may_fault!(["xorps xmm0, xmm0", "movups [{a}], xmm0"], a = in(reg) address),
            }
        }
    }
}

/// Lets SSE instructions be executed (SDM vol. 3, 14.1.3): CR4.OSFXSR and CR0.MP set, CR0.EM cleared.
pub fn enable_sse() {
    // SAFETY: no SSE instruction is in the program but those above.
    unsafe {
        core::arch::asm!(
            "mov {r}, cr0",
            "and {r}, -5",
            "or {r}, 2",
            "mov cr0, {r}",
            "mov {r}, cr4",
            "or {r}, 0x200",
            "mov cr4, {r}",
            r = out(reg) _,
            options(nomem, nostack),
        );
    }
}
