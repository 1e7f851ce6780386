//! The image's entry point: the order of bring-up.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use core::{fmt::Display, panic::PanicInfo};

use imsvisor::{
    addr::Hpa,
    apic, console,
    cpu::{
        self,
        percpu::PerCpu,
        tables::{Bases, Tables},
    },
    devices::passthrough,
    event, exits,
    ims::{Service, most_entries},
    irq::{
        host_vectors::Vectors,
        ports::{MachinePorts, MachineService},
    },
    machine::{self, boot_info::BootInfo, discovery::Machine, memory::FRAMES, power, smp},
    memory::heap,
    options::Options,
    sched::processors::{Processor, Workload},
};
use spin::Once;

core::arch::global_asm!(include_str!("../../boot/entry/multiboot2.S"), entry = sym entry);

/// What all processors work on.
static WORK: Once<Workload> = Once::new();

/// From the entry code: EAX and EBX as the loader left them, and the TSC at the first instruction.
extern "C" fn entry(magic: u32, information: u64, tsc: u64) -> ! {
    console::init(tsc);
    event!("boot version={}", env!("CARGO_PKG_VERSION"));
    // SAFETY: the entry code passes on what the loader gave it.
    let boot_info = unsafe { BootInfo::new(magic, Hpa::new(information)) }.unwrap_or_else(|why| refuse("loader", why));
    let console = machine::console::begin(&boot_info);
    // SAFETY: the entry code has mapped the first 4 GiB, and this is the only call.
    if !unsafe { machine::memory::take(&boot_info) } {
        refuse("memory", "too little for the hypervisor itself");
    }
    if !cpu::has_no_execute() {
        refuse("processor", "it has no execute-disable (XD, NX). If the firmware's setup has it, enable it");
    }
    if let Err(error) = machine::memory::map(&boot_info, console.screen()) {
        refuse("memory", format_args!("no page tables: {error}"));
    }
    // SAFETY: the page tables have just been put in force, and map the screen.
    unsafe { console.settle(&boot_info) };
    let (bases, apic_id) = set_up(0, apic::init);
    exits::decode::prepare();
    let machine: &'static Machine = Box::leak(Box::new(Machine::discover(&boot_info)));
    machine.choose_apic_mode();
    let others = smp::others(machine.apic_ids(), apic_id);
    let options = Options::parse(boot_info.command_line()).0;
    cpu::speculation::settle(options.mitigations);
    machine::topology::settle(options.smt);
    let service = service(machine, apic_id, &others);
    let page = machine::memory::start_page(&boot_info);
    let processor = Processor::bring_up(bases).unwrap_or_else(|why| {
        // What the machine does have can be told: the others start as well, find no work, and stop.
        log_machine(machine, service, 1 + smp::start(&others, page, processor_entry));
        refuse("vmx", why)
    });
    passthrough::make_room(machine, service.ports());
    let work = WORK.call_once(|| Workload::new(machine, service, boot_info.modules(), apic_id, tsc));
    let started = smp::start(&others, page, processor_entry);
    log_machine(machine, service, 1 + started);
    cpu::speculation::report(processor.traps_bus_locks(), &mut |attack, verdict| {
        event!("mitigation attack={attack} {verdict}");
    });
    power::end(work.lead(processor, started))
}

/// The remapping units, and the service on top of them, for the processors with these APIC IDs.
fn service(machine: &'static Machine, apic_id: u32, others: &[u32]) -> &'static MachineService {
    let units = machine.bring_up_units(|function| most_entries(passthrough::slots(machine, function)), apic_id);
    let vectors = [apic_id].iter().chain(others).map(|&id| Vectors::new(id)).collect();
    // SAFETY: `vm::create` alone makes guests, and it tells the service of the stores that `devices::passthrough` prepared.
    let ports = unsafe { MachinePorts::new(machine, units, vectors) };
    // A server has a dozen units, and each of them more entries than the heap has room to say whose they are.
    if !heap::extend(&FRAMES, Service::owners_bytes(&ports)) {
        refuse("memory", "too little for the remapping units' entries");
    }
    Box::leak(Box::new(Service::new(ports)))
}

fn log_machine(machine: &Machine, service: &MachineService, processors: usize) {
    let brand = raw_cpuid::CpuId::new().get_processor_brand_string();
    let stores = machine.functions().iter().filter(|function| function.siov.is_some_and(|siov| siov.ims)).count();
    let units = service.ports().units().count();
    event!(
        "machine cpu=\"{}\" processors={processors} memory_mib={} functions={} vtd_units={units} vtd_posting={} ims_devices={stores} clock={} tsc_mhz={} nodes={}",
        brand.as_ref().map_or("unknown", |brand| brand.as_str().trim()),
        FRAMES.total_bytes() >> 20,
        machine.functions().len(),
        if units > 0 && service.ports().can_post() { "yes" } else { "no" },
        machine.clock().name(),
        machine.clock().tsc_mhz(),
        machine.nodes(),
    );
}

/// Sets this processor up as number `number`: its local APIC in the mode of the others', its own tables and data, and then machine checks.
/// Returns the tables' addresses, and the APIC ID.
///
/// A machine check can be the first event. Then the processor panics and stops the others by NMIs. So its local APIC must accept commands
/// in the others' mode, and it must know its own data. The others must not send it an NMI before it has an IDT.
fn set_up(number: usize, init_apic: fn() -> u32) -> (Bases, u32) {
    let apic_id = init_apic();
    let bases = Box::leak(Box::new(Tables::new())).load();
    PerCpu::install(number, apic_id);
    // SAFETY: the IDT has been put in force.
    unsafe { cpu::machine_check::enable() };
    (bases, apic_id)
}

/// Where every processor but the first begins.
extern "C" fn processor_entry(number: usize) -> ! {
    let (bases, _) = set_up(number, apic::init_other);
    let processor = Processor::bring_up(bases);
    smp::arrived();
    if let Some(work) = WORK.get() {
        work.follow(number, processor);
    }
    cpu::stop()
}

/// Logs what is missing, and ends the run.
fn refuse(what: &str, why: impl Display) -> ! {
    event!("refused what={what} why=\"{why}\"");
    power::end(false)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (others, stopped) = cpu::stop::others();
    // SAFETY: whoever holds the console does not go on, and nobody waits for it if all have stopped.
    unsafe { if others == stopped { console::take_over() } else { console::break_lock() } };
    log::error!("{info}");
    if others > 0 {
        log::error!("{stopped} of {others} other processors have stopped");
    }
    power::end(false)
}
