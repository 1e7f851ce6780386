//! The hypervisor's VT-d code on a remapping unit that others have written.
//!
//! The image comes up as the hypervisor does, by the same code, but for VT-x. Then two devices of QEMU's send interrupts and
//! DMA: `edu`, whose DMA engine writes wherever it is told (a write to 0xFEEx_xxxx is a message of an interrupt message store), and
//! `nvme` with its MSI-X table. Where the machine has a DSA, which another process serves, its slots and its DMA are looked at instead. Each
//! case ends in one line, `@ims check name=… result=… …`: *passed*, *failed*, or *unchecked*
//! where QEMU does not look at what the manual tells a unit to look at.
#![no_std]
#![no_main]

extern crate alloc;

mod bed;
mod cases;
mod dsa;
mod edu;
mod nvme;
mod other;
mod raw;
mod window;

use alloc::boxed::Box;
use core::{fmt::Display, panic::PanicInfo};

use imsvisor::{
    addr::Hpa,
    apic, console,
    cpu::{percpu::PerCpu, tables::Tables},
    event,
    machine::{self, boot_info::BootInfo, discovery::Machine, power},
};

use bed::Bed;

core::arch::global_asm!(include_str!("../../../boot/entry/multiboot2.S"), entry = sym entry);

/// Interrupt remapping entries: the smallest table, so that an index can lie behind it.
const ENTRIES: u32 = 256;

extern "C" fn entry(magic: u32, information: u64, tsc: u64) -> ! {
    console::init(tsc);
    event!("boot version={}", env!("CARGO_PKG_VERSION"));
    // SAFETY: the entry code passes on what the loader gave it.
    let loader = unsafe { BootInfo::new(magic, Hpa::new(information)) }.unwrap_or_else(|why| refuse("loader", why));
    let console = machine::console::begin(&loader);
    // SAFETY: the entry code has mapped the first 4 GiB, and this is the only call.
    if !unsafe { machine::memory::take(&loader) } {
        refuse("memory", "too little");
    }
    if let Err(error) = machine::memory::map(&loader, console.screen()) {
        refuse("memory", format_args!("no page tables: {error:?}"));
    }
    // SAFETY: the page tables have just been put in force, and map the screen.
    unsafe { console.settle(&loader) };
    Box::leak(Box::new(Tables::new())).load();
    let apic_id = apic::init();
    PerCpu::install(0, apic_id);
    let machine: &'static Machine = Box::leak(Box::new(Machine::discover(&loader)));
    machine.choose_apic_mode();
    // All of them for whoever is asked first.
    let entries = core::cell::Cell::new(ENTRIES);
    let units = machine.bring_up_units(|_| entries.replace(0), apic_id);
    event!("machine functions={} vtd_units={}", machine.functions().len(), units.iter().flatten().count());
    let other = other::start(machine, &loader, apic_id).unwrap_or_else(|why| refuse("processor", why));
    let mut bed = Bed::new(&loader, machine, units, apic_id, other).unwrap_or_else(|why| refuse("bed", why));
    let can = bed.unit.unit().capabilities();
    let (levels, bits, caching) = (can.levels(), can.address_bits(), can.caches_absent_entries());
    event!("unit levels={levels} address_bits={bits} caching={caching} scalable={}", bed.unit.is_scalable());
    let right = match dsa::Dsa::find(machine) {
        Some(dsa) => cases::run_served(&mut bed, &mut dsa.unwrap_or_else(|why| refuse("dsa", why))),
        None => cases::run(&mut bed),
    };
    power::end(right)
}

/// Says what is missing, and ends.
fn refuse(what: &str, why: impl Display) -> ! {
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
