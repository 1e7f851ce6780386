//! A guest's resources, and the order of their release.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use hcall_abi::DeviceId;

use crate::{
    addr::Hpa,
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
        let (functions, resetting) = (Mutex::new(Vec::new()), AtomicBool::new(false));
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
            parents,
            are_stopped: false,
            domain: None,
        }
    }

    /// Handles a guest's write to the configuration space of one of its functions.
    pub fn configure(&self, function: DeviceId, effect: Effect, domain: &Domain) {
        let mut functions = self.functions.lock();
        if let Some(assigned) = by_id(&mut functions, function) {
            if assigned.configure(effect, self.service, domain) {
                self.resetting.store(true, Ordering::Relaxed);
            }
            return;
        }
        drop(functions);
        let name = (self.id, function);
        self.parents.iter().find_map(|parent| parent.configure(name, effect, self.service));
    }

    /// Whether functions have to be polled.
    pub fn is_resetting(&self) -> bool {
        self.resetting.load(Ordering::Relaxed)
    }

    /// Polls functions that are being reset, if there are any.
    pub fn look_at_resets(&self) {
        if !self.is_resetting() {
            return;
        }
        // A processor that holds the lock is done soon, and the next look finds it free.
        let (Some(domain), Some(mut functions)) = (&self.domain, self.functions.try_lock()) else { return };
        let under_way =
            functions.iter_mut().map(|function| function.look(self.service, domain)).filter(|is| *is).count();
        self.resetting.store(under_way != 0, Ordering::Relaxed);
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
