//! A hostile guest: it brings its processor into states that VM entry looks at, and executes what it must not. Each instruction may do
//! its work or fault; the guest must still be there at the end, and so must the hypervisor.
#![no_std]
#![no_main]

use core::arch::asm;

use guests::bare::{Guest, idle, poke};
use guests::random::Random;
use guests::{may_fault, println};

guests::guest!(main);

/// #DB.
const DB: u8 = 1;
/// Configuration space of the guest's bus 0.
const ECAM: u64 = 0xe000_0000;
/// DR7: a global breakpoint of DR0's on execution, and the bit that is always 1.
const DR7_EXECUTE_0: u64 = 0x402;
const DR7_NONE: u64 = 0x400;

fn main(_: &Guest) -> u8 {
    poke::enable_sse();
    let mut errors = 0;
    let mut check = |what: &str, good: bool| {
        if !good {
            println!("hostile: error: {what}");
            errors += 1;
        }
    };
    check("a single step behind CPUID", steps_behind_an_exit());
    check("a single step behind STI", steps_behind_sti() == Some(DB));
    check("INT1 behind MOV SS", int1_behind_mov_ss() == Some(DB));
    check("a breakpoint survives exits", breakpoint_survives_exits());
    check("configuration space takes any access", configuration_space());
    let tried = instructions() + control_registers() + model_specific_registers();
    check("the guest sleeps and wakes", !idle::wait_until(20_000, || false));
    println!("@result tried={tried} errors={errors}");
    u8::from(errors != 0)
}

/// The trap comes right behind the instruction that exits, here an IN.
fn steps_behind_an_exit() -> bool {
    let mut behind = 0u64;
    // SAFETY: nothing is at the port. The handler ends the single step.
    let caught = unsafe {
        may_fault!(
            ["pushfq", "or qword ptr [rsp], 0x100", "popfq", "in al, dx", "inc {behind}", "inc {behind}"],
            behind = inout(reg) behind,
            in("dx") 0x80u16,
            out("al") _,
        )
    };
    caught == Some(DB) && behind == 0
}

/// The trap exits while STI blocks interrupts.
fn steps_behind_sti() -> Option<u8> {
    // SAFETY: every vector has a handler, which ends the single step.
    unsafe { may_fault!(["cli", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "sti", "nop", "nop"]) }
}

/// The trap exits while MOV SS blocks what else is due, a single step besides.
fn int1_behind_mov_ss() -> Option<u8> {
    // SAFETY: SS keeps its value; the handler ends the single step.
    unsafe {
        may_fault!(
            ["mov {ss:x}, ss", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "mov ss, {ss:x}", ".byte 0xf1", "nop"],
            ss = out(reg) _,
        )
    }
}

/// DR7 is the guest's, before an exit and after it.
fn breakpoint_survives_exits() -> bool {
    let dr7: u64;
    // SAFETY: no code is at the address in DR0; nothing is at the port.
    unsafe {
        asm!(
            "mov dr0, {address}",
            "mov dr7, {armed}",
            "in al, dx",
            "mov {armed}, dr7",
            "mov dr7, {none}",
            address = in(reg) 0x7fff_ffff_0000u64,
            armed = inout(reg) DR7_EXECUTE_0 => dr7,
            none = in(reg) DR7_NONE,
            in("dx") 0x80u16,
            out("al") _,
        );
    }
    dr7 == DR7_EXECUTE_0
}

/// Reads and writes of every width and alignment, where functions are and where none is. Identifiers stay as they are.
fn configuration_space() -> bool {
    let identifier = ECAM as *const u32;
    // SAFETY: the window is mapped, and no memory of the program lies there.
    unsafe {
        let before = identifier.read_volatile();
        for page in [0, 1, 8, 255] {
            for offset in [0, 1, 3, 4, 6, 0x10, 0x3d, 0x82, 0x100, 0xff8, 0xff9, 0xffc, 0xfff] {
                for width in [1, 2, 4, 8] {
                    let address = ECAM + page * 4096 + offset;
                    if page != 255 || offset + width as u64 <= 4096 {
                        let _ = poke::store(address, width, u64::MAX);
                    }
                }
                for odd in poke::Odd::ALL {
                    if offset <= 0xfe0 {
                        let _ = odd.execute(ECAM + page * 4096 + offset, 0x5a5a_5a5a);
                    }
                }
                let _ = may_fault!(["and [{at}], {v}"], at = in(reg) ECAM + page * 4096 + offset.min(0xff8), v = in(reg) 0u64);
            }
        }
        identifier.read_volatile() == before
    }
}

/// Executes an instruction with addresses and numbers that lead nowhere. Yields 1.
macro_rules! try_instruction {
    ($($instruction:literal),+) => {{
        // SAFETY: whatever the instruction does to the registers named here, the program does not notice; the address is not mapped
        // by the guest's memory.
        let _ = unsafe {
            may_fault!(
                [$($instruction),+],
                inout("rax") 0u64 => _,
                inout("rcx") 0u64 => _,
                inout("rdx") 0u64 => _,
                inout("rsi") 0xd000_0000u64 => _,
                inout("rdi") 0xd000_0000u64 => _,
            )
        };
        1u32
    }};
}

fn instructions() -> u32 {
    [
        try_instruction!("vmxoff"),
        try_instruction!("vmlaunch"),
        try_instruction!("vmresume"),
        try_instruction!("vmread rax, rcx"),
        try_instruction!("vmwrite rax, rcx"),
        try_instruction!("vmptrld [rdi]"),
        try_instruction!("vmclear [rdi]"),
        try_instruction!("vmxon [rdi]"),
        try_instruction!("invept rax, [rdi]"),
        try_instruction!("invvpid rax, [rdi]"),
        try_instruction!("invpcid rax, [rdi]"),
        try_instruction!("vmfunc"),
        try_instruction!("rsm"),
        try_instruction!("getsec"),
        try_instruction!("monitor"),
        try_instruction!("mwait"),
        try_instruction!("invd"),
        try_instruction!("wbinvd"),
        try_instruction!("xsaves [rdi]"),
        try_instruction!("xrstors [rdi]"),
        try_instruction!("rdpmc"),
        try_instruction!("insb"),
        try_instruction!("rep outsd"),
        try_instruction!("ud2"),
        try_instruction!("int 0x80"),
        try_instruction!("int3"),
        try_instruction!(".byte 0xf1"),
        try_instruction!("clts"),
        try_instruction!("lmsw ax"),
        try_instruction!("rdpkru"),
        try_instruction!("swapgs", "swapgs"),
        try_instruction!("lock inc dword ptr [rdi]"),
        try_instruction!("cmpxchg16b [rdi]"),
        try_instruction!("fxsave [rdi]"),
        try_instruction!("lgdt [rdi]"),
        try_instruction!("call [rdi]"),
        try_instruction!("lldt [rdi]"),
        try_instruction!("verr [rdi]"),
    ]
    .iter()
    .sum()
}

/// Bits one by one, and values in which bits contradict each other. CR0.PG and PE, CR4.PAE stay: #GP or not, code runs on.
fn control_registers() -> u32 {
    let (cr0, cr4): (u64, u64);
    // SAFETY: reading changes nothing.
    unsafe { asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4) };
    let mut tried = 0;
    for bit in 0..64 {
        // SAFETY: a value that is taken is undone at once; paging stays as it is in all of them (LA57 and PAE cannot change in long
        // mode). SMEP and SMAP find no user pages.
        unsafe {
            let _ = may_fault!(["mov cr0, {v}", "mov cr0, {old}"], v = in(reg) cr0 ^ 1 << bit, old = in(reg) cr0);
            let _ = may_fault!(["mov cr4, {v}", "mov cr4, {old}"], v = in(reg) cr4 ^ 1 << bit, old = in(reg) cr4);
            let _ = may_fault!(["mov cr8, {v}", "mov cr8, {old}"], v = in(reg) 1u64 << bit, old = in(reg) 0u64);
            let _ = may_fault!(
                ["xsetbv"], in("ecx") 0, in("eax") 1u64.wrapping_shl(bit) as u32, in("edx") (1u64 << bit >> 32) as u32
            );
        }
        tried += 4;
    }
    tried
}

/// Reads every register there could be, and writes numbers to those that do not take the guest's own ground away.
fn model_specific_registers() -> u32 {
    /// IA32_TIME_STAMP_COUNTER, and the x2APIC's: another test's business.
    const LEFT_ALONE: [u32; 1] = [0x10];
    let mut random = Random::new(4);
    let mut tried = 0;
    for msr in (0..0x1100).chain(0x4000_0000..0x4000_0020).chain(0xc000_0000..0xc000_0200).chain([u32::MAX]) {
        // SAFETY: no address in the written registers is used: no system call, no FS, no GS but in SWAPGS.
        unsafe {
            let _ = may_fault!(["rdmsr"], in("ecx") msr, out("eax") _, out("edx") _);
            let mine = LEFT_ALONE.contains(&msr) || (0x800..0x900).contains(&msr);
            if !mine {
                for value in [random.next(), random.next() >> 40, 1 << 47, 1 << 63, u64::MAX, 0] {
                    let _ =
                        may_fault!(["wrmsr"], in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32);
                }
            }
        }
        tried += 7;
    }
    tried
}
