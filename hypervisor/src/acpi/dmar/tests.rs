use proptest::prelude::*;

use super::{
    structures::{DRHD, RMRR, SATC},
    *,
};

const UNIT: u64 = 0xfed9_0000;

fn scope(kind: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let mut scope = vec![kind, 6 + 2 * path.len() as u8, 0, 0, id, bus];
    path.iter().for_each(|hop| scope.extend([hop.0, hop.1]));
    scope
}

fn with_length(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(4 + body.len() as u16).to_le_bytes(), body].concat()
}

fn unit(flags: u8, base: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    with_length(DRHD, &[&[flags, 0, 0, 0][..], &base.to_le_bytes(), &scopes.concat()].concat())
}

fn region(base: u64, limit: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    with_length(RMRR, &[&[0; 4][..], &base.to_le_bytes(), &limit.to_le_bytes(), &scopes.concat()].concat())
}

fn table(structures: &[Vec<u8>]) -> Vec<u8> {
    let mut table = vec![0; STRUCTURES];
    (table[36], table[37]) = (45, 1);
    table.extend(structures.concat());
    table
}

fn parse(structures: &[Vec<u8>]) -> Dmar {
    Dmar::parse(&table(structures)).unwrap()
}

fn odd(at: usize, what: DefectKind) -> Vec<DmarDefect> {
    vec![DmarDefect { at, what }]
}

fn no_bridges(_: Bdf) -> Option<(u8, u8)> {
    None
}

fn base_of(dmar: &Dmar, bdf: Bdf) -> Option<u64> {
    dmar.unit_of(bdf, bdf.bus(), no_bridges)?.base.map(Hpa::as_u64)
}

#[test]
fn a_units_flags_base_and_scopes_are_read() {
    let scopes = [scope(3, 9, 0xf0, &[(0x1f, 7)]), scope(1, 0, 0, &[(2, 0)]), scope(77, 0, 0, &[(1, 0)])];
    let dmar = parse(&[unit(1, UNIT, &scopes), with_length(3, &[0; 16])]);
    assert_eq!((dmar.host_address_width, dmar.interrupt_remapping, dmar.x2apic_opt_out), (46, true, false));
    let unit = &dmar.units[0];
    assert_eq!((unit.include_all, unit.base, unit.size), (true, Some(Hpa::new(UNIT)), 4096));
    assert_eq!(unit.scopes.len(), 2);
    assert_eq!(unit.scopes[0].kind, ScopeKind::IoApic(9));
    assert_eq!(unit.scopes[1].function(0, no_bridges), Some(Bdf::new(0, 2, 0)));
    assert_eq!(dmar.defects, []);
}

#[test]
fn a_unit_is_in_the_domain_that_the_firmware_names() {
    let affinity =
        |base: u64, domain: u32| with_length(3, &[&[0; 4][..], &base.to_le_bytes(), &domain.to_le_bytes()].concat());
    let units = [unit(0, UNIT, &[]), unit(1, UNIT + 0x1000, &[])];
    let dmar = parse(&[&units[..], &[affinity(UNIT + 0x1000, 3), affinity(0x1000, 4)]].concat());
    assert_eq!(dmar.units.iter().map(|unit| unit.domain).collect::<Vec<_>>(), [None, Some(3)]);
    assert_eq!(parse(&[with_length(3, &[0; 15])]).defects, odd(48, DefectKind::Short));
}

#[test]
fn the_unit_that_names_a_function_goes_before_the_one_for_all() {
    let named = unit(0, UNIT, &[scope(1, 0, 0, &[(2, 0)]), scope(2, 0, 0, &[(1, 0)])]);
    let dmar = parse(&[unit(1, UNIT + 0x1000, &[]), named]);
    let behind = |bridge: Bdf| (bridge == Bdf::new(0, 1, 0)).then_some((4, 6));
    let base = |bdf| dmar.unit_of(bdf, bdf.bus(), behind).and_then(|unit| unit.base).map(Hpa::as_u64);
    assert_eq!(base(Bdf::new(0, 2, 0)), Some(UNIT));
    assert_eq!(base(Bdf::new(5, 3, 1)), Some(UNIT));
    assert_eq!(base(Bdf::new(7, 0, 0)), Some(UNIT + 0x1000));
    assert_eq!(base(Bdf::new(0, 2, 0).in_segment(1)), None);
}

#[test]
fn a_path_leads_through_bridges() {
    let dmar = parse(&[region(0x1000, 0x2fff, &[scope(1, 0, 0, &[(1, 0), (3, 0)])])]);
    let behind = |bridge: Bdf| (bridge == Bdf::new(0, 1, 0)).then_some((4, 4));
    assert_eq!(dmar.reserved_of(Bdf::new(4, 3, 0), behind).count(), 1);
    assert_eq!(dmar.reserved_of(Bdf::new(0, 3, 0), behind).count(), 0);
}

#[test]
fn caches_that_need_ats_are_read() {
    let satc = |flags, scopes: &[Vec<u8>]| with_length(SATC, &[&[flags, 0, 0, 0][..], &scopes.concat()].concat());
    let dmar = parse(&[satc(1, &[scope(1, 0, 0x6a, &[(1, 0)])]), satc(0, &[scope(1, 0, 0x6a, &[(2, 0)])])]);
    assert!(dmar.requires_ats(Bdf::new(0x6a, 1, 0), no_bridges));
    assert!(!dmar.requires_ats(Bdf::new(0x6a, 2, 0), no_bridges), "not required");
    assert!(!dmar.requires_ats(Bdf::new(0x6a, 1, 0).in_segment(1), no_bridges));
}

#[test]
fn attack_28_a_length_that_cannot_be_ends_the_walk_and_what_came_before_is_used() {
    let mut zero = unit(0, UNIT + 0x2000, &[]);
    zero[2] = 0;
    let mut beyond = unit(0, UNIT + 0x2000, &[]);
    beyond[2] = 17;
    let mut small = unit(0, UNIT + 0x2000, &[]);
    small[2] = 3;
    for last in [zero, beyond, small, vec![1, 0, 9]] {
        let dmar = parse(&[unit(1, UNIT, &[scope(1, 0, 0, &[(2, 0)])]), last.clone()]);
        assert_eq!((dmar.units.len(), &dmar.defects), (1, &odd(72, DefectKind::Length)), "{last:?}");
        assert_eq!(base_of(&dmar, Bdf::new(0, 2, 0)), Some(UNIT));
        assert_eq!(base_of(&dmar, Bdf::new(0, 3, 0)), None, "a unit that is left out could serve it");
    }
    assert_eq!(Dmar::parse(&[0; 47]), Err(TooShort));
}

#[test]
fn zeros_at_the_end_are_padding() {
    for zeros in [1, 2, 3, 4, 16, 100] {
        let dmar = parse(&[unit(1, UNIT, &[]), vec![0; zeros]]);
        assert_eq!((dmar.units.len(), &dmar.defects), (1, &odd(64, DefectKind::Padding)), "{zeros}");
        assert_eq!(base_of(&dmar, Bdf::new(0, 3, 0)), Some(UNIT), "nothing is lost");
    }
}

#[test]
fn a_structure_that_is_too_short_is_left_out_and_the_walk_goes_on() {
    for kind in [DRHD, RMRR, SATC] {
        let dmar = parse(&[with_length(kind, &[0; 2]), unit(1, UNIT, &[])]);
        assert_eq!((dmar.units.len(), &dmar.defects), (1, &odd(48, DefectKind::Short)));
        assert_eq!(base_of(&dmar, Bdf::new(0, 3, 0)).is_some(), kind != DRHD, "a unit could serve anything");
    }
}

#[test]
fn behind_a_scope_with_a_wrong_length_nothing_is_known_of_a_unit() {
    for len in [0, 2, 7, 10, 255] {
        let mut bad = scope(1, 0, 0, &[(2, 0)]);
        bad[1] = len;
        let named = unit(0, UNIT, &[scope(1, 0, 0, &[(3, 0)]), bad]);
        let dmar = parse(&[named, unit(1, UNIT + 0x1000, &[])]);
        assert_eq!((dmar.units.len(), &dmar.defects), (2, &odd(72, DefectKind::ScopeLength)), "{len}");
        assert_eq!(base_of(&dmar, Bdf::new(0, 3, 0)), Some(UNIT));
        assert_eq!(base_of(&dmar, Bdf::new(0, 2, 0)), None, "not the unit for all the rest");
    }
    let padded = parse(&[unit(0, UNIT, &[scope(1, 0, 0, &[(3, 0)]), vec![0; 8]]), unit(1, UNIT + 0x1000, &[])]);
    assert_eq!((padded.defects.len(), base_of(&padded, Bdf::new(0, 2, 0))), (1, Some(UNIT + 0x1000)), "padding");
}

#[test]
fn a_unit_at_an_address_that_cannot_be_serves_nobody_and_hides_no_other() {
    for base in [0, UNIT + 8, u64::MAX - 0xfff] {
        let bad = unit(0, base, &[scope(1, 0, 0, &[(2, 0)])]);
        let dmar = parse(&[bad, unit(1, UNIT, &[])]);
        assert_eq!((dmar.units.len(), &dmar.defects), (2, &odd(48, DefectKind::UnitAddress(base))));
        assert_eq!(base_of(&dmar, Bdf::new(0, 2, 0)), None);
        assert_eq!(base_of(&dmar, Bdf::new(0, 3, 0)), Some(UNIT));
    }
}

fn in_segment(segment: u16, mut unit: Vec<u8>) -> Vec<u8> {
    unit[6..8].copy_from_slice(&segment.to_le_bytes());
    unit
}

/// Both orders: whichever comes second must not fall to the unit for all the rest.
#[test]
fn two_entries_for_one_unit_are_one_that_serves_what_either_names() {
    let [first, second] = [2, 3].map(|device| unit(0, UNIT, &[scope(1, 0, 0, &[(device, 0)])]));
    let rest = unit(1, UNIT + 0x1000, &[]);
    for entries in [[first.clone(), second.clone()], [second, first]] {
        let dmar = parse(&[&entries[..], std::slice::from_ref(&rest)].concat());
        assert_eq!((dmar.units.len(), &dmar.defects), (2, &odd(72, DefectKind::SameUnit(UNIT))));
        for device in [2, 3] {
            assert_eq!(base_of(&dmar, Bdf::new(0, device, 0)), Some(UNIT), "{device}");
        }
        assert_eq!(base_of(&dmar, Bdf::new(0, 4, 0)), Some(UNIT + 0x1000));
    }
    let dmar = parse(&[unit(0, UNIT, &[]), unit(1, UNIT, &[])]);
    assert_eq!((dmar.units.len(), &dmar.defects), (1, &odd(64, DefectKind::SameUnit(UNIT))));
    assert_eq!(base_of(&dmar, Bdf::new(0, 4, 0)), Some(UNIT), "all the rest");
    let mut bad = scope(1, 0, 0, &[(5, 0)]);
    bad[1] = 2;
    let dmar = parse(&[unit(0, UNIT, &[bad]), unit(0, UNIT, &[]), rest]);
    assert_eq!(base_of(&dmar, Bdf::new(0, 5, 0)), None, "an entry's scopes are not known to the end");
}

#[test]
fn registers_serve_one_unit_of_one_segment_and_what_the_second_names_goes_to_nobody() {
    let named = |base| unit(0, base, &[scope(1, 0, 0, &[(2, 0)])]);
    let there = |bdf: Bdf| bdf.in_segment(1);
    let dmar = parse(&[named(UNIT), in_segment(1, named(UNIT)), in_segment(1, unit(1, UNIT, &[]))]);
    let told = [72, 96].map(|at| DmarDefect { at, what: DefectKind::TakenRegisters(UNIT) });
    assert_eq!((dmar.units.len(), &dmar.defects[..]), (3, &told[..]));
    assert_eq!(base_of(&dmar, Bdf::new(0, 2, 0)), Some(UNIT));
    for device in [2, 3] {
        assert_eq!(base_of(&dmar, there(Bdf::new(0, device, 0))), None);
    }
    let mut wide = unit(1, UNIT, &[]);
    wide[5] = 1;
    let rest = unit(0, UNIT + 0x2000, &[scope(1, 0, 0, &[(3, 0)])]);
    let dmar = parse(&[wide, named(UNIT + 0x1000), rest]);
    assert_eq!((dmar.units.len(), &dmar.defects), (3, &odd(64, DefectKind::TakenRegisters(UNIT + 0x1000))));
    let bases = [2, 3, 4].map(|device| base_of(&dmar, Bdf::new(0, device, 0)));
    assert_eq!(bases, [None, Some(UNIT + 0x2000), Some(UNIT)], "in the middle of another one's registers; behind them");
}

#[test]
fn a_second_entry_for_a_unit_does_not_take_the_registers_of_another() {
    let of = |device, base| unit(0, base, &[scope(1, 0, 0, &[(device, 0)])]);
    let mut wide = of(4, UNIT);
    wide[5] = 1;
    let entries = [of(2, UNIT), of(3, UNIT + 0x1000), wide.clone()];
    let dmar = parse(&entries);
    assert_eq!(dmar.defects, odd(48 + 2 * 24, DefectKind::TakenRegisters(UNIT)));
    assert_eq!(dmar.units[0].size, 0x1000);
    let bases = [2, 3, 4].map(|device| base_of(&dmar, Bdf::new(0, device, 0)));
    assert_eq!(bases, [Some(UNIT), Some(UNIT + 0x1000), None]);
    let [first, _, _] = entries;
    let dmar = parse(&[first, wide]);
    assert_eq!((dmar.units.len(), dmar.units[0].size), (1, 0x2000), "where nothing else is");
}

/// Firmware lists bridges that it has switched off, and such a bridge may forward all the same.
#[test]
fn what_could_be_behind_a_bridge_that_is_not_seen_is_not_one_of_all_the_rest() {
    let rest = unit(1, UNIT, &[]);
    let root = unit(0, UNIT + 0x2000, &[scope(1, 0, 0x80, &[(1, 0)])]);
    let seen = |bridge: Bdf| (bridge == Bdf::new(0, 6, 0)).then_some((7, 7));
    for (hidden, through) in [
        (scope(2, 0, 0, &[(1, 0)]), "a bridge"),
        (scope(1, 0, 0, &[(1, 0), (0, 0)]), "a function behind one"),
        (scope(2, 0, 0, &[(6, 0), (1, 0)]), "a bridge behind one that is seen"),
    ] {
        let dmar = parse(&[unit(0, UNIT + 0x1000, &[hidden]), rest.clone(), root.clone()]);
        let base = |bdf, top| dmar.unit_of(bdf, top, seen).and_then(|unit| unit.base).map(Hpa::as_u64);
        assert_eq!(base(Bdf::new(5, 0, 0), 5), None, "{through}");
        assert_eq!(base(Bdf::new(7, 0, 0), 0), Some(UNIT), "behind a bridge that is seen");
        assert_eq!(base(Bdf::new(0, 2, 0), 0), Some(UNIT), "on bus 0");
        assert_eq!(base(Bdf::new(0x80, 2, 0), 0x80), Some(UNIT), "on a root bus");
    }
    let dmar = parse(&[unit(0, UNIT + 0x1000, &[scope(2, 0, 0, &[(6, 0)])]), rest]);
    let base = dmar.unit_of(Bdf::new(5, 0, 0), 5, seen).and_then(|unit| unit.base);
    assert_eq!(base, Some(Hpa::new(UNIT)), "all bridges are seen");
}

#[test]
fn an_odd_region_is_left_out_and_all_else_is_used() {
    for (base, limit) in [(0x2000, 0x1fff), (0x2000, 0x2000), (0x10, 0xfff), (0, u64::MAX), (0, 0)] {
        let dmar = parse(&[unit(1, UNIT, &[]), region(base, limit, &[]), region(0x1000, 0x1fff, &[])]);
        assert_eq!(dmar.defects, odd(64, DefectKind::Region(base, limit)));
        assert_eq!((dmar.units.len(), dmar.reserved.len()), (1, 1));
    }
}

#[test]
fn there_is_no_limit_to_units_and_scopes() {
    let units: Vec<_> = (0..500).map(|n| unit(0, UNIT + 0x1000 * n, &vec![scope(1, 0, 0, &[(2, 0)]); 300])).collect();
    let dmar = parse(&units);
    assert_eq!((dmar.units.len(), dmar.defects.len()), (500, 0));
    assert!(dmar.units.iter().all(|unit| unit.scopes.len() == 300));
}

proptest! {
    #[test]
    fn attack_28_random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), good in any::<bool>()) {
        let _ = Dmar::parse(&bytes);
        let head = if good { table(&[unit(1, UNIT, &[])]) } else { table(&[]) };
        let dmar = Dmar::parse(&[head, bytes].concat()).unwrap();
        dmar.unit_of(Bdf(5), 0, |_| Some((0, 255)));
        prop_assert_eq!(good, dmar.units.first().is_some_and(|unit| unit.base == Some(Hpa::new(UNIT))) );
    }

    #[test]
    fn attack_28_flipped_bytes_are_survived(at in 0usize..120, value in any::<u8>()) {
        let scopes = [scope(3, 9, 0xf0, &[(0x1f, 7)]), scope(1, 0, 0, &[(2, 0), (3, 0)])];
        let mut bytes = table(&[unit(1, UNIT, &scopes), region(0x1000, 0x1fff, &scopes)]);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        let _ = Dmar::parse(&bytes);
    }
}
