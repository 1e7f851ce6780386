//! A virtual local APIC in x2APIC mode, one for each vCPU (SDM vol. 3, chapter 12; x2APIC in 12.12).
//!
//! x2APIC is the only mode: the guest is entered with its x2APIC enabled, and a write to IA32_APIC_BASE that would leave that state is
//! refused. Reserved registers, reserved bits, reads of write-only registers and writes to read-only ones are #GP.

mod registers;
mod timer;

pub use self::registers::{EOI, SELF_IPI};
use self::timer::{Mode, Timer};
use super::{Gp, vectors::VectorSet};

/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Version 0x15 with six LVT entries and no suppression of EOI broadcasts.
const VERSION_VALUE: u32 = 5 << 16 | 0x15;
const APIC_BASE_BSP: u64 = 1 << 8;
const APIC_BASE_X2APIC: u64 = 0xfee0_0000 | 1 << 11 | 1 << 10;

const SVR_ENABLED: u32 = 1 << 8;
const SVR_WRITABLE: u32 = 0x3ff;

const LVT_DELIVERY_STATUS: u32 = 1 << 12;
const LVT_REMOTE_IRR: u32 = 1 << 14;
const LVT_MASKED: u32 = 1 << 16;

const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;

/// ICR bits 31:20, 17:16, 13 and 12 (SDM vol. 3, figure 12-28).
const ICR_RESERVED: u64 = 0xfff3_3000;
/// ICR: the delivery mode, 10:8.
const ICR_DELIVERY_SHIFT: u32 = 8;
const ICR_DELIVERY: u64 = 7;
/// ICR: the destination in 63:32 is a logical one.
const ICR_LOGICAL: u64 = 1 << 11;
/// ICR: level 14 (set: assert), trigger mode 15 (set: level).
const ICR_TRIGGER: u64 = 3 << 14;
const ICR_DEASSERT: u64 = 2 << 14;
/// ICR: the destination shorthand, 19:18: none, self, all, all but self.
const ICR_SHORTHAND_SHIFT: u32 = 18;
const ICR_SHORTHAND: u64 = 3;

const LVT_TIMER: usize = 0;
const LVT_ERROR: usize = 5;
/// Writable bits of the timer, thermal, performance, LINT0, LINT1 and error entries.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

/// How an interrupt command is delivered: ICR bits 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To all named processors.
    Fixed,
    /// To one of the named processors.
    LowestPriority,
    /// System management: a platform without it ignores it.
    Smi,
    /// Non-maskable.
    Nmi,
    /// Resets the processor, which then waits for a start-up command.
    Init,
    /// Starts a waiting processor at page `vector`.
    StartUp,
}

impl Delivery {
    const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            _ => None,
        }
    }
}

/// Whom an interrupt command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The processor with this x2APIC ID; 0xFFFF_FFFF names all.
    Physical(u32),
    /// Cluster 31:16 and a mask of its members 15:0; 0xFFFF_FFFF names all.
    Logical(u32),
    /// All, the sender included.
    All,
    /// All but the sender.
    AllButSelf,
}

impl Destination {
    /// Whether the processor with this x2APIC ID is named, in a command of processor `sender` (SDM vol. 3, 12.12.9 and 12.12.10).
    pub const fn names(self, id: u32, sender: u32) -> bool {
        match self {
            Self::All | Self::Physical(u32::MAX) | Self::Logical(u32::MAX) => true,
            Self::AllButSelf => id != sender,
            Self::Physical(named) => named == id,
            Self::Logical(named) => named >> 16 == id >> 4 && named & 1 << (id & 15) != 0,
        }
    }
}

/// An interrupt command for other processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// The vector, or the page of a start-up command.
    pub vector: u8,
    /// How.
    pub delivery: Delivery,
    /// The destination, which can include the sender.
    pub destination: Destination,
}

/// What a write makes necessary beyond the APIC itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The set of pending interrupts or the priority changed, so [`X2Apic::pending`] has to be read again.
    Recheck,
    /// The timer was set, so [`X2Apic::next_deadline`] has to be read again.
    Timer,
    /// An interrupt ended. The platform may check whether it has to acknowledge it.
    Eoi(u8),
    /// An interrupt command for the platform to carry out.
    Ipi(Ipi),
}

/// What became of an interrupt offered to the APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is pending now.
    New,
    /// It was pending already: both become one, as on hardware.
    Merged,
    /// Its vector is below 16: noted in the ESR, not delivered.
    Illegal,
    /// The APIC is disabled by software and takes none.
    Disabled,
}

/// One vCPU's local APIC.
#[derive(Clone, Debug)]
pub struct X2Apic {
    id: u32,
    bsp: bool,
    tpr: u8,
    svr: u32,
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    irr: VectorSet,
    isr: VectorSet,
    timer: Timer,
}

impl X2Apic {
    /// The APIC of the vCPU with this ID, as after reset but in x2APIC mode. The bootstrap processor is `bsp`.
    pub fn new(id: u32, bsp: bool) -> Self {
        Self {
            id,
            bsp,
            tpr: 0,
            svr: 0xff,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            irr: VectorSet::EMPTY,
            isr: VectorSet::EMPTY,
            timer: Timer::default(),
        }
    }

    /// INIT: the state after reset. The ID and the choice of the bootstrap processor stay (SDM vol. 3, 12.4.7.3).
    pub fn reset(&mut self) {
        *self = Self::new(self.id, self.bsp);
    }

    /// Whether `msr` belongs to this APIC.
    pub const fn owns(msr: u32) -> bool {
        matches!(msr, MSR_APIC_BASE | MSR_TSC_DEADLINE) || (msr >= registers::FIRST && msr <= registers::LAST)
    }

    /// Its ID.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The logical ID that follows from the ID (SDM vol. 3, 12.12.10.2).
    pub const fn ldr(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 15)
    }

    /// The priority below which nothing is delivered (SDM vol. 3, 12.8.3.1).
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service }
    }

    /// EOI, as the guest writes it.
    pub fn end(&mut self) {
        let _ = self.end_of_interrupt();
    }

    /// CR8 as the guest reads it: the class of the task priority.
    pub const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// MOV to CR8 (SDM vol. 3, 12.8.6).
    pub fn set_cr8(&mut self, value: u64) -> Result<Effect, Gp> {
        if value > 15 {
            return Err(Gp);
        }
        self.tpr = (value as u8) << 4;
        Ok(Effect::Recheck)
    }

    /// Whether software has it enabled (SVR bit 8).
    pub const fn is_enabled(&self) -> bool {
        self.svr & SVR_ENABLED != 0
    }

    /// Takes an edge-triggered interrupt: from a device, a timer or another processor.
    pub fn accept(&mut self, vector: u8) -> Accepted {
        if !self.is_enabled() {
            return Accepted::Disabled;
        }
        if is_illegal(vector) {
            self.error(ESR_RECEIVE_ILLEGAL);
            return Accepted::Illegal;
        }
        if self.irr.insert(vector) { Accepted::New } else { Accepted::Merged }
    }

    /// Whether there is any interrupt to deliver, now or later.
    pub const fn has_requests(&self) -> bool {
        !self.irr.is_empty()
    }

    /// The interrupt to deliver next, if there is one above the processor priority.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// The hypervisor delivers `vector` now: it goes from the IRR to the ISR. Says whether it was pending at all.
    #[inline]
    pub fn begin(&mut self, vector: u8) -> bool {
        self.irr.remove(vector) && self.isr.insert(vector)
    }

    /// The guest's TSC has jumped: see [`Timer::tsc_jumped`].
    pub fn tsc_jumped(&mut self, before: u64, now: u64) {
        self.timer.tsc_jumped(before, now);
    }

    /// When [`expire`](Self::expire) must be called at the latest: a value of the guest's TSC. None if the timer is stopped or masked.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.lvt[LVT_TIMER] & LVT_MASKED != 0 { None } else { self.timer.deadline() }
    }

    /// Raises the timer's interrupt if it is due at `now`, the guest's TSC. Returns whether an interrupt became pending.
    pub fn expire(&mut self, now: u64) -> bool {
        let fired = self.timer.expire(now);
        fired && self.raise_lvt(LVT_TIMER)
    }

    fn raise_lvt(&mut self, entry: usize) -> bool {
        let lvt = self.lvt[entry];
        lvt & LVT_MASKED == 0 && self.accept(lvt as u8) == Accepted::New
    }

    /// Notes an error; the first since the ESR was last written raises the error interrupt (SDM vol. 3, 12.5.3).
    fn error(&mut self, bit: u32) {
        let first = self.errors == 0;
        self.errors |= bit;
        // An illegal vector in the error entry itself must not raise another error interrupt.
        if first && !is_illegal(self.lvt[LVT_ERROR] as u8) {
            self.raise_lvt(LVT_ERROR);
        }
    }

    /// RDMSR. `now` is the guest's TSC.
    pub fn read(&mut self, msr: u32, now: u64) -> Result<u64, Gp> {
        match msr {
            MSR_APIC_BASE => return Ok(self.apic_base()),
            MSR_TSC_DEADLINE => {
                self.expire(now);
                return Ok(self.timer.tsc_deadline());
            }
            registers::ICR => return Ok(self.icr),
            _ => {}
        }
        let value = match msr {
            registers::ID => self.id,
            registers::VERSION => VERSION_VALUE,
            registers::TPR => self.tpr as u32,
            registers::PPR => self.ppr() as u32,
            registers::LDR => self.ldr(),
            registers::SVR => self.svr,
            registers::ISR_FIRST..=registers::ISR_LAST => self.isr.register(msr - registers::ISR_FIRST),
            // The TMR is empty: there is no IOAPIC, hence no level-triggered interrupt.
            registers::TMR_FIRST..=registers::TMR_LAST => 0,
            registers::IRR_FIRST..=registers::IRR_LAST => self.irr.register(msr - registers::IRR_FIRST),
            registers::ESR => self.esr,
            registers::LVT_FIRST..=registers::LVT_LAST => self.lvt[(msr - registers::LVT_FIRST) as usize],
            registers::INITIAL_COUNT => self.timer.initial_count(),
            registers::CURRENT_COUNT => {
                self.expire(now);
                self.timer.current_count(now)
            }
            registers::DIVIDE => self.timer.divide(),
            _ => return Err(Gp),
        };
        Ok(value as u64)
    }

    const fn apic_base(&self) -> u64 {
        APIC_BASE_X2APIC | if self.bsp { APIC_BASE_BSP } else { 0 }
    }

    /// WRMSR. `now` is the guest's TSC.
    pub fn write(&mut self, msr: u32, value: u64, now: u64) -> Result<Effect, Gp> {
        match msr {
            MSR_APIC_BASE => return if value == self.apic_base() { Ok(Effect::None) } else { Err(Gp) },
            MSR_TSC_DEADLINE => return Ok(self.write_tsc_deadline(value, now)),
            registers::ICR => return self.write_icr(value),
            _ => {}
        }
        let value = u32::try_from(value).map_err(|_| Gp)?;
        match msr {
            registers::TPR => self.tpr = writable(value, 0xff)? as u8,
            registers::EOI => {
                writable(value, 0)?;
                return Ok(self.end_of_interrupt());
            }
            registers::SVR => self.write_svr(writable(value, SVR_WRITABLE)?, now),
            registers::ESR => {
                writable(value, 0)?;
                self.write_esr();
            }
            registers::LVT_FIRST..=registers::LVT_LAST => {
                return self.write_lvt((msr - registers::LVT_FIRST) as usize, value, now);
            }
            registers::INITIAL_COUNT => {
                self.expire(now);
                self.timer.set_initial_count(value, now);
                return Ok(Effect::Timer);
            }
            registers::DIVIDE => {
                self.expire(now);
                self.timer.set_divide(writable(value, 0xb)?, now);
                return Ok(Effect::Timer);
            }
            registers::SELF_IPI => self.send_to_self(writable(value, 0xff)? as u8),
            _ => return Err(Gp),
        }
        Ok(Effect::Recheck)
    }

    fn write_tsc_deadline(&mut self, value: u64, now: u64) -> Effect {
        self.expire(now);
        self.timer.set_tsc_deadline(value);
        self.expire(now);
        Effect::Timer
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.isr.remove(vector);
        Effect::Eoi(vector)
    }

    /// Writes SVR. Clearing the enable bit masks every LVT entry; pending interrupts stay pending (SDM vol. 3, 12.4.7.2).
    fn write_svr(&mut self, value: u32, now: u64) {
        self.expire(now);
        self.svr = value;
        if !self.is_enabled() {
            self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
        }
    }

    /// A write shows the errors since the last one and forgets them (SDM vol. 3, 12.5.3).
    fn write_esr(&mut self) {
        self.esr = core::mem::take(&mut self.errors);
    }

    fn write_lvt(&mut self, entry: usize, value: u32, now: u64) -> Result<Effect, Gp> {
        let read_only = LVT_DELIVERY_STATUS | if matches!(entry, 3 | 4) { LVT_REMOTE_IRR } else { 0 };
        let mut value = writable(value & !read_only, LVT_WRITABLE[entry])?;
        if !self.is_enabled() {
            value |= LVT_MASKED;
        }
        if entry != LVT_TIMER {
            self.lvt[entry] = value;
            return Ok(Effect::None);
        }
        let mode = Mode::from_bits(value >> 17).ok_or(Gp)?;
        // What was due before the change is delivered as it was set then.
        self.expire(now);
        self.lvt[entry] = value;
        self.timer.set_mode(mode);
        Ok(Effect::Timer)
    }

    fn write_icr(&mut self, value: u64) -> Result<Effect, Gp> {
        if value & ICR_RESERVED != 0 {
            return Err(Gp);
        }
        let delivery = Delivery::from_bits(value >> ICR_DELIVERY_SHIFT & ICR_DELIVERY).ok_or(Gp)?;
        self.icr = value;
        let vector = value as u8;
        let fixed = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        if fixed && is_illegal(vector) {
            self.error(ESR_SEND_ILLEGAL);
            return Ok(Effect::Recheck);
        }
        // INIT level de-assert: nothing on processors since the Pentium 4 (SDM vol. 3, 12.6.1).
        if delivery == Delivery::Init && value & ICR_TRIGGER == ICR_DEASSERT {
            return Ok(Effect::None);
        }
        let (id, logical) = ((value >> 32) as u32, value & ICR_LOGICAL != 0);
        let destination = match value >> ICR_SHORTHAND_SHIFT & ICR_SHORTHAND {
            0 if logical => Destination::Logical(id),
            0 => Destination::Physical(id),
            1 => Destination::Physical(self.id),
            2 => Destination::All,
            _ => Destination::AllButSelf,
        };
        let own = destination == Destination::Physical(self.id) || destination == Destination::Logical(self.ldr());
        if own && fixed {
            self.send_to_self(vector);
            return Ok(Effect::Recheck);
        }
        Ok(Effect::Ipi(Ipi { vector, delivery, destination }))
    }

    fn send_to_self(&mut self, vector: u8) {
        if is_illegal(vector) {
            self.error(ESR_SEND_ILLEGAL);
        } else {
            self.accept(vector);
        }
    }
}

/// Vectors below 16 are the processor's own (SDM vol. 3, 12.5.2).
const fn is_illegal(vector: u8) -> bool {
    vector < 16
}

/// The value, unless it has bits outside of `mask`.
const fn writable(value: u32, mask: u32) -> Result<u32, Gp> {
    if value & !mask == 0 { Ok(value) } else { Err(Gp) }
}

#[cfg(test)]
mod tests;
