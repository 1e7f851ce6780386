//! The image: the order of bring-up.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use imsvisor::{
    addr::Hpa,
    console, cpu, event,
    platform::{self, loader::Loader, power},
};

core::arch::global_asm!(include_str!("../../boot/entry/multiboot2.S"), entry = sym entry);

static mut TABLES: cpu::tables::Tables = cpu::tables::Tables::new();

/// From the entry code: EAX and EBX as the loader left them, and the TSC at the first instruction.
extern "C" fn entry(magic: u32, information: u64, tsc: u64) -> ! {
    console::init(tsc);
    event!("boot version={}", env!("CARGO_PKG_VERSION"));
    // SAFETY: the entry code passes on what the loader gave it.
    let loader = match unsafe { Loader::new(magic, Hpa::new(information)) } {
        Ok(loader) => loader,
        Err(refusal) => refuse("loader", refusal),
    };
    // SAFETY: the entry code has mapped the first 4 GiB, and this is the only call.
    if !unsafe { platform::memory::take(&loader) } {
        refuse("memory", "too little for the hypervisor itself");
    }
    if let Err(error) = platform::memory::map(&loader) {
        refuse("memory", format_args!("the page tables: {error:?}"));
    }
    // SAFETY: this is the only use of the tables, and it is for ever.
    let bases = unsafe { &mut *(&raw mut TABLES) }.load();
    log::info!("{bases:x?}");
    power::end(true)
}

/// Says what is missing, and ends.
fn refuse(what: &str, why: impl core::fmt::Display) -> ! {
    event!("refused what={what} why=\"{why}\"");
    power::end(false)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // SAFETY: whoever holds the console does not go on.
    unsafe { console::break_lock() };
    log::error!("{info}");
    power::end(false)
}
