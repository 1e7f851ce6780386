//! What each processor does from its bring-up on: it enters VMX operation, waits for the plan of all guests, makes the guests that are its own, and
//! runs its scheduler. The first processor makes the plan, waits for the others, and writes the final report.

use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use spin::Once;

use crate::{
    addr::PAGE_SIZE,
    apic, console,
    cpu::{self, fiber::Fiber, fpu::Xsave, interrupts, speculation, tables::Bases},
    devices::{
        plan::{Plan, Plans, plans},
        virtual_functions::Parents,
    },
    event,
    ims::GuestId,
    irq::{host_vectors::Vectors, ports::MachineService},
    machine::{
        boot_info::Module,
        discovery::Machine,
        memory::FRAMES,
        smp,
        topology::{self, LogicalProcessor},
    },
    memory::{FrameSource, heap},
    sched::{
        guests::{Guests, refuse},
        maker::Maker,
        scheduler::Scheduler,
    },
    sync::Mutex,
    vmx::{Capabilities, Host, Unsupported, caps::Raw, instr::Failure},
};

/// Why a processor cannot run guests.
#[derive(Clone, Copy, Debug)]
pub enum ProcessorError {
    /// The processor lacks a required feature.
    Lacks(Unsupported),
    /// There is no memory for its VMXON region, or for a stack.
    Memory,
    /// VMXON failed.
    Vmxon(Failure),
}

impl fmt::Display for ProcessorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lacks(refusal) => refusal.fmt(f),
            Self::Memory => f.write_str("no memory for VMXON or a stack"),
            Self::Vmxon(failure) => write!(f, "VMXON: {failure}"),
        }
    }
}

/// A processor in VMX operation.
pub struct Processor {
    host: Host,
    xsave: Xsave,
    /// For what it does between the turns of virtual processors.
    fiber: Fiber,
}

impl Processor {
    /// Brings this processor into VMX operation. Its tables and its local APIC are set up already.
    pub fn bring_up(bases: Bases) -> Result<Self, ProcessorError> {
        let mut capabilities = Capabilities::check(&Raw::read()).map_err(ProcessorError::Lacks)?;
        if !speculation::is_wanted() {
            capabilities.ignore_bus_locks();
        }
        let xsave = Xsave::enable().ok_or(ProcessorError::Lacks(Unsupported::Xsave))?;
        let region = FRAMES.alloc_zeroed(1, PAGE_SIZE).ok_or(ProcessorError::Memory)?;
        // SAFETY: the frame was allocated just now and is never freed; the capabilities were read on this processor, and the caller's
        // tables are in force here.
        let host = unsafe { Host::enter_vmx(capabilities, bases, region) }.map_err(ProcessorError::Vmxon)?;
        let stack = smp::stack().ok_or(ProcessorError::Memory)?;
        // SAFETY: the stack was made just now, and is never freed.
        Ok(Self { host, xsave, fiber: unsafe { Fiber::new(stack) } })
    }

    /// Whether an access of a guest that locks the bus exits.
    pub fn traps_bus_locks(&self) -> bool {
        self.host.capabilities.traps_bus_locks()
    }
}

/// The guests and virtual processors that the processors share.
pub struct Workload {
    machine: &'static Machine,
    service: &'static MachineService,
    /// The parent functions.
    parents: &'static Parents,
    modules: Vec<Module>,
    /// APIC ID of the first processor.
    leader: u32,
    /// TSC at the hypervisor's entry.
    epoch: u64,
    /// Numbers of the processors that can run guests, once the first one has set `go`.
    fit: Mutex<Vec<usize>>,
    /// The guests, once the first processor has set `go`.
    guests: Once<Guests>,
    made: AtomicUsize,
    ready: AtomicUsize,
    go: AtomicBool,
    done: AtomicUsize,
    good: AtomicBool,
}

impl Workload {
    /// The workload for a machine whose first processor has APIC ID `leader`.
    pub fn new(
        machine: &'static Machine,
        service: &'static MachineService,
        modules: Vec<Module>,
        leader: u32,
        epoch: u64,
    ) -> Self {
        Self {
            machine,
            service,
            parents: Box::leak(Box::default()),
            modules,
            leader,
            epoch,
            fit: Mutex::new(alloc::vec![0]),
            guests: Once::new(),
            made: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            go: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            good: AtomicBool::new(true),
        }
    }

    /// Runs the first processor's part, with `followers` others. Returns whether the run succeeded.
    pub fn lead(&'static self, processor: Processor, followers: usize) -> bool {
        if self.modules.is_empty() {
            self.fail();
            event!("refused what=guest why=\"the boot loader gave no module: there is no guest to run\"");
        }
        // Every processor that has arrived gets here: nothing that it waits for is in doubt.
        while self.ready.load(Ordering::Acquire) < followers {
            core::hint::spin_loop();
        }
        let plans = self.plan();
        for (index, plan) in (0..).zip(&plans) {
            if let Err(why) = plan {
                self.fail();
                refuse(GuestId(index), why);
            }
        }
        let parts = (self.machine, self.service, self.parents);
        let guests = self.guests.call_once(|| Guests::new(parts, self.modules.iter().cloned().zip(plans)));
        let free = FRAMES.free_bytes() + heap::grown();
        self.go.store(true, Ordering::Release);
        self.share(0, processor);
        while self.done.load(Ordering::Acquire) < followers {
            // The last one's wake-up may come in `poll` as well as in `idle`; what `poll` took is looked at before anyone sleeps.
            if console::pump() {
                interrupts::poll();
            } else {
                interrupts::idle();
            }
            let (mut faults, mut events) = (false, false);
            for vector in interrupts::take() {
                faults |= vector == apic::FAULT_VECTOR;
                events |= vector == apic::DEVICE_VECTOR;
            }
            if faults {
                self.service.ports().faults().event(self.service, &mut |_, _| ());
            }
            if events {
                self.service.ports().count_own_interrupt();
                self.parents.event(self.service, &mut |_, _| ());
            }
        }
        self.service.ports().faults().finish(self.service);
        self.report(free) && guests.ended_well() && self.good.load(Ordering::Acquire)
    }

    /// Runs another processor's part.
    pub fn follow(&'static self, number: usize, processor: Result<Processor, ProcessorError>) {
        match &processor {
            Ok(_) => self.fit.lock().push(number),
            Err(why) => event!("refused what=processor number={number} why=\"{why}\""),
        }
        self.ready.fetch_add(1, Ordering::Release);
        while !self.go.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
        if let Ok(processor) = processor {
            self.share(number, processor);
        }
        self.done.fetch_add(1, Ordering::Release);
        apic::notify(self.leader, apic::WAKE_UP_VECTOR);
    }

    /// Makes the guests whose first virtual processor belongs to processor `number`, and runs the virtual processors that belong to it.
    fn share(&'static self, number: usize, Processor { host, xsave, fiber }: Processor) {
        let Some(guests) = self.guests.get() else { return };
        let fit = self.fit.lock().len();
        let mut maker = Maker::new(guests, number, host.capabilities, fiber);
        maker.work_to_the_end();
        // All guests that are started with the machine begin together.
        self.made.fetch_add(1, Ordering::AcqRel);
        while self.made.load(Ordering::Acquire) < fit {
            core::hint::spin_loop();
        }
        Scheduler::new((host, xsave), (self.service, self.parents), maker, self.epoch).run();
    }

    /// Plans all guests. The heap is extended by the memory that the hypervisor may allocate for them, so it is never full for one of them.
    fn plan(&self) -> Plans {
        let ports = self.service.ports();
        let bits = topology::smt_bits(raw_cpuid::CpuIdReaderNative);
        let processor = |&number: &usize| {
            let apic_id = ports.vectors_of(number).map_or(0, Vectors::destination);
            LogicalProcessor { number, core: apic_id >> bits, node: self.machine.node_of_processor(apic_id) }
        };
        let fit: Vec<_> = self.fit.lock().iter().map(processor).collect();
        let plans = plans(&(self.machine, ports), &self.modules, &fit, topology::smt());
        let heap: u64 = plans.iter().flatten().map(|plan| plan.heap_bytes(self.machine)).sum();
        if heap::extend(&FRAMES, heap) {
            return plans;
        }
        let refused =
            |plan: Result<Plan, String>| plan.and_then(|plan| Err(format!("{}: memory ran out", plan.options.name)));
        plans.into_iter().map(refused).collect()
    }

    fn fail(&self) {
        self.good.store(false, Ordering::Release);
    }

    /// Writes the final report. Returns whether everything that guests held was released.
    fn report(&self, free_before: u64) -> bool {
        let ports = self.service.ports();
        let counters = self.service.counters();
        let (mut waits, mut faults) = (0, 0);
        for unit in ports.units() {
            let statistics = unit.statistics();
            waits += statistics.waits;
            faults += statistics.faults;
        }
        // What the heap has grown by is no guest's.
        let free = FRAMES.free_bytes() + heap::grown();
        let kept = free_before.saturating_sub(free) >> 10;
        let vectors: usize = ports.vectors().iter().map(|vectors| vectors.used()).sum();
        event!(
            "remap live={} high_water={} programmed={} flushes={} waits={waits} faults={faults} vectors={vectors} kept_kib={kept} strays={} own={} discarded={} merged={}",
            counters.live,
            counters.high_water,
            counters.programmed,
            counters.flushes,
            ports.spurious(),
            ports.own_interrupts(),
            counters.discarded + ports.late(),
            cpu::interrupts::merged()
        );
        if free != free_before {
            log::error!("{kept} KiB of guests' memory did not come back");
        }
        if cpu::machine_check::count() != 0 {
            log::warn!("{} machine checks", cpu::machine_check::count());
        }
        if cpu::interrupts::nmis() != 0 {
            log::info!("{} NMIs", cpu::interrupts::nmis());
        }
        counters.live == 0 && vectors == 0 && free == free_before
    }
}
