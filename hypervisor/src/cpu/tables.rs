//! The hypervisor's GDT, TSS and IDT.

use super::exception;

/// Selector of the 64-bit code segment.
pub const CODE: u16 = 8;
/// Selector of the data segment.
pub const DATA: u16 = 16;
/// Selector of the TSS.
pub const TSS: u16 = 24;

/// Bytes of each stack that an exception switches to.
const IST_STACK: usize = 8192;

/// Task-state segment of long mode: SDM vol. 3, 9.7.
#[repr(C, packed(4))]
struct TaskState {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: [u16; 5],
    io_map_base: u16,
}

const _: () = assert!(size_of::<TaskState>() == 104);

/// The tables of one processor. They live as long as the processor runs.
#[repr(C, align(4096))]
pub struct Tables {
    stacks: [[u8; IST_STACK]; 3],
    idt: [[u64; 2]; 256],
    gdt: [u64; 5],
    tss: TaskState,
}

#[repr(C, packed(2))]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Linear addresses for the VMCS's host state.
#[derive(Clone, Copy, Debug)]
pub struct Bases {
    /// Of the GDT.
    pub gdt: u64,
    /// Of the IDT.
    pub idt: u64,
    /// Of the TSS.
    pub tss: u64,
}

impl Tables {
    /// Empty tables.
    pub const fn new() -> Self {
        Self {
            stacks: [[0; IST_STACK]; 3],
            idt: [[0; 2]; 256],
            gdt: [0; 5],
            tss: TaskState {
                reserved0: 0,
                rsp: [0; 3],
                reserved1: 0,
                ist: [0; 7],
                reserved2: [0; 5],
                io_map_base: size_of::<TaskState>() as u16,
            },
        }
    }

    /// Fills the tables, and loads them into this processor.
    pub fn load(&'static mut self) -> Bases {
        let tss = (&raw const self.tss) as u64;
        let tops = [0, 1, 2].map(|n: usize| (&raw const self.stacks[n]) as u64 + IST_STACK as u64);
        self.tss.ist = [tops[0], tops[1], tops[2], 0, 0, 0, 0];
        // SDM vol. 3, figure 3-8: 64-bit code; data; and figure 9-4: available 64-bit TSS of 104 bytes.
        let tss_low = 0x0000_8900_0000_0067 | (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56;
        self.gdt = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, tss_low, tss >> 32];
        for (vector, gate) in self.idt.iter_mut().enumerate() {
            *gate = interrupt_gate(exception::stubs() + vector as u64 * exception::STUB_SIZE, stack_of(vector));
        }
        let bases = Bases { gdt: (&raw const self.gdt) as u64, idt: (&raw const self.idt) as u64, tss };
        let gdtr = Pointer { limit: size_of_val(&self.gdt) as u16 - 1, base: bases.gdt };
        let idtr = Pointer { limit: size_of_val(&self.idt) as u16 - 1, base: bases.idt };
        // SAFETY: both tables are complete, live for ever (`&'static mut`), and hold the segments that are loaded here; the
        // code segment is the one in use, in its new place.
        unsafe {
            core::arch::asm!(
                "lgdt [{gdtr}]",
                "lidt [{idtr}]",
                "push {code}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2:",
                "mov ds, {data:e}",
                "mov es, {data:e}",
                "mov ss, {data:e}",
                "mov fs, {zero:e}",
                "mov gs, {zero:e}",
                "ltr {tss:x}",
                gdtr = in(reg) &raw const gdtr,
                idtr = in(reg) &raw const idtr,
                code = in(reg) u64::from(CODE),
                data = in(reg) u32::from(DATA),
                zero = in(reg) 0u32,
                tss = in(reg) TSS,
                scratch = out(reg) _,
            );
        }
        bases
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

/// The interrupt stack that a vector switches to (0: none): NMI, double fault and machine check get one each.
const fn stack_of(vector: usize) -> u64 {
    match vector {
        2 => 1,
        8 => 2,
        18 => 3,
        _ => 0,
    }
}

/// A present 64-bit interrupt gate: SDM vol. 3, figure 7-8.
const fn interrupt_gate(handler: u64, ist: u64) -> [u64; 2] {
    let low = handler & 0xffff | (CODE as u64) << 16 | ist << 32 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_holds_the_whole_address() {
        let [low, high] = interrupt_gate(0x1234_5678_9abc_def0, 2);
        assert_eq!(low & 0xffff, 0xdef0);
        assert_eq!(low >> 48, 0x9abc);
        assert_eq!(high, 0x1234_5678);
        assert_eq!(low >> 16 & 0xffff, u64::from(CODE));
        assert_eq!(low >> 32 & 7, 2);
        assert_eq!(low >> 40 & 0xff, 0x8e);
    }
}
