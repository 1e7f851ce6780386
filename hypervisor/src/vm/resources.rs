//! A guest's resources, and the order of their release.

use alloc::{sync::Arc, vec::Vec};
use core::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use hcall_abi::DeviceId;

use crate::{
    addr::Hpa,
    cpu,
    devices::{
        passthrough::{Assigned, by_id},
        virtual_functions::{Parent, Parents},
    },
    ept::Ept,
    ims::{Domain, GuestId},
    irq::ports::MachineService,
    machine::memory::FRAMES,
    memory::{FrameSource, Ram},
    sync::Mutex,
    vdev::pci::Effect,
    vm::{
        access_paths::AccessPaths,
        release::{Releasable, release},
    },
    vmx::instr,
};

/// Ticks of the TSC between two looks at functions that are being reset: so many at least, and so many for each tick that a look takes.
const LEAST_LOOK_PAUSE: u64 = 100_000;
const LOOK_PAUSES: u64 = 20;

/// A guest's resources, apart from its processors. Dropping it releases them: interrupts first, then the devices' paths to memory, then
/// memory.
pub struct Resources {
    id: GuestId,
    /// The service of the guest's domain.
    pub service: &'static MachineService,
    /// All parent functions, of all guests.
    kept: &'static Parents,
    /// The guest's memory.
    pub ram: Option<Ram>,
    /// The guest's extended page tables.
    pub ept: Option<Ept>,
    /// The guest's other frames: VMCSs, bitmaps, shadows; first frame and number.
    pub frames: Vec<(Hpa, u64)>,
    /// The functions assigned to the guest.
    pub functions: Mutex<Vec<Assigned>>,
    /// Whether functions are being reset, so that [`Self::look_at_resets`] has to be called. Set under the lock of the functions.
    resetting: AtomicBool,
    /// The TSC before which they are not polled again.
    next_look: AtomicU64,
    /// Virtual processors that wait for the end of a reset, by their numbers, of which there are 64 at most.
    waiting: AtomicU64,
    /// The parents of the guest's virtual functions.
    pub parents: Vec<Arc<Parent>>,
    /// The functions have been stopped.
    are_stopped: bool,
    /// The guest's interrupt domain.
    pub domain: Option<Arc<Domain>>,
}

impl Resources {
    /// No resources yet, for guest `id`.
    pub fn new(id: GuestId, service: &'static MachineService, kept: &'static Parents) -> Self {
        let (functions, resetting, waiting) = (Mutex::new(Vec::new()), AtomicBool::new(false), AtomicU64::new(0));
        let (frames, parents) = (Vec::new(), Vec::new());
        Self {
            id,
            service,
            kept,
            ram: None,
            ept: None,
            frames,
            functions,
            resetting,
            next_look: AtomicU64::new(0),
            waiting,
            parents,
            are_stopped: false,
            domain: None,
        }
    }

    /// Handles a write of virtual processor `number` to the configuration space of one of its functions. Returns whether the virtual processor
    /// has to wait ([`Self::is_waiting`]).
    pub fn configure(&self, number: usize, function: DeviceId, effect: Effect, domain: &Domain) -> bool {
        let mut functions = self.functions.lock();
        if let Some(assigned) = by_id(&mut functions, function) {
            let is_under_way = assigned.configure(effect, self.service, domain);
            return effect == Effect::Reset && self.follow(number, assigned, is_under_way);
        }
        drop(functions);
        let name = (self.id, function);
        self.parents.iter().find_map(|parent| parent.configure(name, effect, self.service));
        false
    }

    /// Virtual processor `number` has reset a DSA by its command register. Returns whether it has to wait.
    pub fn reset_written(&self, number: usize, function: DeviceId, domain: &Domain) -> bool {
        let mut functions = self.functions.lock();
        let Some(assigned) = by_id(&mut functions, function) else { return false };
        let is_under_way = assigned.command_written(self.service, domain);
        self.follow(number, assigned, is_under_way)
    }

    /// Has a reset polled that is under way. The caller holds the lock of the functions.
    fn follow(&self, number: usize, assigned: &Assigned, is_under_way: bool) -> bool {
        if !is_under_way {
            return false;
        }
        self.resetting.store(true, Ordering::Relaxed);
        let waits = assigned.keeps_its_guest();
        if waits {
            self.waiting.fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
        waits
    }

    /// Whether virtual processor `number` waits for the end of a reset.
    pub fn is_waiting(&self, number: usize) -> bool {
        self.waiting.load(Ordering::Relaxed) >> (number % 64) & 1 != 0
    }

    /// Whether functions have to be polled.
    pub fn is_resetting(&self) -> bool {
        self.resetting.load(Ordering::Relaxed)
    }

    /// Polls functions that are being reset, if there are any, and if that was not done just now. `now` is the TSC. Devices may answer slowly, so
    /// that looks take a part of the time only.
    pub fn look_at_resets(&self, now: u64) {
        if !self.is_resetting() || now < self.next_look.load(Ordering::Relaxed) {
            return;
        }
        // A processor that holds the lock is done soon, and the next look finds it free.
        let (Some(domain), Some(mut functions)) = (&self.domain, self.functions.try_lock()) else { return };
        let look = |function: &mut Assigned| function.look(self.service, domain, Duration::ZERO);
        let under_way = functions.iter_mut().map(look).filter(|is| *is).count();
        self.resetting.store(under_way != 0, Ordering::Relaxed);
        if !functions.iter().any(Assigned::keeps_its_guest) {
            self.waiting.store(0, Ordering::Relaxed);
        }
        let took = cpu::tsc().saturating_sub(now);
        let pause = took.saturating_mul(LOOK_PAUSES).max(LEAST_LOOK_PAUSE);
        self.next_look.store(now.saturating_add(pause), Ordering::Relaxed);
    }

    /// Whether the guest's devices' interrupts are posted.
    pub fn is_posted(&self) -> bool {
        self.service.ports().posts_to(self.id)
    }
}

impl Releasable for Resources {
    fn stop_functions(&mut self) {
        if core::mem::replace(&mut self.are_stopped, true) {
            return;
        }
        for function in self.functions.get_mut() {
            function.quiesce();
        }
        for parent in &self.parents {
            parent.quiesce(self.id, self.service);
        }
    }

    fn end_interrupts(&mut self) {
        if let Some(domain) = self.domain.take() {
            self.service.detach(&domain);
        }
        self.service.ports().forget(self.id);
    }

    /// There is one path for the routes, one for each function and one for each parent. A route that the unit may still cache can lead into
    /// a posted-interrupt descriptor, which is among the frames.
    fn close_paths(&mut self) -> AccessPaths {
        let functions = self.functions.get_mut();
        let mut paths = AccessPaths::new(1 + functions.len() + self.parents.len());
        paths.close(!self.service.has_in_quarantine(self.id));
        for function in functions.drain(..) {
            paths.close(function.release(self.id, self.service.ports()));
        }
        // The pages of its functions' registers go with them: nobody runs any more who could read them.
        for parent in self.parents.drain(..) {
            self.kept.leave(&parent, self.id, self.service);
            paths.close(self.service.ports().detach(self.id, parent.bdf()));
        }
        paths
    }

    fn forget_translations(&mut self) {
        if let Some(ept) = &self.ept {
            let _forgotten = instr::invept(ept.pointer()).unwrap_or_else(|failure| panic!("INVEPT: {failure}"));
        }
    }

    fn free_memory(&mut self) {
        // SAFETY: the guest's VMCSs were cleared before this is dropped, and each processor that ran it has dropped its cached
        // translations with them (`VirtualCpu::leave`); `release` comes here only when the devices are detached and flushed. So nothing
        // leads to these frames.
        unsafe {
            if let Some(ept) = self.ept.take() {
                ept.free(&FRAMES);
            }
            if let Some(ram) = self.ram.take() {
                ram.free(&FRAMES);
            }
            for (base, count) in self.frames.drain(..) {
                FRAMES.free(base, count);
            }
        }
    }
}

impl Drop for Resources {
    fn drop(&mut self) {
        if !release(self) {
            log::error!(
                "a device could not be detached, or an entry not flushed: the memory that it could reach is given up"
            );
        }
    }
}
