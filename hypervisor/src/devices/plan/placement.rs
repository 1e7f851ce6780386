//! Which processors run a guest's virtual processors.
//!
//! Virtual processors are dealt out in turn. Two guests never run on hyperthreads of one core, unless that is allowed: each could watch the other
//! through what the threads share. So a core is dealt as one processor. If it falls to one guest alone, the guest gets all its threads; if to
//! several, they take turns on one of its threads, and the others stay idle.
//!
//! On a machine of several nodes a guest gets processors of one: of the node that its devices are in, else of the one with the fewest virtual
//! processors for its processors. A guest that does not fit in that node ([`Placement::room`]) is dealt the processors of all.

use alloc::{format, string::String, vec::Vec};

use crate::{guest::processor_set::ProcessorSet, machine::topology::LogicalProcessor, options::Smt};

/// What a guest asks for.
pub struct Asked {
    /// Its name.
    pub name: String,
    /// The number of its virtual processors.
    pub cpus: usize,
    /// The processors that may run them, if it said so.
    pub pin: Option<ProcessorSet>,
    /// The node that its devices are in, if that is known.
    pub near: Option<u32>,
}

/// For each guest the numbers of the processors of its virtual processors, in their order, or why it gets none. `None` in `asked` is a guest that
/// is refused already.
pub fn place(fit: &[LogicalProcessor], smt: Smt, asked: &[Option<Asked>]) -> Vec<Result<Vec<usize>, String>> {
    let mut placement = Placement { fit, smt, dealt: Vec::new(), turns: Vec::new() };
    let mut placed: Vec<Result<(), String>> = asked.iter().map(|_| Ok(())).collect();
    // First those that leave no choice: the others get out of their way.
    for pinned in [true, false] {
        for (guest, asked) in asked.iter().enumerate() {
            let Some(asked) = asked.as_ref().filter(|asked| asked.pin.is_some() == pinned) else { continue };
            placed[guest] = match asked.pin {
                Some(pin) => placement.pin(guest, asked, pin),
                None => placement.deal(guest, asked),
            };
        }
    }
    let processors = |(guest, placed): (usize, Result<(), String>)| placed.map(|()| placement.processors_of(guest));
    placed.into_iter().enumerate().map(processors).collect()
}

/// A virtual processor's place.
#[derive(Clone, Copy)]
struct Dealt {
    guest: usize,
    core: u32,
    /// The processor, if the guest has named it, or any thread will do.
    number: Option<usize>,
}

struct Placement<'a> {
    fit: &'a [LogicalProcessor],
    smt: Smt,
    dealt: Vec<Dealt>,
    /// How often the processors of each node, or those of all, had their turn.
    turns: Vec<(Option<u32>, usize)>,
}

impl Placement<'_> {
    /// The core's processors, lowest number first.
    fn threads(&self, core: u32) -> impl Iterator<Item = usize> {
        self.fit.iter().filter(move |processor| processor.core == core).map(|processor| processor.number)
    }

    /// The thread of a core that pinned virtual processors are on; `Err` if they are on several.
    fn pinned_thread(&self, core: u32) -> Result<Option<usize>, ()> {
        let mut numbers = self.dealt.iter().filter(|dealt| dealt.core == core).filter_map(|dealt| dealt.number);
        let first = numbers.next();
        if numbers.all(|number| Some(number) == first) { Ok(first) } else { Err(()) }
    }

    fn pin(&mut self, guest: usize, asked: &Asked, pin: ProcessorSet) -> Result<(), String> {
        let processors: Vec<_> = self.fit.iter().copied().filter(|processor| pin.contains(processor.number)).collect();
        if let Some(missing) = pin.numbers().find(|number| !processors.iter().any(|one| one.number == *number)) {
            return Err(format!("{}: pin={pin}: there is no processor {missing} that runs guests", asked.name));
        }
        for processor in &processors {
            let foreign = self.dealt.iter().find(|dealt| {
                dealt.guest != guest && dealt.core == processor.core && dealt.number != Some(processor.number)
            });
            if self.smt == Smt::Core && foreign.is_some() {
                return Err(format!(
                    "{}: pin={pin}: processor {} is a hyperthread of a core on which another guest is pinned; smt=shared allows that",
                    asked.name, processor.number
                ));
            }
        }
        let turns = processors.iter().cycle().take(asked.cpus);
        self.dealt.extend(turns.map(|one| Dealt { guest, core: one.core, number: Some(one.number) }));
        Ok(())
    }

    fn deal(&mut self, guest: usize, asked: &Asked) -> Result<(), String> {
        let node = self.node(asked);
        let units = self.units(node);
        let (node, units) = if units.is_empty() { (None, self.units(None)) } else { (node, units) };
        if units.is_empty() {
            return Err(format!(
                "{}: each core has a guest that is pinned to several of its hyperthreads; smt=shared allows others there",
                asked.name
            ));
        }
        let turn = self.turn(node);
        let mut dealt = Vec::new();
        for _ in 0..asked.cpus {
            let (core, number) = units[*turn % units.len()];
            *turn += 1;
            dealt.push(Dealt { guest, core, number });
        }
        self.dealt.append(&mut dealt);
        Ok(())
    }

    /// The node whose processors a guest gets; `None` for those of all nodes. Not inlined, nor [`Self::room`] and [`Self::units`]: copies would take
    /// kilobytes of the image.
    #[inline(never)]
    fn node(&self, asked: &Asked) -> Option<u32> {
        let size = |node| self.fit.iter().filter(|processor| processor.node == Some(node)).count();
        let load = |node| self.dealt.iter().filter(|dealt| self.node_of(dealt.core) == Some(node)).count();
        let nodes = || self.fit.iter().filter_map(|processor| processor.node);
        let order = |a, b| (load(a) * size(b)).cmp(&(load(b) * size(a))).then(u32::cmp(&a, &b));
        let idlest = nodes().min_by(|&a, &b| order(a, b));
        asked
            .near
            .filter(|&near| nodes().any(|node| node == near))
            .or(idlest)
            .filter(|&node| asked.cpus <= self.room(node))
    }

    /// How many processors a guest would have in a node: all threads of cores that are nobody's yet, and one of the others.
    #[inline(never)]
    fn room(&self, node: u32) -> usize {
        let threads = |&(core, number): &(u32, Option<usize>)| match number {
            None if self.dealt.iter().all(|dealt| dealt.core != core) => self.threads(core).count(),
            _ => 1,
        };
        self.units(Some(node)).iter().map(threads).sum()
    }

    fn node_of(&self, core: u32) -> Option<u32> {
        self.fit.iter().find(|processor| processor.core == core).and_then(|processor| processor.node)
    }

    fn turn(&mut self, node: Option<u32>) -> &mut usize {
        let at = self.turns.iter().position(|(own, _)| *own == node).unwrap_or_else(|| {
            self.turns.push((node, 0));
            self.turns.len() - 1
        });
        &mut self.turns[at].1
    }

    /// The cores, or the processors where guests share cores, that can be dealt of a node, or of all: a core's number, and the processor's if it
    /// matters which.
    #[inline(never)]
    fn units(&self, node: Option<u32>) -> Vec<(u32, Option<usize>)> {
        let mut units: Vec<(u32, Option<usize>)> = Vec::new();
        for processor in self.fit.iter().filter(|processor| node.is_none() || processor.node == node) {
            let is_new = !units.iter().any(|(core, _)| *core == processor.core);
            match self.smt {
                Smt::Shared => units.push((processor.core, Some(processor.number))),
                Smt::Core if is_new && self.pinned_thread(processor.core).is_ok() => units.push((processor.core, None)),
                Smt::Core => {}
            }
        }
        units
    }

    /// The processors of a guest, now that all are dealt.
    fn processors_of(&self, guest: usize) -> Vec<usize> {
        let own = self.dealt.iter().filter(|dealt| dealt.guest == guest);
        let mut on_core: Vec<(u32, usize)> = Vec::new();
        own.map(|dealt| dealt.number.unwrap_or_else(|| self.thread_for(guest, dealt.core, &mut on_core))).collect()
    }

    /// The thread for the next virtual processor that a core was dealt to. `on_core`: how many of the guest's have a thread of each core already.
    fn thread_for(&self, guest: usize, core: u32, on_core: &mut Vec<(u32, usize)>) -> usize {
        let threads: Vec<usize> = self.threads(core).collect();
        let is_alone = self.dealt.iter().all(|dealt| dealt.core != core || dealt.guest == guest);
        if !is_alone {
            return self.pinned_thread(core).ok().flatten().unwrap_or(threads[0]);
        }
        let index = on_core.iter().position(|(known, _)| *known == core).unwrap_or_else(|| {
            on_core.push((core, 0));
            on_core.len() - 1
        });
        on_core[index].1 += 1;
        threads[(on_core[index].1 - 1) % threads.len()]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `cores` cores of `threads` threads each; a core's threads are not neighbours, as firmware often lists them.
    fn machine(cores: usize, threads: usize) -> Vec<LogicalProcessor> {
        (0..cores * threads)
            .map(|number| LogicalProcessor { number, core: (number % cores) as u32, node: None })
            .collect()
    }

    fn asked(cpus: usize, pin: Option<&str>) -> Option<Asked> {
        Some(Asked { name: "guest".into(), cpus, pin: pin.map(|pin| ProcessorSet::parse(pin).unwrap()), near: None })
    }

    fn placed(fit: &[LogicalProcessor], smt: Smt, all: &[(usize, Option<&str>)]) -> Vec<Result<Vec<usize>, String>> {
        let asked: Vec<_> = all.iter().map(|&(cpus, pin)| asked(cpus, pin)).collect();
        place(fit, smt, &asked)
    }

    #[test]
    fn without_hyperthreads_virtual_processors_are_dealt_in_turn() {
        let fit = machine(3, 1);
        assert_eq!(placed(&fit, Smt::Core, &[(2, None), (3, None)]), [Ok(vec![0, 1]), Ok(vec![2, 0, 1])]);
    }

    #[test]
    fn a_guest_alone_on_a_core_has_its_threads_and_several_have_one() {
        // Core 0: processors 0 and 2; core 1: 1 and 3.
        let fit = machine(2, 2);
        assert_eq!(placed(&fit, Smt::Core, &[(4, None)]), [Ok(vec![0, 1, 2, 3])]);
        assert_eq!(placed(&fit, Smt::Core, &[(2, None), (1, None)]), [Ok(vec![0, 1]), Ok(vec![0])]);
        assert_eq!(placed(&fit, Smt::Core, &[(1, None), (3, None)]), [Ok(vec![0]), Ok(vec![1, 0, 3])]);
        assert_eq!(placed(&fit, Smt::Shared, &[(1, None), (3, None)]), [Ok(vec![0]), Ok(vec![1, 2, 3])]);
    }

    #[test]
    fn a_pinned_guest_stays_where_it_is_pinned_and_others_get_out_of_its_way() {
        let fit = machine(2, 2);
        assert_eq!(placed(&fit, Smt::Core, &[(1, None), (2, Some("1,3"))]), [Ok(vec![0]), Ok(vec![1, 3])]);
        assert_eq!(placed(&fit, Smt::Core, &[(3, Some("2"))]), [Ok(vec![2, 2, 2])]);
        let shared = placed(&fit, Smt::Core, &[(2, None), (1, Some("3"))]);
        assert_eq!(shared, [Ok(vec![0, 3]), Ok(vec![3])], "they take turns on the thread that one is pinned to");
        let full = placed(&fit, Smt::Core, &[(1, None), (4, Some("0-3"))]);
        assert!(full[0].as_ref().is_err_and(|why| why.contains("smt=shared")) && full[1].is_ok(), "{full:?}");
        let near = placed(&fit, Smt::Core, &[(1, Some("0")), (1, Some("2"))]);
        assert!(near[1].as_ref().is_err_and(|why| why.contains("hyperthread")), "{near:?}");
        assert_eq!(placed(&fit, Smt::Shared, &[(1, Some("0")), (1, Some("2"))]), [Ok(vec![0]), Ok(vec![2])]);
        let absent = placed(&fit, Smt::Core, &[(1, Some("0,9"))]);
        assert!(absent[0].as_ref().is_err_and(|why| why.contains("no processor 9")), "{absent:?}");
    }

    /// Two nodes of `each` processors without hyperthreads: node 4 has the even numbers, node 9 the odd ones.
    fn two_nodes(each: usize) -> Vec<LogicalProcessor> {
        let node = |number: usize| Some(if number.is_multiple_of(2) { 4 } else { 9 });
        (0..2 * each).map(|number| LogicalProcessor { number, core: number as u32, node: node(number) }).collect()
    }

    fn near(cpus: usize, near: Option<u32>) -> Option<Asked> {
        Some(Asked { name: "guest".into(), cpus, pin: None, near })
    }

    #[test]
    fn a_guest_is_in_one_node_and_the_nodes_have_as_many_virtual_processors() {
        let fit = two_nodes(3);
        let all = place(&fit, Smt::Core, &[near(2, None), near(3, None), near(1, None), near(2, None)]);
        assert_eq!(all, [Ok(vec![0, 2]), Ok(vec![1, 3, 5]), Ok(vec![4]), Ok(vec![0, 2])]);
    }

    #[test]
    fn a_guest_is_near_its_devices_unless_their_node_has_too_few_processors() {
        let fit = two_nodes(2);
        let all = place(&fit, Smt::Core, &[near(2, Some(9)), near(1, Some(9)), near(1, Some(77)), near(3, Some(9))]);
        assert_eq!(all, [Ok(vec![1, 3]), Ok(vec![1]), Ok(vec![0]), Ok(vec![0, 1, 2])]);
    }

    #[test]
    fn a_node_whose_cores_are_all_pinned_leaves_its_guests_to_others() {
        let fit: Vec<_> = (0..4)
            .map(|number| LogicalProcessor { number, core: number as u32 / 2, node: Some(number as u32 / 2) })
            .collect();
        let pinned = asked(2, Some("0,1"));
        assert_eq!(place(&fit, Smt::Core, &[near(1, Some(0)), pinned]), [Ok(vec![2]), Ok(vec![0, 1])]);
    }

    #[test]
    fn a_node_whose_cores_are_shared_has_room_for_one_virtual_processor_on_each() {
        let processor = |number| LogicalProcessor { number, core: number as u32 / 2, node: Some(number as u32 / 4) };
        let fit: Vec<_> = (0..8).map(processor).collect();
        let all = place(&fit, Smt::Core, &[near(4, Some(0)), near(2, Some(0)), near(3, Some(0))]);
        assert_eq!(all, [Ok(vec![0, 2, 0, 2]), Ok(vec![0, 2]), Ok(vec![0, 2, 4])]);
    }

    proptest! {
        #[test]
        fn a_guest_that_fits_a_node_is_in_one(each in 1..5usize, guests in prop::collection::vec((1..6usize, prop::option::of(0..10u32)), 1..9)) {
            let fit = two_nodes(each);
            let all: Vec<_> = guests.iter().map(|&(cpus, node)| near(cpus, node)).collect();
            for ((cpus, node), placed) in guests.iter().zip(place(&fit, Smt::Core, &all)) {
                let placed = placed.unwrap();
                let mut nodes: Vec<_> = placed.iter().map(|&number| fit[number].node).collect();
                nodes.dedup();
                prop_assert_eq!(placed.len(), *cpus);
                prop_assert!(*cpus > each || nodes.len() == 1);
                let is_known = [Some(4), Some(9)].contains(node);
                prop_assert!(*cpus > each || !is_known || nodes == [*node]);
            }
        }

        #[test]
        fn no_two_guests_are_on_different_threads_of_a_core(
            cores in 1..6usize, threads in 1..4usize,
            guests in prop::collection::vec((1..9usize, prop::option::of(0..18usize)), 1..8),
        ) {
            let fit = machine(cores, threads);
            let pins: Vec<_> = guests.iter().map(|(cpus, pin)| (*cpus, pin.map(|number| number.to_string()))).collect();
            let all: Vec<_> = pins.iter().map(|(cpus, pin)| (*cpus, pin.as_deref())).collect();
            let placed = placed(&fit, Smt::Core, &all);
            let mut on: Vec<(u32, usize, usize)> = Vec::new();
            for (guest, numbers) in placed.iter().enumerate() {
                let Ok(numbers) = numbers else { continue };
                prop_assert_eq!(numbers.len(), all[guest].0);
                for number in numbers {
                    let core = fit[*number].core;
                    prop_assert!(on.iter().all(|&(other, thread, whose)| other != core || whose == guest || thread == *number));
                    on.push((core, *number, guest));
                }
            }
        }
    }
}
