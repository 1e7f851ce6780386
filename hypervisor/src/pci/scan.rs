//! Scans the machine's buses for functions.

use alloc::vec::Vec;

use bit_field::BitField;

use super::{
    config::{Buses, ConfigSpace},
    function::Function,
};
use crate::{addr::Bdf, memory::PhysRange};

/// Every function on every reachable bus, in all segments. Buses are not followed through bridges: on a machine with several root buses
/// (every server) that finds only one of them, and a bridge's bus numbers may be wrong. At most 65,536 probes a segment.
pub fn scan(config: &(impl ConfigSpace + ?Sized)) -> Vec<Function> {
    let buses = config.buses().into_iter();
    let buses = buses.flat_map(|Buses { segment, first, last }| (first..=last).map(move |bus| (segment, bus)));
    let devices =
        buses.flat_map(|(segment, bus)| (0..32).map(move |device| Bdf::new(bus, device, 0).in_segment(segment)));
    devices.flat_map(|first| functions(config, first)).collect()
}

/// The buses behind the bridge at `bdf`, as device scopes need them.
pub fn buses_behind(functions: &[Function], bdf: Bdf) -> Option<(u8, u8)> {
    let bridge = functions.iter().find(|function| function.bdf == bdf)?.bridge?;
    (bridge.secondary <= bridge.subordinate).then_some((bridge.secondary, bridge.subordinate))
}

/// The bus of the topmost bridge above a function, or the function's own bus without a bridge. A bridge with a bus behind it that is lower
/// than its own, which is impossible, is ignored.
pub fn top_bus(functions: &[Function], bdf: Bdf) -> u8 {
    let leads_to = |bridge: &&Function, bus| {
        let up = bridge.bdf.segment() == bdf.segment() && bridge.bdf.bus() < bus;
        up && bridge.bridge.is_some_and(|behind| behind.secondary == bus)
    };
    let above = |bus: &u8| functions.iter().find(|bridge| leads_to(bridge, *bus)).map(|bridge| bridge.bdf.bus());
    core::iter::successors(Some(bdf.bus()), above).last().unwrap_or(bdf.bus())
}

/// Whether all requests of a function reach the remapping unit first. The function is alone in its device, and is on a root bus or alone
/// behind a root port. If not, it could reach others past the unit (PCIe 6.12, access control services), or they could send in its name.
pub fn stands_alone(functions: &[Function], bdf: Bdf) -> bool {
    let others = || functions.iter().filter(|other| other.bdf != bdf);
    let place = |bdf: Bdf| (bdf.segment(), bdf.bus());
    let leads_to = |port: &Function, to: Bdf| {
        port.bdf.segment() == to.segment() && port.bridge.is_some_and(|bridge| bridge.secondary == to.bus())
    };
    let port_of = |to: Bdf| functions.iter().find(|port| leads_to(port, to));
    match port_of(bdf) {
        None => !others().any(|other| (place(other.bdf), other.bdf.device()) == (place(bdf), bdf.device())),
        Some(port) => {
            let is_root_port = port.express.is_some() && port_of(port.bdf).is_none();
            is_root_port && !others().any(|other| place(other.bdf) == place(bdf))
        }
    }
}

/// The places in the list of functions with a memory BAR over a `taken` range, or over another function's BAR.
pub fn misplaced(functions: &[Function], taken: &[PhysRange]) -> Vec<usize> {
    let ranges = |function: &Function| {
        let bars = function.bars.into_iter().flatten().filter_map(|bar| bar.memory());
        bars.map(|(base, size)| PhysRange::new(base, size)).collect::<Vec<_>>()
    };
    let all: Vec<_> = functions.iter().map(ranges).collect();
    let meets = |at: usize, range: &PhysRange| {
        let others = all.iter().enumerate().filter(|(other, _)| *other != at).flat_map(|(_, ranges)| ranges);
        taken.iter().chain(others).any(|other| other.overlaps(range))
    };
    (0..all.len()).filter(|&at| all[at].iter().any(|range| meets(at, range))).collect()
}

/// The functions of a device: function 0, which is `first`, and if that says "multi-function" the others.
fn functions(config: &(impl ConfigSpace + ?Sized), first: Bdf) -> impl Iterator<Item = Function> {
    let count = match config.read(first, 0) as u16 {
        0xffff => 0,
        _ if config.read(first, 0x0c).get_bit(23) => 8,
        _ => 1,
    };
    (0..count).filter_map(move |function| Function::read(config, Bdf(first.0 | function)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::TestConfig;
    use super::super::{Bar, Bridge, Express, MsiX, Siov, TableLocation};
    use super::*;
    use crate::addr::Hpa;

    const DSA: Bdf = Bdf::new(0, 0x1e, 0);

    /// A DSA as the emulated machine has it.
    fn dsa() -> TestConfig {
        let mut config = TestConfig::default();
        config.function(DSA, 0x0b25_8086, 0x0880_0000);
        config.bar(DSA, 0, 0xfe00_0000, 512 << 10);
        config.bar64(DSA, 2, 0x20_0000_0000, 128 << 10);
        config.capability(DSA, 0x40, &[0x003f_0011, 0x4000, 0x5002]);
        config.capability(DSA, 0x60, &[0x10]);
        config.extended(DSA, 0x100, 1, &[]);
        config.extended(DSA, 0x140, 0x23, &[0x0180_8086, 0x5, 0, 0, 1]);
        config.extended(DSA, 0x160, 0x1b, &[0x1400]);
        config
    }

    /// A function for tests of what lies where.
    fn at(bdf: Bdf, bridge: Option<(u8, u8)>, express: bool) -> Function {
        let mut config = TestConfig::default();
        config.function(bdf, 0x0010_1b36, 0x0108_0200);
        let mut function = Function::read(&config, bdf).unwrap();
        function.bridge = bridge.map(|(secondary, subordinate)| Bridge { secondary, subordinate });
        function.express = express.then_some(Express { capability: 0x40, resets: true });
        function
    }

    #[test]
    fn a_bar_over_memory_or_over_another_functions_is_misplaced() {
        let with_bar = |device, base| {
            let mut config = TestConfig::default();
            let bdf = Bdf::new(0, device, 0);
            config.function(bdf, 0x0010_1b36, 0x0108_0200);
            config.bar(bdf, 0, base, 0x4000);
            Function::read(&config, bdf).unwrap()
        };
        let [memory, apic] =
            [(0, 0x8000_0000), (0xfec0_0000, 0x30_0000)].map(|(at, len)| PhysRange::new(Hpa::new(at), len));
        let good = [with_bar(1, 0xe000_0000), with_bar(2, 0xe000_4000), with_bar(3, 0x8000_0000), with_bar(4, 0)];
        assert_eq!(misplaced(&good, &[memory, apic]), [0usize; 0], "side by side, and one without a place");
        let bad = [with_bar(5, 0x7fff_c000), with_bar(6, 0xfee0_0000)];
        assert_eq!(misplaced(&[&good[..], &bad].concat(), &[memory, apic]), [4, 5]);
        let mut small = with_bar(7, 0xe000_0000);
        let Some(Bar::Memory { base, size, .. }) = &mut small.bars[0] else { panic!("a memory BAR") };
        (*base, *size) = (Hpa::new(0xe000_0f00), 0x100);
        assert_eq!(misplaced(&[with_bar(1, 0xe000_0000), small], &[memory]), [0, 1], "in a page of another one's");
        let twins = [with_bar(1, 0xe000_0000), with_bar(2, 0xe100_0000), with_bar(3, 0xe000_0000)];
        assert_eq!(misplaced(&twins, &[memory]), [0, 2], "neither of them is to be trusted");
    }

    #[test]
    fn what_shares_a_device_a_bus_or_a_switch_with_others_does_not_stand_alone() {
        let root_port = at(Bdf::new(0, 1, 0), Some((1, 3)), true);
        let bridge = at(Bdf::new(0, 2, 0), Some((4, 4)), false);
        let switch = at(Bdf::new(1, 0, 0), Some((2, 3)), true);
        let downstream = at(Bdf::new(2, 0, 0), Some((3, 3)), true);
        let (alone, twin) = (Bdf::new(0, 5, 0), [Bdf::new(0, 6, 0), Bdf::new(0, 6, 1)]);
        let all = |more: &[Bdf]| {
            let machine = [&root_port, &bridge, &switch, &downstream].into_iter().cloned();
            machine.chain(more.iter().map(|&bdf| at(bdf, None, true))).collect::<Vec<_>>()
        };
        let functions = all(&[alone, twin[0], twin[1], Bdf::new(3, 0, 0), Bdf::new(4, 0, 0)]);
        assert!(stands_alone(&functions, alone), "on a root bus");
        assert!(!stands_alone(&functions, twin[0]) && !stands_alone(&functions, twin[1]), "two functions of a device");
        assert!(!stands_alone(&functions, Bdf::new(3, 0, 0)), "behind a switch");
        assert!(!stands_alone(&functions, Bdf::new(4, 0, 0)), "behind a conventional bridge");
        let behind = [Bdf::new(1, 0, 0), Bdf::new(1, 1, 0)];
        let functions = [vec![root_port.clone()], behind.map(|bdf| at(bdf, None, true)).to_vec()].concat();
        assert!(stands_alone(&functions[..2], behind[0]), "alone behind a root port");
        assert!(!stands_alone(&functions, behind[0]), "with another one behind a root port");
    }

    #[test]
    fn above_a_function_are_the_bridges_that_lead_to_its_bus() {
        let bridge = |bus, behind| at(Bdf::new(bus, 0, 0), Some((behind, behind)), true);
        let functions = [bridge(0, 3), bridge(3, 5), bridge(9, 8), bridge(6, 6), bridge(0x40, 0x41)];
        for (bus, top) in [(0, 0), (3, 0), (5, 0), (6, 6), (8, 8), (9, 9), (0x41, 0x40)] {
            assert_eq!(top_bus(&functions, Bdf::new(bus, 1, 0)), top, "{bus:#x}");
        }
        assert_eq!(top_bus(&functions, Bdf::new(5, 1, 0).in_segment(1)), 5);
    }

    #[test]
    fn a_dsa_is_read_whole() {
        let functions = scan(&dsa());
        assert_eq!(functions.len(), 1);
        let dsa = &functions[0];
        assert_eq!((dsa.bdf, dsa.vendor, dsa.device, dsa.class), (DSA, 0x8086, 0x0b25, 0x08_8000));
        let memory = |base, size, wide| Some(Bar::Memory { base: Hpa::new(base), size, prefetchable: false, wide });
        assert_eq!(dsa.bars[0], memory(0xfe00_0000, 512 << 10, false));
        assert_eq!(dsa.bars[2], memory(0x20_0000_0000, 128 << 10, true));
        assert_eq!((dsa.bars[1], dsa.bars[3]), (None, None));
        let msix = MsiX {
            capability: 0x40,
            entries: 64,
            table: TableLocation { bar: 0, offset: 0x4000 },
            pba: TableLocation { bar: 2, offset: 0x5000 },
        };
        assert_eq!(dsa.msix, Some(msix));
        assert_eq!(dsa.siov, Some(Siov { capability: 0x140, ims: true }));
        assert_eq!(dsa.pasid, Some(0x160));
        assert_eq!(dsa.locate(msix.table, 64 * 16), Some(Hpa::new(0xfe00_4000)));
        assert_eq!(dsa.locate(msix.table, 512 << 10), None);
    }

    #[test]
    fn a_table_reaches_to_the_end_of_its_bar_and_no_further() {
        let dsa = Function::read(&dsa(), DSA).unwrap();
        let locate = |offset, bytes| dsa.locate(TableLocation { bar: 2, offset }, bytes);
        assert_eq!(locate(0x1_fff0, 16), Some(Hpa::new(0x20_0001_fff0)));
        for (offset, bytes) in [(0x1_fff0, 17), (0x2_0000, 1), (0, 0x2_0001), (u32::MAX, 16), (16, u64::MAX)] {
            assert_eq!(locate(offset, bytes), None, "{bytes} bytes from {offset:#x}");
        }
        assert_eq!(dsa.locate(TableLocation { bar: 1, offset: 0 }, 16), None, "it has none");
        assert_eq!(dsa.locate(TableLocation { bar: 7, offset: 0 }, 16), None, "nobody has");
    }

    #[test]
    fn probing_puts_everything_back() {
        let config = dsa();
        config.write(DSA, 4, 6);
        let before = config.snapshot();
        scan(&config);
        assert_eq!(config.snapshot(), before);
        assert!(!config.decoded_while_probed());
    }

    /// 8086:2fc0 and others: what is where BARs belong is neither written nor taken for an address.
    #[test]
    fn registers_in_place_of_bars_are_not_touched() {
        for device in [0x2fc0, 0x6f60, 0x6fa0, 0x6fc0, 0xa1ec, 0xa1ed, 0xa26c, 0xa26d] {
            let mut config = TestConfig::default();
            config.function(DSA, device << 16 | 0x8086, 0x0880_0000);
            config.bar(DSA, 0, 0xfe00_0000, 512 << 10);
            let functions = scan(&config);
            assert_eq!((functions[0].bars, config.writes()), ([None; 6], 0), "{device:#x}");
        }
        let mut other = TestConfig::default();
        other.function(DSA, 0x2fc0_1022, 0x0880_0000);
        other.bar(DSA, 0, 0xfe00_0000, 512 << 10);
        assert!(scan(&other)[0].bars[0].is_some(), "another maker's");
    }

    #[test]
    fn graphics_that_must_stay_translated_are_known() {
        let graphics = |id, class| {
            let mut config = TestConfig::default();
            config.function(DSA, id, class);
            let function = scan(&config)[0].clone();
            (function.is_display(), function.must_stay_translated())
        };
        assert_eq!(graphics(0x46a6_8086, 0x0300_0000), (true, true));
        assert_eq!(graphics(0x5917_8086, 0x0300_0000), (true, false), "another generation");
        assert_eq!(graphics(0x46a6_1002, 0x0300_0000), (true, false), "another maker");
        assert_eq!(graphics(0x46a6_8086, 0x0880_0000), (false, false), "no graphics");
    }

    #[test]
    fn functions_of_other_segments_are_found_and_stand_apart() {
        let there = Bdf::new(0x6a, 1, 0).in_segment(1);
        let mut config = TestConfig::default();
        for bdf in [there, Bdf::new(0x6a, 1, 0), Bdf::new(0x6b, 0, 0).in_segment(1)] {
            config.function(bdf, 0x1234_8086, 0x0200_0000);
        }
        let functions = scan(&config);
        let found: Vec<_> = functions.iter().map(|function| function.bdf).collect();
        assert_eq!(found, [Bdf::new(0x6a, 1, 0), there], "the table names bus 6a only of segment 1");
        assert!(stands_alone(&functions, there), "its namesake is in another segment");
        let bridge = at(Bdf::new(0, 1, 0), Some((0x6a, 0x6a)), true);
        let functions = [vec![bridge], functions].concat();
        assert_eq!(buses_behind(&functions, Bdf::new(0, 1, 0)), Some((0x6a, 0x6a)));
        assert_eq!(buses_behind(&functions, Bdf::new(0, 1, 0).in_segment(1)), None);
    }

    #[test]
    fn functions_beyond_the_first_need_the_multi_function_bit() {
        let mut config = TestConfig::default();
        for function in [0, 3] {
            config.function(Bdf::new(0, 1, function), 0x1234_8086, 0x0200_0000);
            config.function(Bdf::new(5, 2, function), 0x1234_8086, 0x0200_0000);
        }
        config.multi_function(Bdf::new(5, 2, 0));
        let found: Vec<_> = scan(&config).iter().map(|function| function.bdf).collect();
        assert_eq!(found, [Bdf::new(0, 1, 0), Bdf::new(5, 2, 0), Bdf::new(5, 2, 3)]);
    }

    #[test]
    fn a_capability_list_that_loops_ends() {
        let mut config = TestConfig::default();
        config.function(DSA, 0x0b25_8086, 0x0880_0000);
        config.capability(DSA, 0x40, &[0x05]);
        config.set(DSA, 0x40, 0x0000_4005);
        config.extended(DSA, 0x100, 1, &[]);
        config.set(DSA, 0x100, 0x1001_0001);
        assert_eq!(scan(&config)[0].msi, Some(0x40));
    }

    #[test]
    fn a_bridge_tells_its_buses_and_is_not_probed() {
        let bridge = Bdf::new(0, 1, 0);
        let mut config = TestConfig::default();
        config.function(bridge, 0x1234_8086, 0x0604_0000);
        config.set(bridge, 0x0c, 0x0001_0000);
        config.set(bridge, 0x18, 0x0006_0400);
        let functions = scan(&config);
        assert_eq!(buses_behind(&functions, bridge), Some((4, 6)));
        assert_eq!(config.writes(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn random_configuration_space_is_survived(words in prop::collection::vec(any::<u32>(), 1024)) {
            let mut config = TestConfig::default();
            (0..1024).for_each(|i| config.set(DSA, 4 * i, words[usize::from(i)]));
            config.set(DSA, 0, 0x0b25_8086);
            let functions = scan(&config);
            prop_assert_eq!(functions.len(), 1);
        }
    }
}
