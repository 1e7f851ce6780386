//! A machine whose processors are loom's threads, and whose interrupts wait in a local APIC until the processor takes them.

use loom::sync::{
    Notify,
    atomic::Ordering::{Acquire, Release},
};

use crate::atomic::AtomicU64;

/// Processors of the machine.
const PROCESSORS: usize = 3;

/// A local APIC: a bit for each vector, by its low 6 bits.
///
/// An interrupt arrives after all that its sender wrote before. That holds for the hypervisor's, because the sender's last access is a locked
/// one; the WRMSR that sends an interrupt does not wait for plain stores (SDM vol. 3, 12.12.3).
struct LocalApic {
    requested: AtomicU64,
    wakes: Notify,
}

loom::lazy_static! {
    static ref APICS: [LocalApic; PROCESSORS] =
        std::array::from_fn(|_| LocalApic { requested: AtomicU64::new(0), wakes: Notify::new() });
}

loom::thread_local! {
    static NUMBER: std::cell::Cell<usize> = std::cell::Cell::new(0);
    static ARRIVED: std::cell::Cell<u64> = std::cell::Cell::new(0);
}

/// Makes this thread the processor with this number.
pub fn become_processor(number: usize) {
    NUMBER.with(|own| own.set(number));
}

const fn bit(vector: u8) -> u64 {
    1 << (vector % 64)
}

/// The room `apic`.
pub mod apic {
    use super::{APICS, Release, bit};

    pub const WAKE_UP_VECTOR: u8 = 0xf1;
    pub const NOTIFICATION_VECTOR: u8 = 0xf2;
    pub const INJECT_VECTOR: u8 = 0xf3;

    /// Sends an interrupt to the processor with this number.
    pub fn notify(apic_id: u32, vector: u8) {
        let apic = &APICS[apic_id as usize];
        apic.requested.fetch_or(bit(vector), Release);
        apic.wakes.notify();
    }
}

/// The room `cpu`.
pub mod cpu {
    /// Which processor this is.
    pub mod percpu {
        pub struct PerCpu {
            pub number: usize,
        }

        pub fn this_cpu() -> PerCpu {
            PerCpu { number: super::super::NUMBER.with(|number| number.get()) }
        }
    }

    /// Interrupts of this processor, as `cpu/interrupts.rs` has them.
    pub mod interrupts {
        use super::super::{APICS, ARRIVED, Acquire, bit};

        /// Notes a vector that this processor would otherwise send to itself.
        pub fn raise(vector: u8) {
            ARRIVED.with(|arrived| arrived.set(arrived.get() | bit(vector)));
        }

        /// Takes pending interrupts, without waiting.
        pub fn poll() {
            let new = APICS[super::percpu::this_cpu().number].requested.swap(0, Acquire);
            ARRIVED.with(|arrived| arrived.set(arrived.get() | new));
        }

        /// Whether vectors are noted and not taken yet.
        pub fn any() -> bool {
            ARRIVED.with(|arrived| arrived.get() != 0)
        }

        /// Whether this vector was noted, and notes it no more.
        pub fn take(vector: u8) -> bool {
            ARRIVED.with(|arrived| {
                let before = arrived.get();
                arrived.set(before & !bit(vector));
                before & bit(vector) != 0
            })
        }

        /// Waits for an interrupt: in HLT, or while a guest runs that does nothing else. A wait without end is a deadlock for loom.
        pub fn idle() {
            let apic = &APICS[super::percpu::this_cpu().number];
            while apic.requested.load(Acquire) == 0 {
                apic.wakes.wait();
            }
            poll();
        }
    }
}
