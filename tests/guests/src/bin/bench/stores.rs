//! Slots that a driver writes.

use guests::bare::{apic, vector};
use guests::guest_shim::store::Field;

use crate::bench::{Bench, Scenario, timed};
use crate::pool::Pool;

/// Slots that a round writes.
const OPS: usize = 16;

fn each(pool: &mut Pool, what: impl Fn(&mut Pool, usize)) -> u64 {
    timed(|| (0..OPS).for_each(|n| what(pool, n)))
}

fn blank(pool: &mut Pool) {
    (0..OPS).for_each(|n| pool.blank(n));
}

fn write_messages(pool: &mut Pool) {
    (0..OPS).for_each(|n| pool.write_message(n, vector::of_slot(n as u16)));
}

fn control(pool: &mut Pool, value: u32) {
    (0..OPS).for_each(|n| pool.write(n, Field::Control, value));
}

/// Single dwords, and what they add up to.
pub fn measure(bench: &mut Bench, pool: &mut Pool) {
    pool.fill(0);
    dwords(bench, pool);
    whole(bench, pool);
    masks(bench, pool);
    blank(pool);
}

/// Dwords of slots that are masked and stay so: nothing has to be remapped.
fn dwords(bench: &mut Bench, pool: &mut Pool) {
    blank(pool);
    write_messages(pool);
    let address = |pool: &mut Pool| each(pool, |pool, n| pool.write(n, Field::AddressLo, apic::MESSAGES));
    bench.measure(Scenario::new("slot-write", "address", 0, OPS), pool, |_| {}, address);
    let masked = |pool: &mut Pool| each(pool, |pool, n| pool.write(n, Field::Control, 1));
    bench.measure(Scenario::new("slot-write", "control", 0, OPS), pool, |_| {}, masked);
}

/// Slots from zeros to live: all four dwords, and of them the one that has to be remapped.
fn whole(bench: &mut Bench, pool: &mut Pool) {
    let all = |pool: &mut Pool| {
        each(pool, |pool, n| {
            pool.write_message(n, vector::of_slot(n as u16));
            pool.write(n, Field::Control, 0);
        })
    };
    bench.measure(Scenario::new("slot-write", "whole-slot", OPS, OPS), pool, blank, all);
    let written = |pool: &mut Pool| {
        blank(pool);
        write_messages(pool);
    };
    let unmask = |pool: &mut Pool| each(pool, |pool, n| pool.write(n, Field::Control, 0));
    bench.measure(Scenario::new("slot-write", "first-unmask", OPS, OPS), pool, written, unmask);
}

/// The mask of slots that have their entries.
fn masks(bench: &mut Bench, pool: &mut Pool) {
    control(pool, 0);
    let write = |value| move |pool: &mut Pool| each(pool, |pool, n| pool.write(n, Field::Control, value));
    bench.measure(Scenario::new("mask", "trapped", OPS, OPS), pool, |pool| control(pool, 0), write(1));
    bench.measure(Scenario::new("unmask", "trapped", OPS, OPS), pool, |pool| control(pool, 1), write(0));
}
