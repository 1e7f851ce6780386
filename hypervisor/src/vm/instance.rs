//! A guest instance: the state that its virtual processors share.

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use hcall_abi::{GuestCounters, Status, Target};

use crate::{
    console::{self, terminal},
    cpu::{self, fiber},
    devices::mmio_regions::MmioRegions,
    event,
    exits::{EndReason, bus_locks::BusLocks},
    guest::{options::Options, shares::Shares},
    ims::{Attribution, GuestId},
    irq::{
        mailbox::{Mailbox, Signal, count, sum_of_exits},
        ports::fault_log::attributed,
    },
    memory::Ram,
    sync::Mutex,
    vdev::x2apic::{Delivery, Ipi},
    vm::{chipset::Chipset, management::Management, release::Releasable, resources::Resources},
    vmx::{instr::Forgotten, reason::Reason},
};

/// The number of storms of a guest that are logged.
const STORMS_TOLD: u32 = 32;

/// Looks whether the console has room for a guest's report, and ticks of the TSC between them, in which others run.
const ROOM_LOOKS: u32 = 10_000;
const ROOM_PAUSE: u64 = 200_000;

/// Commands to a virtual processor that it has not taken yet, beside interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// INIT.
    pub init: bool,
    /// Start-up, at this page.
    pub start_up: Option<u8>,
    /// A non-maskable interrupt.
    pub nmi: bool,
}

/// The state of a guest's life.
struct Life {
    /// For each virtual processor: whether only a command from another one can wake it.
    stopped: Vec<bool>,
    commands: Vec<Commands>,
    reason: Option<EndReason>,
    /// The interrupt that asks the guest to stop, if it wants one, and whether it was asked.
    stop_target: Option<Target>,
    is_asked: bool,
}

/// A guest. Each of its virtual processors holds it, and so does who keeps all guests (`sched::guests`), who has its resources released when the last one
/// has left.
///
/// Locks:
/// - `modifying`: read-modify-write accesses outside the message stores. It comes before the locks below.
/// - `bus_locks`: an exit for a bus lock, which takes no other.
/// - `chipset`: ports and configuration space. It comes before the console's and the terminal's locks.
/// - [`Resources::functions`]: resets, and configuration space of whole functions.
/// - `Parent::state` of each [`Parent`](crate::devices::virtual_functions::Parent): registers of virtual functions.
/// - `life`: commands between virtual processors, and the end.
///
/// But for the orders that the list names, no processor holds two of them. A trapped write of a store, an interrupt between virtual processors
/// and a hypercall other than `Enable` take none of them. All are fair ([`crate::sync::Mutex`]): a wait ends after one turn of each other
/// processor that asks.
pub struct Vm {
    /// The guest's ID.
    pub id: GuestId,
    /// The guest's name.
    pub name: String,
    /// The guest's resources.
    pub resources: Resources,
    /// The guest's regions outside of its memory.
    pub mmio_regions: MmioRegions,
    /// The most interrupts of one vector of a virtual processor in [`crate::irq::storm::WINDOW`], if there is a limit.
    pub storm_limit: Option<u32>,
    /// How much of the processors' time it may have.
    pub shares: Shares,
    /// Whether it can make hypercalls.
    pub has_calls: bool,
    /// What it manages, if it does.
    pub management: Option<&'static dyn Management>,
    /// Its serial port is the machine's terminal.
    pub has_terminal: bool,
    /// The guest's serial port, CMOS clock and PCI bus.
    pub chipset: Mutex<Chipset>,
    /// Serialises read-modify-write accesses outside the message stores.
    pub modifying: Mutex<()>,
    /// Counts its bus locks.
    pub bus_locks: Mutex<BusLocks>,
    mailboxes: Vec<Arc<Mailbox>>,
    life: Mutex<Life>,
    ending: AtomicBool,
    /// Virtual processors that have not left.
    present: Arc<AtomicUsize>,
    /// The TSC at the guest's first instruction; 0 before it.
    began: AtomicU64,
    /// Ticks of all processors that were charged to the guest. `interrupting`: those of them that were worked for it beside its turns.
    time: AtomicU64,
    interrupting: AtomicU64,
    /// How often was told of a slot that fired too fast.
    storms: AtomicU32,
}

impl Vm {
    /// A guest with a mailbox for each virtual processor, in the order of their APIC IDs, which count from 0. All but the first wait to be
    /// started.
    pub fn new(
        id: GuestId,
        options: &Options,
        resources: Resources,
        mmio_regions: MmioRegions,
        chipset: Chipset,
        mailboxes: Vec<Arc<Mailbox>>,
        management: &'static dyn Management,
    ) -> Self {
        let stopped = (0..mailboxes.len()).map(|number| number != 0).collect();
        let commands = alloc::vec![Commands::default(); mailboxes.len()];
        Self {
            id,
            name: options.name.clone(),
            storm_limit: options.storm,
            shares: options.shares,
            has_calls: options.hypercalls,
            management: options.manages.then_some(management),
            has_terminal: options.console,
            resources,
            mmio_regions,
            chipset: Mutex::new(chipset),
            modifying: Mutex::new(()),
            bus_locks: Mutex::default(),
            present: Arc::new(AtomicUsize::new(mailboxes.len())),
            mailboxes,
            life: Mutex::new(Life { stopped, commands, reason: None, stop_target: None, is_asked: false }),
            ending: AtomicBool::new(false),
            began: AtomicU64::new(0),
            time: AtomicU64::new(0),
            interrupting: AtomicU64::new(0),
            storms: AtomicU32::new(0),
        }
    }

    /// Whether the guest can write to its serial port without waiting for the machine's.
    pub fn has_console_room(&self) -> bool {
        console::has_room() && (!self.has_terminal || terminal::has_room())
    }

    /// The mailbox of virtual processor `number`.
    pub fn mailbox(&self, number: usize) -> &Arc<Mailbox> {
        &self.mailboxes[number]
    }

    /// Carries out an interrupt command of virtual processor `sender` (SDM vol. 3, 12.6).
    pub fn send(&self, sender: usize, ipi: Ipi) {
        let named = (0..)
            .zip(self.mailboxes.iter().map(|mailbox| &**mailbox))
            .filter(|(id, _)| ipi.destination.names(*id, sender as u32));
        match ipi.delivery {
            Delivery::Fixed => named.for_each(|(_, mailbox)| mailbox.request(ipi.vector)),
            // Which one is the machine's to choose.
            Delivery::LowestPriority => named.take(1).for_each(|(_, mailbox)| mailbox.request(ipi.vector)),
            Delivery::Nmi => self.command(Signal::Nmi, named, |commands| commands.nmi = true),
            Delivery::Init => {
                self.command(Signal::Init, named, |commands| *commands = Commands { init: true, ..Commands::default() })
            }
            Delivery::StartUp => self.command(Signal::StartUp, named, |commands| {
                commands.start_up.get_or_insert(ipi.vector);
            }),
            Delivery::Smi => {}
        }
    }

    fn command<'a>(
        &self,
        signal: Signal,
        named: impl Iterator<Item = (u32, &'a Mailbox)>,
        change: impl Fn(&mut Commands),
    ) {
        for (id, mailbox) in named {
            let mut life = self.life.lock();
            change(&mut life.commands[id as usize]);
            // Until it has looked, it may go on.
            life.stopped[id as usize] = false;
            drop(life);
            mailbox.signal(signal);
        }
    }

    /// Takes the commands for virtual processor `number`.
    pub fn take_commands(&self, number: usize) -> Commands {
        core::mem::take(&mut self.life.lock().commands[number])
    }

    /// Notes that only a command can wake virtual processor `number`. If that holds for all of them, the guest ends.
    pub fn stopped(&self, number: usize) {
        let mut life = self.life.lock();
        life.stopped[number] = life.commands[number] == Commands::default();
        let all = life.stopped.iter().all(|stopped| *stopped);
        drop(life);
        if all {
            self.end(EndReason::Halted);
        }
    }

    /// Ends the guest, and notifies all its virtual processors. The first reason counts.
    pub fn end(&self, reason: EndReason) {
        let mut life = self.life.lock();
        if life.reason.is_some() {
            return;
        }
        life.reason = Some(reason);
        drop(life);
        self.ending.store(true, Ordering::Release);
        self.mailboxes.iter().for_each(|mailbox| mailbox.kick());
    }

    /// Asks the guest to stop, by the interrupt that it wants for that. If it wants none yet it is asked when it does.
    pub fn ask_to_stop(&self) {
        let target = {
            let mut life = self.life.lock();
            life.is_asked = true;
            life.stop_target
        };
        self.send_stop_request(target);
    }

    /// Sets the interrupt that asks the guest to stop. [`Status::BadTarget`] if the guest has no such virtual processor.
    pub fn set_stop_target(&self, target: Option<Target>) -> Result<(), Status> {
        if target.is_some_and(|target| target.apic_id as usize >= self.mailboxes.len()) {
            return Err(Status::BadTarget);
        }
        let mut life = self.life.lock();
        life.stop_target = target;
        let is_asked = life.is_asked;
        drop(life);
        self.send_stop_request(target.filter(|_| is_asked));
        Ok(())
    }

    fn send_stop_request(&self, target: Option<Target>) {
        if let Some(Target { apic_id, vector }) = target
            && let Some(mailbox) = self.mailboxes.get(apic_id as usize)
        {
            mailbox.request(vector);
        }
    }

    /// Why it ends, if it does.
    pub fn reason(&self) -> Option<EndReason> {
        self.life.lock().reason
    }

    /// The figures of this life for a manager.
    pub fn counters(&self) -> GuestCounters {
        let sum = |counter: fn(&Mailbox) -> u64| self.mailboxes.iter().map(|mailbox| counter(mailbox)).sum::<u64>();
        GuestCounters {
            building: 0,
            charged: self.time.load(Ordering::Relaxed),
            interrupting: self.interrupting.load(Ordering::Relaxed),
            exits: sum(|mailbox| mailbox.counts.exits().sum()),
            interrupts: sum(|mailbox| mailbox.counts.delivered.load(Ordering::Relaxed)),
        }
    }

    /// Whether the guest is ending.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Reports the guest's start, once, right before its first instruction. `epoch` is the TSC at the hypervisor's entry.
    pub fn announce(&self, epoch: u64) {
        if self.began.load(Ordering::Relaxed) != 0 {
            return;
        }
        let now = cpu::tsc();
        if self.began.compare_exchange(0, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let mut processors = String::new();
        for mailbox in &self.mailboxes {
            let comma = if processors.is_empty() { "" } else { "," };
            let _ = core::fmt::write(&mut processors, format_args!("{comma}{}", mailbox.processor()));
        }
        event!(
            "guest-start guest={} name={} memory_mib={} cpus={} processors={processors} entry_instructions={}",
            self.id.0,
            self.name,
            self.resources.ram.as_ref().map_or(0, Ram::len) >> 20,
            self.mailboxes.len(),
            now.wrapping_sub(epoch)
        );
    }

    /// Ticks of the TSC since the guest's first instruction; 0 if there was none.
    fn ticks(&self) -> u64 {
        match self.began.load(Ordering::Relaxed) {
            0 => 0,
            began => cpu::tsc().saturating_sub(began),
        }
    }

    /// Charges ticks of a processor to it.
    pub fn add_time(&self, ticks: u64) {
        self.time.fetch_add(ticks, Ordering::Relaxed);
    }

    /// Charges ticks that a processor worked for the guest beside its turns.
    pub fn add_interrupting(&self, ticks: u64) {
        self.add_time(ticks);
        self.interrupting.fetch_add(ticks, Ordering::Relaxed);
    }

    /// Tells how far the guest has come at a mark on its console: its time, and its exits.
    pub fn report_mark(&self) {
        event!("mark guest={} ticks={}", self.id.0, self.ticks());
        self.report_exits();
    }

    /// Logs that a slot was masked because it fired too fast. The number of such lines is limited.
    pub fn log_storm(&self, slot: &Attribution) {
        if self.storms.fetch_add(1, Ordering::Relaxed) < STORMS_TOLD {
            event!("storm sid={}{}", slot.requester, attributed(*slot));
        }
    }

    /// Reports the exits of all virtual processors so far. There is one key for each name of a reason; several reasons can share a name.
    fn report_exits(&self) {
        let mut named: Vec<(&str, u64)> = Vec::new();
        let sums = sum_of_exits(self.mailboxes.iter().map(|mailbox| &**mailbox));
        for (number, count) in (0..).zip(sums).filter(|(_, count)| *count != 0) {
            let name = Reason::name(number);
            match named.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => named.push((name, count)),
            }
        }
        let mut line = String::new();
        for (name, count) in named {
            let _ = core::fmt::write(&mut line, format_args!(" {name}={count}"));
        }
        event!("exits guest={}{line}", self.id.0);
    }

    /// Removes a virtual processor. Returns whether it was the last one, so that nobody but who keeps the guest has it. The processor has
    /// dropped its translations of the guest's page tables, whose frames others get.
    pub fn leave(self: Arc<Self>, _: Forgotten) -> bool {
        let present = Arc::clone(&self.present);
        drop(self);
        present.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Ends the guest when its last virtual processor has left: stops its devices, reports, and releases what it held. Its devices take their
    /// time to stop, and memory to be released.
    pub fn finish(mut self) {
        self.resources.stop_functions();
        // A full console would keep whoever writes, and all who want the console meanwhile.
        for _ in 0..ROOM_LOOKS {
            if console::has_room() {
                break;
            }
            fiber::pause(ROOM_PAUSE);
        }
        let reason = self.life.get_mut().reason.unwrap_or(EndReason::Killed("its processors have left"));
        self.report(reason);
    }

    fn report(&mut self, reason: EndReason) {
        self.chipset.get_mut().flush(&self.name);
        if let EndReason::Killed(why) = reason {
            log::error!("guest {}: {why}", self.name);
        }
        self.report_exits();
        // What came too late for its virtual processor.
        for mailbox in &self.mailboxes {
            for _ in mailbox.take_suppressed().into_iter().flatten() {
                count(&mailbox.counts.from_descriptors);
                count(&mailbox.counts.dropped);
            }
        }
        let sum = |counter: fn(&Mailbox) -> u64| self.mailboxes.iter().map(|mailbox| counter(mailbox)).sum::<u64>();
        let domain = self.resources.domain.as_ref().map(|domain| domain.counters()).unwrap_or_default();
        // Posted interrupts pass the hypervisor by: nobody there could count them.
        let delivered = if self.resources.is_posted() {
            String::from("posted=yes")
        } else {
            format!("delivered={}", sum(|mailbox| mailbox.counts.delivered.load(Ordering::Relaxed)))
        };
        event!(
            "interrupts guest={} {delivered} merged={} dropped={} from_descriptors={} hypercalls={} trapped_writes={} refused={}",
            self.id.0,
            sum(|mailbox| mailbox.counts.merged.load(Ordering::Relaxed)),
            sum(|mailbox| mailbox.counts.dropped.load(Ordering::Relaxed)),
            sum(|mailbox| mailbox.counts.from_descriptors.load(Ordering::Relaxed)),
            domain.hypercalls,
            domain.trapped_writes,
            domain.refused
        );
        event!(
            "guest-end guest={} name={} reason={} code={} ticks={}",
            self.id.0,
            self.name,
            reason.name(),
            reason.code(),
            self.ticks()
        );
    }
}
