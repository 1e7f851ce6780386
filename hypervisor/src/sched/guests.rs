//! All guests: their modules, their lives, and what processors have to do for them.
//!
//! A guest belongs to the processor of its first virtual processor, which makes it, ends it when its time is over, and releases what it held
//! ([`super::maker`]). Every processor makes the VMCSs of the virtual processors that it runs, which it finds in its [`Place`].

mod managed;

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hcall_abi::GuestCounters;

use crate::{
    apic,
    cpu::{self, interrupts},
    devices::{plan::Plan, virtual_functions::Parents},
    event,
    exits::EndReason,
    guest::shares::Shares,
    ims::GuestId,
    irq::{host_vectors::Vectors, ports::MachineService},
    machine::{boot_info::Module, discovery::Machine, memory::FRAMES},
    memory::heap,
    sched::{
        jobs::{Job, next_job},
        life_cycle::{Action, LifeCycle, MEMORY_TRIES, Making, Outcome},
    },
    sync::Mutex,
    vm::{
        create::{GuestBuilder, NewGuest, NotMade},
        instance::Vm,
        new_vcpu::NewVcpu,
    },
    vmx::Capabilities,
};

/// A guest that has a plan.
struct Guest {
    module: Module,
    plan: Plan,
    /// The VPID of its first virtual processor; the others follow.
    vpid: u16,
    state: Mutex<GuestState>,
    /// Ticks that making and releasing it took.
    building: AtomicU64,
    /// Ticks that processors have worked for it beside its turns, and that were not charged to it yet.
    owed: AtomicU64,
}

/// Taken before the locks of [`Vm`].
struct GuestState {
    life: LifeCycle,
    /// The guest, from when it is made until its last virtual processor has left.
    vm: Option<Arc<Vm>>,
    /// The same from then on, until its resources are released.
    leaving: Option<Arc<Vm>>,
    /// The figures of its last life.
    last: GuestCounters,
    /// It lacked memory when it was to be made last, and the log has said so.
    told_of_memory: bool,
}

impl Guest {
    /// The processor that looks after it.
    fn home(&self) -> usize {
        self.plan.processors.first().copied().unwrap_or(0)
    }
}

/// What a processor finds when it looks.
struct Place {
    /// Its APIC ID.
    apic_id: u32,
    /// There is something to find.
    has_news: AtomicBool,
    /// When a guest's life goes on here by itself; `u64::MAX` for never.
    due: AtomicU64,
    /// Virtual processors that it has to make.
    new_vcpus: Mutex<Vec<NewVcpu>>,
}

/// All guests.
pub struct Guests {
    machine: &'static Machine,
    service: &'static MachineService,
    parents: &'static Parents,
    /// By their numbers; `None` for a module without a plan.
    all: Vec<Option<Guest>>,
    /// By the processors' numbers.
    places: Vec<Place>,
    /// Bytes that guests can have, all together.
    available: u64,
    /// How often a guest has released its memory.
    releases: AtomicU64,
    /// No guest holds anything, and nothing is due: no more comes.
    is_over: AtomicBool,
}

impl Guests {
    /// The guests of these modules. Each that has a plan, and does not say otherwise, is started.
    pub fn new(
        (machine, service, parents): (&'static Machine, &'static MachineService, &'static Parents),
        plans: impl Iterator<Item = (Module, Result<Plan, String>)>,
    ) -> Self {
        let mut next_vpid = 1_u16;
        let guest = |(module, plan): (Module, Result<Plan, String>)| {
            let plan = plan.ok()?;
            let vpid = next_vpid;
            // There are at most 64 guests of at most 64 virtual processors.
            next_vpid = next_vpid.saturating_add(plan.options.cpus as u16);
            let mut life = LifeCycle::new(plan.options.restart);
            if plan.options.autostart {
                life.start();
            }
            let last = GuestCounters::default();
            let state = GuestState { life, vm: None, leaving: None, last, told_of_memory: false };
            Some(Guest {
                module,
                plan,
                vpid,
                state: Mutex::new(state),
                building: AtomicU64::new(0),
                owed: AtomicU64::new(0),
            })
        };
        let all = plans.map(guest).collect();
        let place = |vectors: &Vectors| Place {
            apic_id: vectors.destination(),
            has_news: AtomicBool::new(true),
            due: AtomicU64::new(u64::MAX),
            new_vcpus: Mutex::default(),
        };
        let places = service.ports().vectors().iter().map(place).collect();
        let (releases, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        let available = FRAMES.free_bytes();
        let guests = Self { machine, service, parents, all, places, available, releases, is_over };
        guests.look_whether_over();
        guests
    }

    /// Whether no guest holds anything, and none is started again: every processor is done.
    pub fn are_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Whether every guest's last life has ended well, or by a manager's will.
    pub fn ended_well(&self) -> bool {
        let last = |guest: &Guest| guest.state.lock().life.last();
        self.all.iter().flatten().all(|guest| last(guest) != Some(Outcome::Bad))
    }

    /// A guest's shares of the processors' time.
    pub fn shares(&self, guest: GuestId) -> Shares {
        self.guest(guest).map_or(Shares::default(), |guest| guest.plan.options.shares)
    }

    /// Takes the virtual processors that a processor has to make.
    pub fn take_new_vcpus(&self, processor: usize) -> Vec<NewVcpu> {
        self.places.get(processor).map_or(Vec::new(), |place| core::mem::take(&mut *place.new_vcpus.lock()))
    }

    /// Whether there is something for a processor to look at.
    pub fn has_news(&self, processor: usize, now: u64) -> bool {
        let Some(place) = self.places.get(processor) else { return false };
        place.due.load(Ordering::Relaxed) <= now
            || place.has_news.load(Ordering::Relaxed) && place.has_news.swap(false, Ordering::AcqRel)
    }

    /// When [`Self::has_news`] becomes true by itself.
    pub fn due(&self, processor: usize) -> Option<u64> {
        let due = self.places.get(processor)?.due.load(Ordering::Relaxed);
        (due != u64::MAX).then_some(due)
    }

    /// Advances the lives of a processor's guests as far as that takes no time. Returns the job to begin next, and the same one again until it is
    /// done. `last`: the guest of the processor's last job.
    pub fn look(&self, processor: usize, now: u64, last: Option<GuestId>) -> Option<Job> {
        let (mut next, mut due) = (None, u64::MAX);
        for (number, guest) in (0..).zip(&self.all) {
            let Some(guest) = guest.as_ref().filter(|guest| guest.home() == processor) else { continue };
            let mut state = guest.state.lock();
            let action = state.life.due(now);
            if action == Action::Force {
                state.force();
                // It ends now: nothing is due for it until it has.
            } else {
                due = due.min(state.life.next_due().unwrap_or(u64::MAX));
            }
            let own = if state.leaving.is_some() {
                Some(Job::Release(GuestId(number)))
            } else {
                state.life.is_to_be_made().then_some(Job::Make(GuestId(number)))
            };
            next = next_job(next.into_iter().chain(own), last);
        }
        if let Some(place) = self.places.get(processor) {
            place.due.store(due, Ordering::Relaxed);
        }
        next
    }

    /// Does a job. It may take long; it breathes ([`cpu::fiber::cond_resched`]).
    pub fn work(&'static self, job: Job, capabilities: Capabilities) {
        match job {
            Job::Make(guest) => self.make(guest, capabilities),
            Job::Release(guest) => self.release(guest),
        }
    }

    fn make(&'static self, id: GuestId, capabilities: Capabilities) {
        let Some(guest) = self.guest(id) else { return };
        let (machine, service, parents) = (self.machine, self.service, self.parents);
        let builder = GuestBuilder { machine, service, parents, management: self, capabilities };
        let releases = self.releases.load(Ordering::Acquire);
        match builder.make(id, guest.vpid, &guest.module, &guest.plan) {
            Ok(NewGuest { vm, vcpus }) => {
                let mut state = guest.state.lock();
                if state.life.made(Making::Good, cpu::tsc()) == Action::Force {
                    vm.end(EndReason::Stopped);
                }
                (state.vm, state.told_of_memory) = (Some(vm), false);
                drop(state);
                for vcpu in vcpus {
                    let processor = vcpu.processor();
                    if let Some(place) = self.places.get(processor) {
                        place.new_vcpus.lock().push(vcpu);
                    }
                    self.notify(processor);
                }
            }
            Err(why) => self.not_made(id, guest, &why, releases),
        }
    }

    /// A guest could not be made. `releases`: how often memory had been released when its making began.
    fn not_made(&self, id: GuestId, guest: &Guest, NotMade { why, lacks_memory }: &NotMade, releases: u64) {
        let lacks_memory = *lacks_memory && guest.plan.options.memory <= self.available;
        let making = if lacks_memory { Making::LacksMemory } else { Making::Bad };
        let mut state = guest.state.lock();
        state.life.made(making, cpu::tsc());
        let (waits, was_told) =
            (state.life.waits_for_memory(), core::mem::replace(&mut state.told_of_memory, lacks_memory));
        drop(state);
        match (lacks_memory, waits) {
            (false, _) => refuse(id, why),
            (true, false) => refuse(id, &format!("{why}; end other guests, and start it again")),
            (true, true) if was_told => {}
            (true, true) => log::warn!(
                "guest {}: {why}; it is made when others have released that much, after {MEMORY_TRIES} tries at most",
                id.0
            ),
        }
        // What came back while it was tried has found nobody who waits.
        if waits && self.releases.load(Ordering::Acquire) != releases {
            self.offer_memory();
        }
        self.look_whether_over();
    }

    /// Has as many guests made that wait for memory as there may be enough for. Returns whether there are some.
    fn offer_memory(&self) -> bool {
        let (mut free, mut are_some) = (FRAMES.free_bytes(), false);
        for guest in self.all.iter().flatten() {
            let Some(left) = free.checked_sub(guest.plan.options.memory) else { continue };
            if guest.state.lock().life.memory_came() == Action::Make {
                (free, are_some) = (left, true);
                self.notify(guest.home());
            }
        }
        are_some
    }

    /// The last virtual processor of a guest has left.
    pub fn left(&self, id: GuestId) {
        let Some(guest) = self.guest(id) else { return };
        let mut state = guest.state.lock();
        let Some(vm) = state.vm.take() else { return };
        let outcome = match vm.reason() {
            Some(EndReason::Exit(0)) => Outcome::Good,
            Some(EndReason::Stopped) => Outcome::Forced,
            _ => Outcome::Bad,
        };
        state.last = vm.counters();
        state.life.ended(outcome, cpu::tsc());
        state.leaving = Some(vm);
        drop(state);
        self.notify(guest.home());
    }

    fn release(&self, id: GuestId) {
        let Some(guest) = self.guest(id) else { return };
        let (leaving, start, last) = {
            let mut state = guest.state.lock();
            (state.leaving.take(), state.life.starts(), state.last)
        };
        // Its virtual processors have dropped it, and whoever looks at it does so under the lock.
        match leaving.map(Arc::try_unwrap) {
            Some(Ok(vm)) => vm.finish(),
            Some(Err(_)) => {
                log::error!("guest {}: a reference to it is still held, so its resources are given up", id.0)
            }
            None => {}
        }
        let (free, heap) = (FRAMES.free_bytes() + heap::grown(), heap::allocated());
        event!(
            "guest-released guest={} name={} start={start} charged={} interrupting={} building={} free_kib={} heap={heap}",
            id.0,
            guest.plan.options.name,
            last.charged,
            last.interrupting,
            guest.building.load(Ordering::Relaxed),
            free >> 10,
        );
        // Before it is over, so that not all are while one is still to be made.
        self.releases.fetch_add(1, Ordering::AcqRel);
        self.offer_memory();
        guest.state.lock().life.released(cpu::tsc());
        self.look_whether_over();
        self.notify(guest.home());
    }

    /// Adds what a job has taken to a guest's figures.
    pub fn add_building_time(&self, id: GuestId, ticks: u64) {
        if let Some(guest) = self.guest(id) {
            guest.building.fetch_add(ticks, Ordering::Relaxed);
        }
    }

    /// A processor has worked for a guest, beside its turns. It is charged to the guest where that runs next.
    pub fn owe(&self, id: GuestId, ticks: u64) {
        if let Some(guest) = self.guest(id) {
            guest.owed.fetch_add(ticks, Ordering::Relaxed);
        }
    }

    /// What a guest owes: it is charged now.
    #[inline]
    pub fn take_owed(&self, id: GuestId) -> u64 {
        let owed = self.guest(id).map(|guest| &guest.owed);
        owed.filter(|owed| owed.load(Ordering::Relaxed) != 0).map_or(0, |owed| owed.swap(0, Ordering::Relaxed))
    }

    /// Has a processor look once more, without waking it.
    pub fn look_again(&self, processor: usize) {
        if let Some(place) = self.places.get(processor) {
            place.has_news.store(true, Ordering::Release);
        }
    }

    fn guest(&self, id: GuestId) -> Option<&Guest> {
        self.all.get(usize::from(id.0))?.as_ref()
    }

    /// Has a processor look.
    fn notify(&self, processor: usize) {
        let Some(place) = self.places.get(processor) else { return };
        // A look that is still to come is enough for any number of news.
        if place.has_news.swap(true, Ordering::AcqRel) {
            return;
        }
        if cpu::percpu::this_cpu().number == processor {
            interrupts::raise(apic::WAKE_UP_VECTOR);
        } else {
            apic::notify(place.apic_id, apic::WAKE_UP_VECTOR);
        }
    }

    fn look_whether_over(&self) {
        // One that is over begins again only by a manager, who is not over, or by memory that others release. If nobody holds any, those that
        // still wait are tried once more. So once all are over they stay so.
        let is_over = |guest: &Guest| guest.state.lock().life.is_over();
        if self.all.iter().flatten().all(is_over) && !self.offer_memory() && !self.is_over.swap(true, Ordering::AcqRel)
        {
            for (number, guest) in (0..).zip(&self.all) {
                if guest.as_ref().is_some_and(|guest| guest.state.lock().life.waits_for_memory()) {
                    refuse(GuestId(number), "memory ran out, and nobody is left who could release some");
                }
            }
            (0..self.places.len()).for_each(|processor| self.notify(processor));
        }
    }
}

impl GuestState {
    fn force(&self) {
        if let Some(vm) = &self.vm {
            vm.end(EndReason::Stopped);
        }
    }
}

/// Says why a guest cannot be made.
pub fn refuse(guest: GuestId, why: &str) {
    event!("refused what=guest guest={} why=\"{why}\"", guest.0);
}
