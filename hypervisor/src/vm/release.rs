//! The order in which a guest's resources are released: interrupts first, then the devices' paths to memory, then memory.
#![forbid(unsafe_code)]

use super::access_paths::AccessPaths;

/// A guest's resources, which are released step by step.
pub trait Releasable {
    /// Stops the guest's functions, which send nothing from then on.
    fn stop_functions(&mut self);
    /// Takes back the remapping entries, and the routes to the guest's virtual processors.
    fn end_interrupts(&mut self);
    /// Closes each path by which a device or a unit reaches the guest's memory, and records for each whether it is closed for sure.
    fn close_paths(&mut self) -> AccessPaths;
    /// Has processors drop their cached translations of the guest's page tables.
    fn forget_translations(&mut self);
    /// Frees the memory.
    fn free_memory(&mut self);
}

/// Releases a guest's resources. Memory that a device or a unit may still reach stays out of use for good. Returns whether all memory was
/// freed.
pub fn release(resources: &mut impl Releasable) -> bool {
    resources.stop_functions();
    resources.end_interrupts();
    let paths = resources.close_paths();
    resources.forget_translations();
    paths.give_back(|| resources.free_memory())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorder {
        steps: Vec<&'static str>,
        sure: [bool; 2],
    }

    impl Releasable for Recorder {
        fn stop_functions(&mut self) {
            self.steps.push("stop");
        }
        fn end_interrupts(&mut self) {
            self.steps.push("interrupts");
        }
        fn close_paths(&mut self) -> AccessPaths {
            self.steps.push("paths");
            let mut paths = AccessPaths::new(self.sure.len());
            self.sure.iter().for_each(|sure| paths.close(*sure));
            paths
        }
        fn forget_translations(&mut self) {
            self.steps.push("translations");
        }
        fn free_memory(&mut self) {
            self.steps.push("memory");
        }
    }

    #[test]
    fn memory_comes_back_last_and_not_at_all_while_a_device_may_reach_it() {
        let all = ["stop", "interrupts", "paths", "translations", "memory"];
        for (sure, steps) in [([true, true], &all[..]), ([true, false], &all[..4]), ([false, true], &all[..4])] {
            let mut resources = Recorder { steps: Vec::new(), sure };
            assert_eq!(release(&mut resources), sure == [true, true]);
            assert_eq!(resources.steps, steps);
        }
    }
}
