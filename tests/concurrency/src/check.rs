//! Runs a model in all orders.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::atomic::{Fences, set_fences};

/// Runs `model` in all orders with at most `preemptions` preemptions, with both kinds of fences. Panics if a thread panics, if all threads
/// wait, or if one of them spins without end.
pub fn check(preemptions: usize, model: impl Fn() + Sync + Send + Clone + 'static) {
    for fences in [Fences::Before, Fences::After] {
        let model = model.clone();
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| run(preemptions, fences, model))) {
            eprintln!("the model fails with a fence on this side of each SeqCst access: {fences:?}");
            resume_unwind(failure);
        }
    }
}

/// Panics unless `model`, which has a fault, fails in some order.
pub fn must_fail(preemptions: usize, model: impl Fn() + Sync + Send + Clone + 'static) {
    let fails = [Fences::Before, Fences::After].into_iter().any(|fences| {
        let model = model.clone();
        catch_unwind(AssertUnwindSafe(|| run(preemptions, fences, model))).is_err()
    });
    assert!(fails, "the fault was not found");
}

fn run(preemptions: usize, fences: Fences, model: impl Fn() + Sync + Send + 'static) {
    set_fences(fences);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 2_000;
    builder.check(model);
}
