use std::collections::BTreeMap;

use super::*;
use crate::{
    addr::Hpa,
    memory::PhysRange,
    pci::{Express, MsiX, TableLocation},
};

const FIRST: Bdf = Bdf::new(0x6a, 1, 0);
const SECOND: Bdf = Bdf::new(0x6f, 1, 0);
/// Intel's DSA with INTEL-SA-01084, and one without.
const FAULTY: u16 = 0x0b25;
const MENDED: u16 = 0x11fb;

/// Processors that run guests.
const FIT: [usize; 3] = [0, 2, 3];

/// A processor without a hyperthread beside it.
fn alone(number: usize) -> LogicalProcessor {
    LogicalProcessor { number, core: number as u32, node: Some(number as u32 / 2) }
}

fn dsa_at(bdf: Bdf, device: u16) -> Function {
    let place = |offset| TableLocation { bar: 0, offset };
    Function {
        bdf,
        vendor: 0x8086,
        device,
        class: 0x08_8000,
        revision: 0,
        subsystem: (0, 0),
        bars: [None; 6],
        msi: None,
        msix: Some(MsiX { capability: 0x80, entries: 9, table: place(0x2000), pba: place(0x3000) }),
        express: Some(Express { capability: 0x40, resets: true }),
        siov: None,
        pasid: Some(0x120),
        bridge: None,
    }
}

/// A machine that somebody made up.
struct Fake {
    functions: &'static [Function],
    /// Functions without a unit, with memory of the firmware's, and without PASIDs.
    uncovered: Vec<Bdf>,
    reserved: Vec<Bdf>,
    no_pasids: Vec<Bdf>,
    nodes: BTreeMap<Bdf, u32>,
    /// Work queues and slots.
    capacity: BTreeMap<Bdf, (u8, u32)>,
}

impl Fake {
    fn new(functions: Vec<Function>) -> Self {
        let capacity = functions.iter().map(|function| (function.bdf, (8, 2048))).collect();
        let functions = functions.leak();
        Self { functions, uncovered: vec![], reserved: vec![], no_pasids: vec![], nodes: BTreeMap::new(), capacity }
    }

    /// What the modules with these strings get: the bus of each whole function, or the queue and first slot of each virtual one.
    fn plan(&self, strings: &[&str]) -> Vec<Result<String, String>> {
        let modules: Vec<_> = strings.iter().map(module).collect();
        let tell = |given: &Assignment| match given {
            Assignment::Whole(function) => format!("{:x}", function.bdf.bus()),
            Assignment::Virtual(VirtualAllocation { parent, part, .. }) => {
                format!("{:x}/{}+{}", parent.bdf.bus(), part.queue, part.first_slot)
            }
        };
        let all = plans(self, &modules, &FIT.map(alone), Smt::Core).into_iter();
        all.map(|plan| plan.map(|plan| plan.given.iter().map(tell).collect::<Vec<_>>().join(" "))).collect()
    }

    fn refusal(&self, command_line: &str) -> String {
        self.plan(&[command_line])[0].clone().unwrap_err()
    }
}

impl Inventory for Fake {
    fn node(&self, bdf: Bdf) -> Option<u32> {
        self.nodes.get(&bdf).copied()
    }
    fn functions(&self) -> &'static [Function] {
        self.functions
    }
    fn is_covered(&self, bdf: Bdf) -> bool {
        !self.uncovered.contains(&bdf)
    }
    fn has_reserved_memory(&self, bdf: Bdf) -> bool {
        self.reserved.contains(&bdf)
    }
    fn has_pasids(&self, bdf: Bdf) -> bool {
        !self.no_pasids.contains(&bdf)
    }
    fn capacity(&self, function: &Function) -> Option<(u8, u32)> {
        self.capacity.get(&function.bdf).copied()
    }
}

fn module(command_line: &&str) -> Module {
    Module {
        range: PhysRange::new(Hpa::new(0x10_0000), 0x1000),
        command_line: Some((*command_line).to_owned()),
        initrd: None,
    }
}

fn two(first: u16, second: u16) -> Fake {
    Fake::new(vec![dsa_at(FIRST, first), dsa_at(SECOND, second)])
}

fn given(all: &[&str]) -> Vec<Result<String, String>> {
    all.iter().map(|text| Ok((*text).to_owned())).collect()
}

#[test]
fn a_function_goes_to_the_first_who_asks_for_it_and_to_nobody_else() {
    let all = two(MENDED, MENDED).plan(&["a device=dsa", "b device=6a:01.0", "c device=dsa", "d device=dsa"]);
    assert_eq!((all[0].clone(), all[2].clone()), (Ok("6a".into()), Ok("6f".into())));
    for refused in [&all[1], &all[3]] {
        assert!(refused.as_ref().unwrap_err().contains("another guest has it"), "{refused:?}");
    }
}

#[test]
fn a_guest_gets_all_that_it_asks_for_or_nothing() {
    let all = two(MENDED, MENDED).plan(&["a device=dsa device=00:1f.0", "b device=dsa device=6f:01.0"]);
    assert!(all[0].as_ref().unwrap_err().contains("no such function"), "{all:?}");
    assert_eq!(all[1], Ok("6a 6f".into()), "what the first one did not get is free");
}

#[test]
fn a_dsa_with_an_erratum_is_passed_over_unless_the_guest_accepts_it() {
    assert_eq!(two(FAULTY, MENDED).plan(&["a device=dsa", "b device=dsa unsafe=INTEL-SA-01084"]), given(&["6f", "6a"]));
    assert_eq!(two(FAULTY, MENDED).plan(&["a device=vdsa"]), given(&["6f/0+0"]));
    for command_line in ["a device=dsa", "a device=vdsa", "a device=6a:01.0", "a device=vdsa:6f:01.0"] {
        let why = two(FAULTY, FAULTY).refusal(command_line);
        assert!(why.contains("INTEL-SA-01084"), "{command_line}: {why}");
    }
}

/// Why the first one cannot be given says more than that another guest has the second one.
#[test]
fn the_refusal_says_what_a_function_is_rather_than_who_has_the_others() {
    let all = two(FAULTY, MENDED).plan(&["a device=dsa", "b device=dsa"]);
    assert!(all[1].as_ref().unwrap_err().contains("INTEL-SA-01084"), "{all:?}");
}

#[test]
fn work_queues_and_slots_of_a_parent_are_dealt_out_once() {
    let all = two(MENDED, MENDED).plan(&["a device=vdsa:6a:01.0 device=vdsa:6a:01.0", "b device=vdsa:6a:01.0"]);
    let starts: Vec<u32> = all
        .iter()
        .flat_map(|plan| {
            plan.as_ref().unwrap().split(' ').map(|part| part.split('+').next_back().unwrap().parse().unwrap())
        })
        .collect();
    assert_eq!((starts.len(), starts[0]), (3, 0));
    assert!(starts.is_sorted_by(|one, next| one < next), "{starts:?}");
    let mut small = two(MENDED, MENDED);
    small.capacity.values_mut().for_each(|capacity| *capacity = (1, 2048));
    let all = small.plan(&["a device=vdsa", "b device=vdsa", "c device=vdsa"]);
    assert_eq!(all[..2], given(&["6a/0+0", "6f/0+0"]), "the next parent when one has no queue left");
    assert!(all[2].as_ref().unwrap_err().contains("no work queue left"), "{all:?}");
}

#[test]
fn a_function_is_whole_or_in_parts() {
    let all = two(MENDED, MENDED).plan(&[
        "a device=vdsa:6a:01.0",
        "b device=6a:01.0",
        "c device=6f:01.0",
        "d device=vdsa:6f:01.0",
    ]);
    assert!(all[0].is_ok() && all[2].is_ok());
    for refused in [&all[1], &all[3]] {
        assert!(refused.as_ref().unwrap_err().contains("another guest has it"), "{refused:?}");
    }
}

#[test]
fn what_cannot_be_confined_is_given_to_nobody() {
    let mut fake = two(MENDED, MENDED);
    (fake.uncovered, fake.reserved) = (vec![FIRST], vec![SECOND]);
    assert!(fake.refusal("a device=6a:01.0").contains("no remapping unit"));
    assert!(fake.refusal("a device=6f:01.0").contains("RMRR"));
    assert!(fake.refusal("a device=vdsa:6a:01.0").contains("no remapping unit"));
    let mut fake = two(MENDED, MENDED);
    fake.no_pasids = vec![FIRST];
    assert_eq!(
        fake.plan(&["a device=vdsa", "b device=6a:01.0"]),
        given(&["6f/0+0", "6a"]),
        "a whole one needs no PASIDs"
    );
    let neighbours = Fake::new(vec![dsa_at(FIRST, MENDED), dsa_at(Bdf::new(0x6a, 1, 1), MENDED)]);
    assert!(neighbours.refusal("a device=6a:01.0").contains("shares its device"));
}

#[test]
fn virtual_processors_are_dealt_out_in_turn_and_there_is_one_terminal() {
    let module = |command_line: &str| Module {
        range: PhysRange::new(Hpa::new(0x10_0000), 0x1000),
        command_line: Some(command_line.to_owned()),
        initrd: None,
    };
    let modules = [module("a cpus=2 console=on"), module("b cpus=3"), module("c console=on")];
    let all = plans(&two(MENDED, MENDED), &modules, &FIT.map(alone), Smt::Core);
    let processors: Vec<_> = all[..2].iter().map(|plan| plan.as_ref().ok().unwrap().processors.clone()).collect();
    assert_eq!(processors, [vec![0, 2], vec![3, 0, 2]]);
    assert!(all[2].as_ref().err().unwrap().contains("the guest a has the terminal"));
}

#[test]
fn a_guest_is_placed_near_its_first_device_whose_node_is_known() {
    let mut machine = two(MENDED, MENDED);
    machine.nodes.insert(SECOND, 1);
    let modules: Vec<_> =
        ["a device=6f:01.0", "b device=vdsa:6a:01.0", "c cpus=2", "d cpus=3"].iter().map(module).collect();
    let plans = plans(&machine, &modules, &FIT.map(alone), Smt::Core).into_iter();
    let placed: Vec<_> = plans.map(|plan| plan.unwrap()).map(|plan| (plan.processors, plan.node)).collect();
    let expected = [(vec![2], Some(1)), (vec![0], Some(0)), (vec![3, 2], Some(1)), (vec![0, 2, 3], None)];
    assert_eq!(placed, expected);
}
