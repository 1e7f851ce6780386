//! The expected result of each slot: every raised interrupt once, at its target only.
//!
//! A slot has two vectors that no other slot has, on every processor. At most one of its interrupts is under way at a time, so none
//! can become one with another.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use guests::bare::{smp, vector};
use guests::guest_shim::hcall_abi::Target;

/// Most slots.
pub const MOST: usize = 64;
/// Vectors of a slot.
pub const VECTORS: u8 = 2;

struct Account {
    raised: AtomicU32,
    came: AtomicU32,
    /// A bit for each place where it may come now: see [`place`].
    allowed: AtomicU64,
    /// How often it came elsewhere.
    astray: AtomicU32,
}

static ACCOUNTS: [Account; MOST] = [const {
    Account {
        raised: AtomicU32::new(0),
        came: AtomicU32::new(0),
        allowed: AtomicU64::new(0),
        astray: AtomicU32::new(0),
    }
}; MOST];

/// Interrupts on vectors of no slot.
static STRAYS: AtomicU32 = AtomicU32::new(0);

/// Target number `choice` of slot `slot` on `cpus` processors.
pub fn target(slot: usize, cpus: usize, choice: u64) -> Target {
    let which = (choice % u64::from(VECTORS)) as u8;
    let apic_id = (choice / u64::from(VECTORS) % cpus as u64) as u32;
    Target { apic_id, vector: vector::FIRST + slot as u8 * VECTORS + which }
}

fn place(target: Target) -> u64 {
    1 << (target.apic_id * u32::from(VECTORS) + u32::from((target.vector - vector::FIRST) % VECTORS))
}

/// An interrupt came.
pub fn came(vector: u8) {
    let at = vector.checked_sub(vector::FIRST).map(|n| usize::from(n / VECTORS));
    let Some(account) = at.and_then(|slot| ACCOUNTS.get(slot)) else {
        STRAYS.fetch_add(1, SeqCst);
        return;
    };
    let here = place(Target { apic_id: smp::number() as u32, vector });
    if account.allowed.load(SeqCst) & here == 0 {
        account.astray.fetch_add(1, SeqCst);
    }
    account.came.fetch_add(1, SeqCst);
}

/// The slot's interrupts may go to `target`, too.
pub fn allow(slot: usize, target: Target) {
    ACCOUNTS[slot].allowed.fetch_or(place(target), SeqCst);
}

/// They may go to `target` only.
pub fn allow_only(slot: usize, target: Target) {
    ACCOUNTS[slot].allowed.store(place(target), SeqCst);
}

/// The slot is about to be raised.
pub fn raise(slot: usize) {
    ACCOUNTS[slot].raised.fetch_add(1, SeqCst);
}

/// Whether one is under way.
pub fn is_under_way(slot: usize) -> bool {
    ACCOUNTS[slot].raised.load(SeqCst) != ACCOUNTS[slot].came.load(SeqCst)
}

/// The sum of all slots.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Interrupts raised.
    pub raised: u32,
    /// Those that did not come.
    pub lost: u32,
    /// Those that came too often.
    pub doubled: u32,
    /// Those that came where they must not.
    pub astray: u32,
}

/// Adds everything up.
pub fn sum() -> Sum {
    let mut sum = Sum { astray: STRAYS.load(SeqCst), ..Sum::default() };
    for account in &ACCOUNTS {
        let (raised, came) = (account.raised.load(SeqCst), account.came.load(SeqCst));
        sum.raised += raised;
        sum.lost += raised.saturating_sub(came);
        sum.doubled += came.saturating_sub(raised);
        sum.astray += account.astray.load(SeqCst);
    }
    sum
}
