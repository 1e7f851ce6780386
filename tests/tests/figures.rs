//! The benchmarks, briefly: that they measure, and what holds at any time. On the machine with the most slots.

use std::sync::OnceLock;

use imsvisor_tests::figures::{self, Figure, Machine};

type Figures = OnceLock<Vec<Figure>>;

/// The scenarios with `only` in their names, and the floor: measured once.
fn once(figures: &'static Figures, only: &str) -> &'static [Figure] {
    figures
        .get_or_init(|| figures::measure(Machine::GENEROUS, 4, Some(only)).unwrap_or_else(|error| panic!("{error:#}")))
}

fn masks() -> &'static [Figure] {
    static MASKS: Figures = OnceLock::new();
    once(&MASKS, "mask")
}

fn maps() -> &'static [Figure] {
    static MAPS: Figures = OnceLock::new();
    once(&MAPS, "map")
}

#[test]
fn a_null_exit_and_a_mask_are_one_exit_each() {
    for (scenario, variant) in
        [("null-exit", "cpuid"), ("null-exit", "hypercall"), ("mask", "trapped"), ("unmask", "hypercall")]
    {
        let mut found = masks().iter().filter(|figure| figure.scenario == scenario && figure.variant == variant);
        assert_eq!(found.next().map(|figure| figure.exits_per_op), Some(1.0), "{scenario} {variant}");
    }
}

#[test]
fn a_write_a_mask_and_a_map_cost_the_same_with_few_and_with_many_live_slots() {
    let expected = [
        ("slot-write", "data", writes()),
        ("slot-write", "data-of-live-slot", writes()),
        ("mask", "hypercall", masks()),
        ("map-1", "hypercall", maps()),
    ];
    for (scenario, variant, figures) in expected {
        let calls = figures.iter().filter(|figure| figure.scenario == scenario && figure.variant == variant);
        let (slots, medians): (Vec<_>, Vec<_>) = calls.map(|figure| (figure.slots, figure.median)).unzip();
        assert_eq!((slots.first(), slots.last()), (Some(&1), Some(&64_512)));
        let (least, most) = medians.iter().fold((f64::MAX, 0f64), |(least, most), &m| (least.min(m), most.max(m)));
        assert!(most <= least * 1.05, "{scenario} {variant}: {medians:?} instructions at {slots:?} slots");
    }
}

/// The median of one scenario is below this.
fn assert_below(figures: &[Figure], (scenario, variant): (&str, &str), most: f64) {
    let of = |figure: &&Figure| figure.scenario == scenario && figure.variant == variant;
    let median = figures.iter().find(of).map(|figure| figure.median);
    assert!(median.is_some_and(|median| median < most), "{scenario} {variant}: {median:?} instructions");
}

#[test]
fn a_trapped_write_an_empty_call_and_a_batch_stay_within_their_figures() {
    for variant in ["address", "data", "control"] {
        assert_below(writes(), ("slot-write", variant), 1000.0);
    }
    assert_below(masks(), ("mask", "trapped"), 1000.0);
    assert_below(masks(), ("null-exit", "hypercall"), 250.0);
    assert_below(maps(), ("map-256", "hypercall"), 160.0);
}

fn writes() -> &'static [Figure] {
    static WRITES: Figures = OnceLock::new();
    once(&WRITES, "slot-write")
}

fn latency() -> &'static [Figure] {
    static LATENCY: Figures = OnceLock::new();
    once(&LATENCY, "interrupt-latency")
}

#[test]
fn an_interrupt_is_one_exit_where_its_end_is_none_and_a_posted_one_no_exit() {
    let expected = [("injected-running", 2.0), ("injected-pv-eoi", 1.0), ("posted-running", 0.0)];
    for (variant, exits) in expected {
        let found = latency().iter().find(|figure| figure.variant == variant);
        assert_eq!(found.map(|figure| figure.exits_per_op), Some(exits), "{variant}");
    }
}
