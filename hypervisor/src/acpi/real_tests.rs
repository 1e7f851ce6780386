//! What a reader makes of tables of real machines: `real/README.md` has a line for each.

use super::{bytes::sums_to_zero, dmar::NoUnits, *};
use crate::{
    addr::{Bdf, Hpa},
    memory::PhysRange,
};

macro_rules! real {
    ($file:literal) => {
        include_bytes!(concat!("real/", $file))
    };
}

fn dmar(table: &[u8]) -> Dmar {
    Dmar::parse(table).unwrap()
}

fn no_bridges(_: Bdf) -> Option<(u8, u8)> {
    None
}

fn unit(dmar: &Dmar, bdf: Bdf, buses_behind: impl Fn(Bdf) -> Option<(u8, u8)>) -> Option<u64> {
    dmar.unit_of(bdf, bdf.bus(), buses_behind)?.base.map(Hpa::as_u64)
}

#[test]
fn a_server_of_two_sockets_has_each_function_at_its_unit() {
    let server = dmar(real!("dmar-server-2s.bin"));
    assert_eq!((server.units.len(), server.reserved.len(), server.defects.len()), (10, 2, 0));
    assert!(server.interrupt_remapping && !server.x2apic_opt_out);
    let bridge = Bdf::new(0x64, 4, 0);
    let behind = |bdf: Bdf| match bdf {
        bdf if bdf == bridge => Some((0x65, 0x67)),
        bdf if bdf == Bdf::new(0x4a, 4, 0) => Some((0x4b, 0x4b)),
        _ => None,
    };
    for function in 0..8 {
        assert_eq!(unit(&server, Bdf::new(0x80, 1, function), behind), Some(0xd0ff_c000));
    }
    for (bdf, base) in [
        (Bdf::new(0x4b, 0, 0), 0xbbbf_c000),
        (Bdf::new(0x4a, 4, 0), 0xbbbf_c000),
        (Bdf::new(0x66, 0, 1), 0xc5ff_c000),
        (bridge, 0xc5ff_c000),
        (Bdf::new(0, 0x14, 0), 0x9b7f_c000),
        (Bdf::new(0x80, 2, 0), 0x9b7f_c000),
    ] {
        assert_eq!(unit(&server, bdf, behind), Some(base), "{bdf}");
    }
    let domains: Vec<_> = server.units.iter().map(|unit| unit.domain).collect();
    assert_eq!(domains, [Some(1), Some(0)].iter().flat_map(|domain| [*domain; 5]).collect::<Vec<_>>());
    assert_eq!(server.reserved_of(Bdf::new(0, 0x14, 0), behind).count(), 2);
    assert_eq!(server.reserved_of(Bdf::new(0, 0x15, 0), behind).count(), 0);
}

#[test]
fn a_client_has_registers_of_64_kib_and_caches_that_need_ats() {
    let client = dmar(real!("dmar-client-satc-sidp.bin"));
    assert_eq!(client.units.iter().map(|unit| unit.size).collect::<Vec<_>>(), [0x10000; 3]);
    assert_eq!((client.caches.len(), client.defects.len()), (1, 0));
    for (device, required) in [(2, true), (5, true), (0xb, true), (0xa, false)] {
        assert_eq!(client.requires_ats(Bdf::new(0, device, 0), no_bridges), required, "{device}");
    }
    assert_eq!(unit(&client, Bdf::new(0, 2, 0), no_bridges), Some(0xfc80_0000));
    assert_eq!(unit(&client, Bdf::new(0, 0xb, 0), no_bridges), Some(0xfc81_0000));
    assert_eq!(unit(&client, Bdf::new(0, 1, 0), no_bridges), Some(0xfc82_0000));
}

#[test]
fn devices_of_the_name_space_are_scopes_of_their_own() {
    let named = dmar(real!("dmar-andd.bin"));
    let scopes = || named.units.iter().flat_map(|unit| &unit.scopes);
    let is_name = |scope: &&Scope| matches!(scope.kind, ScopeKind::Namespace(1 | 2));
    assert_eq!((scopes().filter(is_name).count(), scopes().count(), named.defects.len()), (2, 5, 0));
    assert_eq!(unit(&named, Bdf::new(0, 2, 0), no_bridges), Some(0xfed9_0000));
    assert_eq!(unit(&named, Bdf::new(0xf0, 0x15, 0), no_bridges), Some(0xfed9_1000), "by name no function is meant");
}

#[test]
fn a_path_through_several_bridges_is_followed() {
    let deep = dmar(real!("dmar-deep-path.bin"));
    let behind = |bdf: Bdf| match (bdf.bus(), bdf.device()) {
        (0x64, 2) => Some((0x65, 0x69)),
        (0x65, 0) => Some((0x66, 0x69)),
        (0x66, 3) => Some((0x69, 0x69)),
        _ => None,
    };
    let path = &deep.units[0].scopes[0].path;
    assert_eq!(path[..], [(2, 0), (0, 0), (3, 0), (0, 0)]);
    assert_eq!(unit(&deep, Bdf::new(0x69, 0, 0), behind), Some(0xc5ff_c000));
    assert_eq!(unit(&deep, Bdf::new(0x66, 3, 0), behind), Some(0xfed9_1000));
}

#[test]
fn segments_are_kept_apart() {
    let both = dmar(real!("dmar-segments.bin"));
    let there = |bdf: Bdf| bdf.in_segment(1);
    let behind = |bdf: Bdf| (bdf == Bdf::new(0x17, 0, 0)).then_some((0x18, 0x18));
    assert_eq!(unit(&both, there(Bdf::new(0x18, 0, 0)), behind), Some(0xd800_0000));
    assert_eq!(unit(&both, Bdf::new(0x18, 0, 0), behind), Some(0xd900_0000));
    assert_eq!(unit(&both, Bdf::new(0, 0x14, 0), behind), Some(0xfb7f_c000));
    assert_eq!(both.reserved_of(there(Bdf::new(0, 0x14, 0)), behind).count(), 1);
    assert_eq!(both.reserved_of(Bdf::new(0, 0x14, 0), behind).count(), 0);
}

#[test]
fn a_platform_that_cannot_remap_interrupts_says_so() {
    let without = dmar(real!("dmar-no-intr-remap.bin"));
    assert_eq!((without.interrupt_remapping, without.units.len()), (false, 4));
    assert_eq!(without.usable(), Err(NoUnits::NoInterruptRemapping));
}

/// Only where the firmware has tables and this is none of them can VT-d be off in the setup.
#[test]
fn what_to_do_is_said_for_the_case_that_it_is() {
    let why = |table: Result<&[u8], Missing>| {
        let dmar = Dmar::parse_found(table);
        let usable = dmar.as_ref().map_err(|&why| why).and_then(Dmar::usable);
        usable.err().map(|why| why.to_string())
    };
    let advice = "Enable VT-d";
    assert!(why(Err(Missing::NotListed)).unwrap().contains(advice));
    for missing in [Missing::NoAcpi, Missing::Unreadable(Hpa::new(0x1000))] {
        assert!(!why(Err(missing)).unwrap().contains(advice));
    }
    let server = real!("dmar-server-2s.bin");
    for table in [&server[..0x30], &server[..0x20], real!("dmar-no-intr-remap.bin")] {
        assert!(!why(Ok(table)).unwrap().contains(advice));
    }
    assert_eq!(why(Ok(server)), None);
    assert_eq!(why(Ok(real!("dmar-rmrr-zero.bin"))), None);
}

#[test]
fn an_odd_region_is_told_of_and_left_out() {
    let zero = dmar(real!("dmar-rmrr-zero.bin"));
    assert_eq!(zero.defects, [DmarDefect { at: 0x50, what: DefectKind::Region(0, 0) }]);
    assert_eq!((zero.units.len(), zero.reserved.len()), (1, 0));
    let in_ram = dmar(real!("dmar-rmrr-in-ram.bin"));
    assert_eq!((in_ram.units.len(), in_ram.reserved.len(), in_ram.defects.len()), (1, 2, 0));
    let usable = [PhysRange::new(Hpa::new(0x4000_0000), 0x6d10_0000), PhysRange::new(Hpa::new(1 << 32), 1 << 34)];
    let kept: Vec<_> = in_ram.reserved.iter().map(|region| region.is_firmwares(&usable)).collect();
    assert_eq!(kept, [true, false]);
}

#[test]
fn zeros_behind_the_last_structure_are_padding() {
    let padded = dmar(real!("dmar-zero-padding.bin"));
    assert_eq!(padded.defects, [DmarDefect { at: 0x50, what: DefectKind::Padding }]);
    assert_eq!(unit(&padded, Bdf::new(0, 5, 0), no_bridges), Some(0xfed9_1000));
}

#[test]
fn all_80_units_are_found() {
    let many = dmar(real!("dmar-80-units.bin"));
    assert_eq!((many.units.len(), many.defects.len()), (80, 0));
    let bridge = |bdf: Bdf| (bdf == Bdf::new(0x4e, 0, 0)).then_some((0x4f, 0x4f));
    assert!(unit(&many, Bdf::new(0x4f, 0, 0), bridge).is_some());
}

/// Which of the files have right checksums. `tables::Tables::find` has the rest of it.
#[test]
fn a_wrong_checksum_is_seen_and_the_table_is_one_all_the_same() {
    let (bad, good) = (real!("dmar-bad-checksum.bin"), real!("dmar-server-2s.bin"));
    assert_eq!((sums_to_zero(bad), sums_to_zero(good)), (false, true));
    assert_eq!(unit(&dmar(bad), Bdf::new(0, 5, 0), no_bridges), Some(0xfed9_1000));
    let mcfg = real!("mcfg-bad-checksum.bin");
    assert!(!sums_to_zero(mcfg));
    assert_eq!(ecam_windows(mcfg).0.len(), 1);
}

#[test]
fn all_336_processors_of_a_server_are_found_each_once() {
    let (all, odd) = processors(real!("madt-server.bin"));
    let mut ids: Vec<_> = all.iter().map(|processor| processor.apic_id).collect();
    assert_eq!((ids.len(), odd), (336, None));
    assert!(ids.iter().any(|&id| id > 255));
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]) && ids.last() < Some(&u32::MAX));
}

#[test]
fn windows_of_all_segments_and_lengths_are_found() {
    let (eight, odd) = ecam_windows(real!("mcfg-eight-segments.bin"));
    let segments: Vec<_> = eight.iter().map(|window| window.segment).collect();
    assert_eq!((&segments[..], odd), (&[0, 1, 2, 3, 4, 5, 6, 7][..], 0));
    assert!(eight.iter().all(|window| (window.first_bus, window.last_bus) == (0, 255)));
    let (apple, _) = ecam_windows(real!("mcfg-apple-64-buses.bin"));
    assert_eq!((apple[0].last_bus, apple[0].registers.len), (63, 64 << 20));
    let (server, _) = ecam_windows(real!("mcfg-server.bin"));
    assert_eq!((server[0].last_bus, server[0].registers.start), (255, Hpa::new(0x8000_0000)));
}
