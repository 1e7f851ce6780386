//! A fiber: long work of the hypervisor's own that a processor does in pieces, between the turns of virtual processors.
//!
//! The work runs on a stack of its own. Where it may stop it calls [`cond_resched`], or [`pause`] if it waits for a device; both lead back to who
//! called [`Fiber::resume`], and the next call goes on from there. So a wait or a loop deep in a call needs no state of its own. Work must not
//! stop while it holds a lock: the processor would wait for ever if it asked for the lock meanwhile.

use alloc::boxed::Box;
use core::{arch::naked_asm, ptr, sync::atomic::Ordering};

use crate::cpu::{self, percpu::this_cpu};

/// How far the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is nothing to do.
    Done,
    /// It goes on when [`Fiber::resume`] is called again, which has no use before this TSC.
    Paused(u64),
}

/// What a fiber and its work know of each other.
struct Switch {
    /// The stack pointers: of the work while it is stopped, and of who resumed it while it runs.
    stopped: u64,
    resumer: u64,
    /// The TSC at which the work is to stop.
    deadline: u64,
    progress: Progress,
    work: Option<Box<dyn FnOnce()>>,
}

/// A stack, and the work on it, if there is some. It stays on the processor that has made it.
pub struct Fiber {
    top: u64,
    switch: Box<Switch>,
}

impl Fiber {
    /// A fiber without work.
    ///
    /// # Safety
    /// `top` is a multiple of 16 and the end of a stack that is nobody else's for good.
    pub unsafe fn new(top: u64) -> Self {
        let (stopped, resumer, deadline) = (0, 0, 0);
        Self { top, switch: Box::new(Switch { stopped, resumer, deadline, progress: Progress::Done, work: None }) }
    }

    /// Whether it has no work.
    pub fn is_free(&self) -> bool {
        self.switch.progress == Progress::Done
    }

    /// Gives it work, which the next [`Self::resume`] begins. Returns false, without effect, if it has some.
    pub fn begin(&mut self, work: Box<dyn FnOnce()>) -> bool {
        if !self.is_free() {
            return false;
        }
        /// What `switch` takes from a stack: six registers and where to go. A word above them makes a stack as a call leaves it.
        const FRAME: u64 = 8 * 8;
        let (frame, first) = (self.top - FRAME, run as extern "C" fn() -> ! as usize as u64);
        // SAFETY: `new` was promised the stack, and nothing is on it.
        unsafe { (frame as *mut [u64; 8]).write([0, 0, 0, 0, 0, 0, first, 0]) };
        (self.switch.stopped, self.switch.progress, self.switch.work) = (frame, Progress::Paused(0), Some(work));
        true
    }

    /// Goes on with the work until it is done, waits, or finds at [`cond_resched`] that the TSC has reached `deadline`.
    pub fn resume(&mut self, deadline: u64) -> Progress {
        if self.is_free() {
            return Progress::Done;
        }
        let switch: *mut Switch = &raw mut *self.switch;
        let own = &this_cpu().fiber;
        // SAFETY: the structure is the fiber's, which is borrowed for the call. `begin` or `stop` has left the stack as `change` restores it.
        unsafe {
            (*switch).deadline = deadline;
            own.store(switch.cast(), Ordering::Relaxed);
            change(&raw mut (*switch).resumer, (*switch).stopped);
            own.store(ptr::null_mut(), Ordering::Relaxed);
            (*switch).progress
        }
    }
}

/// A place in long work where it may stop: it does if its time is over. Elsewhere than in a fiber this does nothing.
pub fn cond_resched() {
    let switch = current();
    // SAFETY: not null only between two lines of `resume`, on the processor that is there.
    if !switch.is_null() && cpu::tsc() >= unsafe { (*switch).deadline } {
        // SAFETY: as above.
        unsafe { stop(switch, Progress::Paused(0)) };
    }
}

/// Stops the work for so many ticks of the TSC, because it waits for something. Elsewhere than in a fiber this does nothing.
pub fn pause(ticks: u64) {
    let switch = current();
    if !switch.is_null() {
        // SAFETY: as in `cond_resched`.
        unsafe { stop(switch, Progress::Paused(cpu::tsc().saturating_add(ticks))) };
    }
}

fn current() -> *mut Switch {
    this_cpu().fiber.load(Ordering::Relaxed).cast()
}

/// Leads back to who has resumed the work.
///
/// # Safety
/// The structure is that of the fiber whose stack this is.
unsafe fn stop(switch: *mut Switch, progress: Progress) {
    // SAFETY: `resume` waits there.
    unsafe {
        (*switch).progress = progress;
        change(&raw mut (*switch).stopped, (*switch).resumer);
    }
}

/// The first function on a fiber's stack.
extern "C" fn run() -> ! {
    // SAFETY: `resume` has set it just now.
    if let Some(work) = unsafe { (*current()).work.take() } {
        work();
    }
    loop {
        // SAFETY: as above. Nobody resumes work that is done.
        unsafe { stop(current(), Progress::Done) };
    }
}

/// Keeps the registers that a call must keep on this stack and where the stack ends in `own`, and goes on where another stack was left at
/// `other`.
///
/// # Safety
/// `own` is valid for a write. What lies at `other` is what this function has left there, or `begin`.
#[unsafe(naked)]
unsafe extern "C" fn change(own: *mut u64, other: u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;

    /// A fiber whose stack is leaked: tests end soon.
    fn fiber() -> Fiber {
        let stack = vec![0_u128; 1 << 16].leak();
        // SAFETY: the stack is aligned to 16 bytes, and leaked.
        unsafe { Fiber::new(stack.as_ptr_range().end as u64) }
    }

    #[test]
    fn work_goes_on_where_it_stopped_and_keeps_what_it_had() {
        let (mut fiber, seen) = (fiber(), Rc::new(RefCell::new(Vec::new())));
        let log = Rc::clone(&seen);
        let work = move || {
            for n in 0..3 {
                let text = format!("step {n}");
                cond_resched();
                log.borrow_mut().push(text);
            }
            pause(10);
            log.borrow_mut().push("end".into());
        };
        assert!(fiber.is_free() && fiber.resume(0) == Progress::Done);
        assert!(fiber.begin(Box::new(work)));
        assert!(!fiber.begin(Box::new(|| ())), "it has work");
        let mut stops = 0;
        while fiber.resume(0) != Progress::Done {
            assert_eq!(seen.borrow().len(), stops);
            stops += 1;
            cond_resched();
        }
        assert_eq!(stops, 4);
        assert_eq!(*seen.borrow(), ["step 0", "step 1", "step 2", "end"]);
        assert!(fiber.is_free());
    }

    #[test]
    fn work_that_has_time_does_not_stop_but_to_wait() {
        let mut fiber = fiber();
        assert!(fiber.begin(Box::new(|| {
            (0..1000).for_each(|_| cond_resched());
            pause(1 << 40);
        })));
        let now = cpu::tsc();
        let Progress::Paused(until) = fiber.resume(u64::MAX) else { panic!("it has waited for nothing") };
        assert!(until >= now + (1 << 40));
        assert_eq!(fiber.resume(u64::MAX), Progress::Done);
        assert!(fiber.begin(Box::new(|| ())), "it can be given work again");
        assert_eq!(fiber.resume(0), Progress::Done);
    }

    #[test]
    fn elsewhere_nothing_stops() {
        cond_resched();
        pause(u64::MAX);
    }
}
