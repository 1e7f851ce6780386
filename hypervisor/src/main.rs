//! The image: the order of bring-up.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use core::{fmt::Display, panic::PanicInfo};

use imsvisor::{
    addr::{Hpa, PAGE_SIZE},
    apic, console,
    cpu::{self, fpu::Xsave},
    event, exits,
    ims::{GuestId, Service},
    memory::FrameSource,
    platform::{
        self, assign,
        delivery::Vectors,
        loader::Loader,
        machine::Machine,
        memory::FRAMES,
        ports::{MachinePorts, MachineService},
        power,
        run::Runner,
        start::Maker,
    },
    vmx::{Capabilities, Host, Refusal, caps::Raw},
};

core::arch::global_asm!(include_str!("../../boot/entry/multiboot2.S"), entry = sym entry);

/// Interrupt remapping entries of a unit: enough for the message stores of a few devices.
const REMAPPING_ENTRIES: u32 = 32_768;

/// From the entry code: EAX and EBX as the loader left them, and the TSC at the first instruction.
extern "C" fn entry(magic: u32, information: u64, tsc: u64) -> ! {
    console::init(tsc);
    event!("boot version={}", env!("CARGO_PKG_VERSION"));
    // SAFETY: the entry code passes on what the loader gave it.
    let loader = unsafe { Loader::new(magic, Hpa::new(information)) }.unwrap_or_else(|why| refuse("loader", why));
    // SAFETY: the entry code has mapped the first 4 GiB, and this is the only call.
    if !unsafe { platform::memory::take(&loader) } {
        refuse("memory", "too little for the hypervisor itself");
    }
    if let Err(error) = platform::memory::map(&loader) {
        refuse("memory", format_args!("no page tables: {error:?}"));
    }
    let bases = Box::leak(Box::new(cpu::tables::Tables::new())).load();
    let apic_id = apic::init();
    exits::decode::prepare();
    let machine: &'static Machine = Box::leak(Box::new(Machine::discover(&loader)));
    let capabilities = Capabilities::check(&Raw::read()).unwrap_or_else(|why| refuse("vmx", why));
    let xsave = Xsave::enable().unwrap_or_else(|| refuse("vmx", Refusal::Xsave));
    let Some(region) = FRAMES.alloc_zeroed(1, PAGE_SIZE) else { refuse("memory", "no frame for VMXON") };
    let host = Host::enter_vmx(capabilities, bases, region).unwrap_or_else(|failure| refuse("vmx", failure));
    let service = service(machine, apic_id);
    assign::make_room(machine, service.ports());
    tell(machine, service);
    power::end(run(&loader, host, xsave, machine, service, tsc))
}

/// The remapping units, and the service on top of them.
fn service(machine: &'static Machine, apic_id: u32) -> &'static MachineService {
    let units = machine.bring_up_units(REMAPPING_ENTRIES, apic_id);
    Box::leak(Box::new(Service::new(MachinePorts::new(machine, units, Vectors::new(apic_id)))))
}

fn tell(machine: &Machine, service: &MachineService) {
    let brand = raw_cpuid::CpuId::new().get_processor_brand_string();
    let stores = machine.functions().iter().filter(|function| function.siov.is_some_and(|siov| siov.ims)).count();
    event!(
        "machine cpu=\"{}\" memory_mib={} functions={} vtd_units={} ims_devices={stores}",
        brand.as_ref().map_or("unknown", |brand| brand.as_str().trim()),
        FRAMES.statistics().1 >> 20,
        machine.functions().len(),
        service.ports().units().count(),
    );
}

/// Makes a guest of each module, runs them, and tells what came of it. Returns whether all was well.
fn run(
    loader: &Loader,
    host: Host,
    xsave: Xsave,
    machine: &'static Machine,
    service: &'static MachineService,
    epoch: u64,
) -> bool {
    let maker = Maker { machine, service, host };
    let mut runner = Runner::new(host, xsave, service, epoch);
    let modules = loader.modules();
    let mut good = !modules.is_empty();
    if modules.is_empty() {
        event!("refused what=guest why=\"the boot loader gave no module: there is no guest to run\"");
    }
    let free = FRAMES.statistics().0;
    for (id, module) in (0..).map(GuestId).zip(&modules) {
        match maker.make(id, module) {
            Ok(guest) => runner.add(guest),
            Err(why) => {
                good = false;
                event!("refused what=guest guest={} why=\"{why}\"", id.0);
            }
        }
    }
    good &= runner.run();
    service.ports().report_faults();
    good & report(service, free)
}

/// The last figures. Returns whether everything that guests held came back.
fn report(service: &MachineService, free_before: u64) -> bool {
    let counters = service.counters();
    let (mut waits, mut faults) = (0, 0);
    for unit in service.ports().units() {
        let statistics = unit.statistics();
        waits += statistics.waits;
        faults += statistics.faults;
    }
    let vectors = service.ports().vectors().used();
    event!(
        "remap live={} high_water={} programmed={} flushes={} waits={waits} faults={faults} vectors={vectors} strays={}",
        counters.live,
        counters.high_water,
        counters.programmed,
        counters.flushes,
        service.ports().strays()
    );
    let free = FRAMES.statistics().0;
    if free != free_before {
        log::error!("{} KiB of guests' memory did not come back", free_before.saturating_sub(free) >> 10);
    }
    counters.live == 0 && vectors == 0 && free == free_before
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
