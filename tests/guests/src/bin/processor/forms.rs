//! Instructions that access memory, each executed on memory and on a message store: registers, flags, faults and bytes must come out the
//! same, but for the control dwords, of which a store keeps the mask bit only.

use core::arch::asm;

use guests::bare::assigned::AssignedDsa;
use guests::bare::{dma::DmaBuffer, faults};
use guests::println;
use guests::store_image::StoreImage;

use crate::Checks;

/// The first slot that is written.
const FIRST_SLOT: u64 = 300;
/// Differences that are told in full.
const TOLD: u32 = 4;
/// Bytes that are compared: four slots.
const BYTES: usize = 64;
/// Where the operand lies in them.
const AT: u64 = 16;

static MEMORY: DmaBuffer<4096> = DmaBuffer::new();
static SOURCE: DmaBuffer<4096> = DmaBuffer::new();

/// What an instruction begins with, and what it leaves.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    ymm: [u64; 4],
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    /// Relative to the operand.
    rdi: u64,
    rflags: u64,
    fault: Option<u8>,
}

/// A form: its text, whether it is VEX, and the instruction with RDI at the operand.
struct Form {
    name: &'static str,
    vex: bool,
    run: unsafe fn(&mut State, u64),
}

/// Arithmetic flags and DF.
const FLAGS: u64 = 0xcd5;

macro_rules! form {
    ($vex:literal, $name:literal, $($instruction:literal),+) => {{
        /// # Safety
        /// The operand is a slot's or memory of this module.
        unsafe fn run(state: &mut State, operand: u64) {
            let (mut rflags, mut rdi) = (state.rflags, operand);
            // SAFETY: what the instruction changes is named, or put back: RBX, and XMM0, which the compiler does not use. Faults lead to 9.
            unsafe {
                asm!(
                    "lea {scratch}, [rip + 9f]",
                    "mov [rip + {resume_at}], {scratch}",
                    "mov {scratch}, [{state} + 40]",
                    "xchg rbx, {scratch}",
                    "cmp {vex}, 0",
                    "je 7f",
                    "vmovups ymm0, [{state}]",
                    "jmp 8f",
                    "7: movups xmm0, [{state}]",
                    "8:",
                    "push {rflags}",
                    "popfq",
                    $($instruction,)+
                    "9:",
                    "pushfq",
                    "pop {rflags}",
                    "cld",
                    "xchg rbx, {scratch}",
                    "mov [{state} + 40], {scratch}",
                    "cmp {vex}, 0",
                    "je 7f",
                    "vmovups [{state}], ymm0",
                    "jmp 8f",
                    "7: movups [{state}], xmm0",
                    "8:",
                    scratch = out(reg) _,
                    resume_at = sym faults::RESUME,
                    state = in(reg) &raw mut *state,
                    vex = in(reg) u64::from($vex),
                    rflags = inout(reg) rflags,
                    inout("rax") state.rax,
                    inout("rcx") state.rcx,
                    inout("rdx") state.rdx,
                    inout("rsi") state.rsi,
                    inout("rdi") rdi,
                );
            }
            (state.rflags, state.rdi) = (rflags & FLAGS, rdi.wrapping_sub(operand));
            state.fault = faults::take();
        }
        Form { name: $name, vex: $vex, run }
    }};
}

macro_rules! plain { ($($name:literal),+ $(,)?) => { [$(form!(false, $name, $name)),+] }; }
macro_rules! vex { ($($name:literal),+ $(,)?) => { [$(form!(true, $name, $name)),+] }; }
macro_rules! locked { ($($name:literal),+ $(,)?) => { [$(form!(false, $name, "lock", $name)),+] }; }

/// MOV and its like, strings, and what is not carried out.
static MOVES: &[Form] = &plain!(
    "mov [rdi], al",
    "mov [rdi], ah",
    "mov [rdi], ax",
    "mov [rdi], eax",
    "mov [rdi], rax",
    "mov al, [rdi]",
    "mov ah, [rdi]",
    "mov ax, [rdi]",
    "mov eax, [rdi]",
    "mov rax, [rdi]",
    "mov byte ptr [rdi], 0x5a",
    "mov word ptr [rdi], 0x1234",
    "mov dword ptr [rdi], 0x12345678",
    "mov qword ptr [rdi], -2",
    "movzx eax, byte ptr [rdi]",
    "movzx eax, word ptr [rdi]",
    "movsx eax, byte ptr [rdi]",
    "movsx rax, word ptr [rdi]",
    "movsxd rax, dword ptr [rdi]",
    "movbe [rdi], eax",
    "movbe rax, [rdi]",
    "movbe [rdi], ax",
    "movnti [rdi], eax",
    "movnti [rdi], rax",
    "movdiri [rdi], eax",
    "movdiri [rdi], rax",
    "movdir64b rdi, [rsi]",
    "lea rdi, [rdi - 16]; movdir64b rdi, [rsi]",
    "stosb",
    "stosw",
    "stosd",
    "stosq",
    "rep stosb",
    "rep stosd",
    "movsb",
    "movsw",
    "movsd",
    "movsq",
    "rep movsb",
    "rep movsd",
    "xchg rsi, rdi; movsd; xchg rsi, rdi",
    "xchg rsi, rdi; lodsb; xchg rsi, rdi",
    "xchg rsi, rdi; lodsq; xchg rsi, rdi",
    "std; rep stosw",
    "std; movsd",
    "clflush [rdi]",
    "clflushopt [rdi]",
    "prefetcht0 [rdi]",
);

/// Those that are read, and written back or not.
static READ_AND_WRITTEN: &[Form] = &plain!(
    "add [rdi], al",
    "add [rdi], ax",
    "add [rdi], eax",
    "add [rdi], rax",
    "adc [rdi], eax",
    "adc [rdi], rax",
    "sub [rdi], al",
    "sub [rdi], ax",
    "sub [rdi], eax",
    "sub [rdi], rax",
    "sbb [rdi], eax",
    "sbb [rdi], rax",
    "and [rdi], eax",
    "and [rdi], rax",
    "or [rdi], al",
    "or [rdi], eax",
    "or [rdi], rax",
    "xor [rdi], eax",
    "xor [rdi], rax",
    "cmp [rdi], al",
    "cmp [rdi], eax",
    "cmp [rdi], rax",
    "test [rdi], eax",
    "test [rdi], rax",
    "inc byte ptr [rdi]",
    "inc word ptr [rdi]",
    "inc dword ptr [rdi]",
    "inc qword ptr [rdi]",
    "dec byte ptr [rdi]",
    "dec word ptr [rdi]",
    "dec dword ptr [rdi]",
    "dec qword ptr [rdi]",
    "neg byte ptr [rdi]",
    "neg dword ptr [rdi]",
    "neg qword ptr [rdi]",
    "not byte ptr [rdi]",
    "not dword ptr [rdi]",
    "not qword ptr [rdi]",
    "add al, [rdi]",
    "add eax, [rdi]",
    "adc rax, [rdi]",
    "sub eax, [rdi]",
    "sbb rax, [rdi]",
    "and ax, [rdi]",
    "or eax, [rdi]",
    "xor rax, [rdi]",
    "cmp al, [rdi]",
    "cmp rax, [rdi]",
    "add dword ptr [rdi], 5",
    "and dword ptr [rdi], 0xf0",
    "cmp dword ptr [rdi], 7",
    "test byte ptr [rdi], 1",
    "xchg [rdi], al",
    "xchg [rdi], ax",
    "xchg [rdi], eax",
    "xchg [rdi], rax",
    "xadd [rdi], al",
    "xadd [rdi], ax",
    "xadd [rdi], eax",
    "xadd [rdi], rax",
    "cmpxchg [rdi], cl",
    "cmpxchg [rdi], cx",
    "cmpxchg [rdi], ecx",
    "cmpxchg [rdi], rcx",
    "cmpxchg8b [rdi]",
    "cmpxchg16b [rdi]",
    "mov eax, [rdi]; mov edx, [rdi + 4]; cmpxchg8b [rdi]",
    "mov rax, [rdi]; mov rdx, [rdi + 8]; cmpxchg16b [rdi]",
    "mov al, [rdi]; cmpxchg [rdi], cl",
    "mov eax, [rdi]; cmpxchg [rdi], ecx",
    "mov rax, [rdi]; cmpxchg [rdi], rcx",
    "bt dword ptr [rdi], 3",
    "bts dword ptr [rdi], 3",
    "btr dword ptr [rdi], 3",
    "btc dword ptr [rdi], 3",
    "bts word ptr [rdi], 9",
    "btr qword ptr [rdi], 40",
    "bt [rdi], ecx",
    "bts [rdi], ecx",
    "btr [rdi], ecx",
    "btc [rdi], ecx",
    "bts [rdi], rcx",
    "btc [rdi], cx",
    "mov ecx, -20; bts [rdi], ecx",
    "mov ecx, -20; bt [rdi], ecx",
);

/// With LOCK.
static LOCKED: &[Form] = &locked!(
    "add [rdi], al",
    "add [rdi], ax",
    "add [rdi], eax",
    "add [rdi], rax",
    "adc [rdi], eax",
    "sub [rdi], eax",
    "sbb [rdi], rax",
    "and [rdi], eax",
    "or [rdi], eax",
    "or [rdi], rax",
    "xor [rdi], eax",
    "inc byte ptr [rdi]",
    "inc dword ptr [rdi]",
    "inc qword ptr [rdi]",
    "dec dword ptr [rdi]",
    "neg dword ptr [rdi]",
    "not word ptr [rdi]",
    "xchg [rdi], eax",
    "xchg [rdi], rax",
    "xadd [rdi], eax",
    "xadd [rdi], rax",
    "cmpxchg [rdi], ecx",
    "cmpxchg [rdi], rcx",
    "cmpxchg8b [rdi]",
    "cmpxchg16b [rdi]",
    "bts dword ptr [rdi], 3",
    "btr [rdi], ecx",
    "btc [rdi], rcx",
    "or dword ptr [rdi], 0x11",
    "and byte ptr [rdi], 0xf",
);

/// XMM registers.
static SSE: &[Form] = &plain!(
    "movups [rdi], xmm0",
    "movaps [rdi], xmm0",
    "movupd [rdi], xmm0",
    "movapd [rdi], xmm0",
    "movdqu [rdi], xmm0",
    "movdqa [rdi], xmm0",
    "movntps [rdi], xmm0",
    "movntpd [rdi], xmm0",
    "movntdq [rdi], xmm0",
    "movd dword ptr [rdi], xmm0",
    "movq qword ptr [rdi], xmm0",
    "movss dword ptr [rdi], xmm0",
    "movsd qword ptr [rdi], xmm0",
    "movlps [rdi], xmm0",
    "movhps [rdi], xmm0",
    "movlpd [rdi], xmm0",
    "movhpd [rdi], xmm0",
    "movups xmm0, [rdi]",
    "movaps xmm0, [rdi]",
    "movupd xmm0, [rdi]",
    "movapd xmm0, [rdi]",
    "movdqu xmm0, [rdi]",
    "movdqa xmm0, [rdi]",
    "lddqu xmm0, [rdi]",
    "movntdqa xmm0, [rdi]",
    "movd xmm0, dword ptr [rdi]",
    "movq xmm0, qword ptr [rdi]",
    "movss xmm0, dword ptr [rdi]",
    "movsd xmm0, qword ptr [rdi]",
    "movlps xmm0, [rdi]",
    "movhps xmm0, [rdi]",
    "movlpd xmm0, [rdi]",
    "movhpd xmm0, [rdi]",
);

/// The same with VEX, and YMM registers.
static AVX: &[Form] = &vex!(
    "vmovups [rdi], xmm0",
    "vmovups [rdi], ymm0",
    "vmovaps [rdi], xmm0",
    "vmovupd [rdi], ymm0",
    "vmovdqu [rdi], xmm0",
    "vmovdqu [rdi], ymm0",
    "vmovdqa [rdi], xmm0",
    "vmovntdq [rdi], xmm0",
    "vmovntps [rdi], xmm0",
    "vmovd dword ptr [rdi], xmm0",
    "vmovq qword ptr [rdi], xmm0",
    "vmovss dword ptr [rdi], xmm0",
    "vmovsd qword ptr [rdi], xmm0",
    "vmovhps [rdi], xmm0",
    "vmovlpd [rdi], xmm0",
    "vmovups xmm0, [rdi]",
    "vmovups ymm0, [rdi]",
    "vmovaps xmm0, [rdi]",
    "vmovdqu xmm0, [rdi]",
    "vmovdqu ymm0, [rdi]",
    "vlddqu ymm0, [rdi]",
    "vmovntdqa xmm0, [rdi]",
    "vmovd xmm0, dword ptr [rdi]",
    "vmovq xmm0, qword ptr [rdi]",
    "vmovss xmm0, dword ptr [rdi]",
    "vmovsd xmm0, qword ptr [rdi]",
    // Without VEX, the upper half stays.
    "movups xmm0, [rdi]",
    "movq xmm0, qword ptr [rdi]",
    "movhps xmm0, [rdi]",
    "movups [rdi], xmm0",
);

/// All forms, with the operand aligned and not. Returns how many accesses to the store did not fault.
pub fn all(checks: &mut Checks, device: &AssignedDsa, avx: bool) -> u32 {
    let slots = device.ims_address() + FIRST_SLOT * 16;
    let (mut carried_out, mut told) = (0, 0);
    for form in [MOVES, READ_AND_WRITTEN, LOCKED, SSE].into_iter().flatten().chain(AVX.iter().filter(|_| avx)) {
        for misaligned in [0, 4, 8, 13] {
            let on_memory = on_memory(form, misaligned);
            let on_store = on_store(form, slots, misaligned);
            let same = on_memory == on_store;
            checks.check(form.name, same);
            if !same && told < TOLD {
                told += 1;
                println!("processor: {} at {misaligned}: {on_memory:x?}, on the store {on_store:x?}", form.name);
            }
            carried_out += u32::from(on_store.0.fault.is_none());
        }
    }
    carried_out
}

/// What an instruction leaves, and the bytes.
type Left = (State, [u32; BYTES / 4]);

/// The bytes before: of the control dwords the mask.
fn before(n: usize) -> u32 {
    if n % 4 == 3 { 1 } else { 0x8180_8384 ^ (n as u32) << 5 }
}

fn start() -> State {
    State {
        ymm: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, 0x1716_1514_1312_1110, 0x1f1e_1d1c_1b1a_1918],
        rax: 0x1122_3344_9566_7788,
        rbx: 0x0f1e_2d3c_4b5a_6978,
        rcx: 3,
        rdx: 0x8877_6655_4433_2211,
        rsi: SOURCE.address() + 64,
        rdi: 0,
        rflags: 0x3,
        fault: None,
    }
}

fn on_memory(form: &Form, misaligned: u64) -> Left {
    prepare_source();
    let base = MEMORY.address() + 1024;
    for n in (0..BYTES).step_by(8) {
        MEMORY.write(1024 + n, u64::from(before(n / 4 + 1)) << 32 | u64::from(before(n / 4)));
    }
    let mut state = start();
    // SAFETY: the operand lies in the buffer, and so does what an instruction writes around it.
    unsafe { (form.run)(&mut state, base + AT + misaligned) };
    let mut image = StoreImage::new();
    for n in (0..BYTES).step_by(8) {
        image.write(n, 8, MEMORY.read(1024 + n));
    }
    left(form, state, |n| image.dword(n))
}

fn on_store(form: &Form, slots: u64, misaligned: u64) -> Left {
    prepare_source();
    for n in 0..BYTES / 4 {
        // SAFETY: a slot of the device's store, masked all the time.
        unsafe { ((slots + 4 * n as u64) as *mut u32).write_volatile(before(n)) };
    }
    let mut state = start();
    // SAFETY: the operand lies in the store.
    unsafe { (form.run)(&mut state, slots + AT + misaligned) };
    // SAFETY: a slot of the device's store.
    left(form, state, |n| unsafe { ((slots + 4 * n as u64) as *const u32).read_volatile() })
}

fn left(form: &Form, mut state: State, dword: impl Fn(usize) -> u32) -> Left {
    if !form.vex {
        state.ymm[2..].fill(0);
    }
    (state, core::array::from_fn(dword))
}

fn prepare_source() {
    for n in (0..256).step_by(8) {
        SOURCE.write(n, 0x0101_0101_0101_0101 * n as u64 ^ 0x8070_6050_4030_2010);
    }
}
