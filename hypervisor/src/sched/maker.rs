//! A processor's part in the lives of guests: it makes guests and releases what they held, in pieces, between the turns of virtual processors.

use alloc::boxed::Box;

use crate::{
    cpu::{
        self,
        fiber::{Fiber, Progress},
    },
    ims::GuestId,
    sched::{guests::Guests, jobs::Job},
    vm::new_vcpu::NewVcpu,
    vmx::Capabilities,
};

/// The work of a processor for its guests.
pub struct Maker {
    guests: &'static Guests,
    /// The processor's number.
    processor: usize,
    capabilities: Capabilities,
    fiber: Fiber,
    /// What is being done, and when it can go on.
    job: Option<(Job, u64)>,
    /// For whom it was begun last.
    last: Option<GuestId>,
}

impl Maker {
    /// The maker of the processor with this number.
    pub fn new(guests: &'static Guests, processor: usize, capabilities: Capabilities, fiber: Fiber) -> Self {
        Self { guests, processor, capabilities, fiber, job: None, last: None }
    }

    /// All guests.
    pub fn guests(&self) -> &'static Guests {
        self.guests
    }

    /// Looks whether there is something to do. Returns the virtual processors that have to be made now.
    pub fn look(&mut self, now: u64) -> impl Iterator<Item = NewVcpu> + use<> {
        let has_news = self.guests.has_news(self.processor, now);
        if has_news {
            self.look_for_work(now);
        }
        let (guests, processor) = (self.guests, self.processor);
        has_news.then(|| guests.take_new_vcpus(processor)).into_iter().flatten()
    }

    fn look_for_work(&mut self, now: u64) {
        let next = self.guests.look(self.processor, now, self.last);
        let Some(job) = next.filter(|_| self.job.is_none()) else { return };
        let (guests, capabilities) = (self.guests, self.capabilities);
        if self.fiber.begin(Box::new(move || guests.work(job, capabilities))) {
            self.job = Some((job, now));
            self.last = Some(job.guest());
        }
    }

    /// For whom there is work, whether it can go on now or not.
    pub fn guest(&self) -> Option<GuestId> {
        self.job.map(|(job, _)| job.guest())
    }

    /// The guest whose work can go on now.
    pub fn ready(&self, now: u64) -> Option<GuestId> {
        self.job.filter(|(_, at)| *at <= now).map(|(job, _)| job.guest())
    }

    /// When there is something to do that there is not `now`, if that is known.
    pub fn due(&self, now: u64) -> Option<u64> {
        self.job.map(|(_, at)| at).filter(|at| *at > now).into_iter().chain(self.guests.due(self.processor)).min()
    }

    /// Goes on with the work, until `end` or a little longer.
    pub fn work(&mut self, end: u64) {
        let Some((job, at)) = &mut self.job else { return };
        let began = cpu::tsc();
        let progress = self.fiber.resume(end);
        self.guests.add_building_time(job.guest(), cpu::tsc().saturating_sub(began));
        match progress {
            Progress::Paused(until) => *at = until,
            Progress::Done => {
                self.job = None;
                self.guests.look_again(self.processor);
            }
        }
    }

    /// Does all that is to be done, without a break: while no guest runs.
    pub fn work_to_the_end(&mut self) {
        loop {
            self.look_for_work(cpu::tsc());
            if self.job.is_none() {
                return;
            }
            self.work(u64::MAX);
        }
    }
}
