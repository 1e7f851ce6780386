//! The models together, on a host of plain memory.

use super::*;
use vtd_model::Ram;

struct Fake {
    ram: Ram,
    delivered: Vec<Interrupt>,
    /// Vectors that a local APIC has a request of.
    requested: Vec<u8>,
}

impl Memory for Fake {
    fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool {
        self.ram.read(hpa, buf)
    }

    fn write(&mut self, hpa: u64, data: &[u8]) -> bool {
        self.ram.write(hpa, data)
    }
}

impl Host for Fake {
    fn deliver(&mut self, interrupt: Interrupt) -> bool {
        self.delivered.push(interrupt);
        self.requested.contains(&interrupt.vector)
    }
}

const TABLE: u64 = 0x10_0000;
const RECORD: u64 = 0x20_0000;

fn edge(vector: u8, dest: u32) -> Interrupt {
    Interrupt { vector, dest, logical: false, delivery_mode: 0, level: false }
}

/// A machine with work queue 0 enabled.
fn ready(options: &str) -> (Machine, Fake) {
    let mut machine = Machine::new(&Options::parse(options).unwrap());
    let mut host = Fake { ram: Ram::new(0x100_0000), delivered: Vec::new(), requested: Vec::new() };
    machine.config_write(0, 4, 2, 6, &mut host);
    for (offset, value) in [(0x1000, 1), (0x1020, 1), (0x2000, 16), (0x2008, 16 << 32 | 0x11)] {
        machine.bar0_write(0, offset, 8, value, &mut host);
    }
    for command in [1 << 20, 6 << 20] {
        assert!(machine.bar0_write(0, 0xa0, 4, command, &mut host));
        assert!(!machine.work(&mut host));
        assert_eq!(machine.bar0_read(0, 0xa8, 4), 0);
    }
    (machine, host)
}

/// A NOP with record and interrupt through IMS slot 0, which holds this message.
fn nop(machine: &mut Machine, host: &mut Fake, address: u64, data: u64) -> u8 {
    machine.bar0_write(0, 0x4_0000, 8, address, host);
    machine.bar0_write(0, 0x4_0008, 8, data, host);
    host.ram.set_u64(RECORD, 0);
    for (n, word) in [0x1c << 32, RECORD, 0, 0, 0, 0, 0, 0u64].into_iter().enumerate() {
        assert_eq!(machine.portal_write(0, 0x2000 + 8 * n as u64, &word.to_le_bytes()), n == 7);
    }
    assert!(!machine.work(host));
    host.ram.u64(RECORD) as u8
}

/// Interrupt remapping on, compatibility format blocked, a table of 256 entries.
fn remap(machine: &mut Machine, host: &mut Fake) {
    machine.unit_write(0, 0xb8, 8, TABLE | 7, host);
    machine.unit_write(0, 0x18, 4, 1 << 24, host);
    machine.unit_write(0, 0x90, 8, 0x18_0000, host);
    machine.unit_write(0, 0x18, 4, 1 << 26, host);
    // A global flush of the interrupt entry cache.
    host.ram.set_u64(0x18_0000, 4);
    machine.unit_write(0, 0x88, 8, 16, host);
    machine.unit_write(0, 0x18, 4, 1 << 26 | 1 << 25, host);
    assert_eq!(machine.unit_read(0, 0x1c, 4) >> 23, 0b1110);
}

#[test]
fn without_remapping_a_slot_holds_a_plain_message() {
    for options in ["generous", "generous,no-vtd"] {
        let (mut machine, mut host) = ready(options);
        assert_eq!(nop(&mut machine, &mut host, 0xfee0_1000, 0x41), 1);
        assert_eq!(host.delivered, [edge(0x41, 1)]);
    }
}

#[test]
fn with_remapping_the_entry_decides_and_the_source_must_match() {
    let (mut machine, mut host) = ready("generous");
    remap(&mut machine, &mut host);
    // Entry 3: present, vector 0x52, destination 0; source 00:1e.0, all bits verified.
    host.ram.set_u64(TABLE + 0x30, 1 | 0x52 << 16);
    host.ram.set_u64(TABLE + 0x38, 1 << 18 | 0xf0);
    assert_eq!(nop(&mut machine, &mut host, 0xfee0_0010 | 3 << 5, 0), 1);
    assert_eq!(host.delivered, [edge(0x52, 0)]);
    machine.other_message(0xfee0_0010 | 3 << 5, &0u32.to_le_bytes(), &mut host);
    assert_eq!(host.delivered.len(), 1, "another requester");
    assert_eq!(nop(&mut machine, &mut host, 0xfee0_0000, 0x41), 1);
    assert_eq!(host.delivered.len(), 1, "compatibility format");
    let report = machine.report();
    for line in ["dsa.messages=2", "vtd.remapped=1", "vtd.interrupt_faults=2", "vtd.blocked=2", "other.messages=1"] {
        assert!(report.lines().any(|one| one == line), "{line} in {report}");
    }
}

#[test]
fn messages_that_merge_in_a_local_apic_are_counted_for_their_sender() {
    let (mut machine, mut host) = ready("generous");
    host.requested = vec![0x41];
    nop(&mut machine, &mut host, 0xfee0_0000, 0x41);
    assert!(machine.report().contains("vtd.merged=0"), "only what was remapped is held against what is delivered");
    host.requested.clear();
    remap(&mut machine, &mut host);
    host.ram.set_u64(TABLE + 0x30, 1 | 0x52 << 16);
    host.ram.set_u64(TABLE + 0x38, 1 << 18 | 0xf0);
    let counters = |machine: &Machine| {
        let report = machine.report();
        ["vtd.remapped=", "vtd.merged=", "ioapic.remapped=", "ioapic.merged="]
            .map(|key| report.lines().find_map(|line| line.strip_prefix(key)).unwrap().parse::<u64>().unwrap())
    };
    nop(&mut machine, &mut host, 0xfee0_0010 | 3 << 5, 0);
    assert_eq!(counters(&machine), [1, 0, 0, 0]);
    host.requested = vec![0x52];
    nop(&mut machine, &mut host, 0xfee0_0010 | 3 << 5, 0);
    assert_eq!(counters(&machine), [2, 1, 0, 0]);
    // Blocked, so it merges with nothing.
    host.ram.set_u64(TABLE + 0x50, 1 | 0x52 << 16);
    nop(&mut machine, &mut host, 0xfee0_0010 | 4 << 5, 0);
    assert_eq!(counters(&machine), [2, 1, 0, 0]);
    // The I/O APIC's entry 5 for pin 9.
    host.ram.set_u64(TABLE + 0x50, 1 | 0x52 << 16);
    host.ram.set_u64(TABLE + 0x58, 1 << 18 | u64::from(IOAPIC_SOURCE));
    for (register, value) in [(0x23, 5 << 17 | 1 << 16), (0x22, 0x52)] {
        machine.ioapic_write(0, register, &mut host);
        machine.ioapic_write(0x10, value, &mut host);
    }
    machine.ioapic_line(9, true, &mut host);
    assert_eq!(counters(&machine), [3, 2, 1, 1]);
}

#[test]
fn firmware_names_what_each_unit_serves() {
    let options = |text: &str| Options::parse(text).unwrap();
    let scopes = |text: &str| Machine::new(&options(text)).scopes(Some(1));
    let drhd = |base, ioapic, functions: &[u16]| Drhd { base, ioapic, functions: functions.to_vec() };
    let ioapic = Some((1, IOAPIC_SOURCE));
    assert_eq!(scopes("generous"), [drhd(UNIT_BASES[0], ioapic, &[0xf0, 0xf8])]);
    assert_eq!(
        scopes("generous,two-units,four-dsas"),
        [drhd(UNIT_BASES[0], None, &[0xf0]), drhd(UNIT_BASES[1], ioapic, &[0xf8, 0xe0, 0xe8])]
    );
    assert_eq!(scopes("generous,no-dsa"), [drhd(UNIT_BASES[0], ioapic, &[])]);
    assert_eq!(
        scopes("four-dsas"),
        [drhd(UNIT_BASES[0], None, &[0x6a08, 0x6f08]), drhd(UNIT_BASES[1], ioapic, &[0x7408, 0x7908])]
    );
    assert_eq!(scopes(""), [drhd(UNIT_BASES[0], None, &[0x6a08]), drhd(UNIT_BASES[1], ioapic, &[0x7408])]);
}

#[test]
fn the_units_own_events_are_not_remapped() {
    let (mut machine, mut host) = ready("generous");
    remap(&mut machine, &mut host);
    // Fault event: data, address, then unmasked.
    machine.unit_write(0, 0x3c, 4, 0x61, &mut host);
    machine.unit_write(0, 0x40, 4, 0xfee0_0000, &mut host);
    machine.unit_write(0, 0x38, 4, 0, &mut host);
    nop(&mut machine, &mut host, 0xfee0_0010, 0);
    assert_eq!(host.delivered, [edge(0x61, 0)]);
}

#[test]
fn dma_beyond_memory_or_into_the_message_window_faults() {
    let (mut machine, mut host) = ready("generous,no-vtd");
    let mut path = Path { source: Layout::GENEROUS.dsas[0], unit: None, tally: &mut Tally::default(), host: &mut host };
    assert_eq!(path.read(None, 0x100_0000, &mut [0; 8]), Err(Fault));
    assert_eq!(path.write(None, 0xfee0_0000, &[0; 8]), Err(Fault));
    assert_eq!(path.read(None, 0xfee0_0000, &mut [0; 4]), Err(Fault));
    machine.other_message(0xfee0_0000, &[0; 8], &mut host);
    machine.other_message(0xfee0_0002, &[0; 4], &mut host);
    assert_eq!(host.delivered, []);
}

#[test]
fn parts_left_out_read_as_ones() {
    let mut machine = Machine::new(&Options::parse("no-vtd,no-dsa").unwrap());
    assert_eq!((machine.unit_read(0, 0, 4), machine.bar0_read(0, 0, 4), machine.config_read(0, 0, 4)), (!0, !0, !0));
    assert!(!machine.portal_write(0, 0, &[0; 64]));
    assert!(machine.report().lines().all(|line| line.ends_with("=0") && !line.starts_with("vtd")));
    assert_eq!(machine.tables(None).len(), 2);
    let tables = |options: &str| Machine::new(&Options::parse(options).unwrap()).tables(None).len();
    assert_eq!((tables(""), tables("no-dmar")), (3, 2));
}

#[test]
fn dma_is_translated_by_requester() {
    const ROOT: u64 = 0x30_0000;
    const CONTEXT: u64 = 0x30_1000;
    const LEVELS: [u64; 3] = [0x30_2000, 0x30_3000, 0x30_4000];
    let (mut machine, mut host) = ready("generous");
    // Bus 0, function 00:1e.0, domain 1, three levels: device address 0x200000 is memory at 0x205000.
    host.ram.set_u64(ROOT, CONTEXT | 1);
    host.ram.set_u64(CONTEXT + 0xf0 * 16, LEVELS[0] | 1);
    host.ram.set_u64(CONTEXT + 0xf0 * 16 + 8, 1 << 8 | 1);
    host.ram.set_u64(LEVELS[0], LEVELS[1] | 3);
    host.ram.set_u64(LEVELS[1] + 8, LEVELS[2] | 3);
    host.ram.set_u64(LEVELS[2], 0x20_5000 | 3);
    machine.unit_write(0, 0x20, 8, ROOT, &mut host);
    machine.unit_write(0, 0x18, 4, 1 << 30, &mut host);
    // Global invalidations of the context cache and of the IOTLB, by registers.
    machine.unit_write(0, 0x28, 8, 1 << 63 | 1 << 61, &mut host);
    let iotlb = (machine.unit_read(0, 0x10, 8) >> 8 & 0x3ff) * 16 + 8;
    machine.unit_write(0, iotlb, 8, 1 << 63 | 1 << 60, &mut host);
    machine.unit_write(0, 0x18, 4, 1 << 31, &mut host);
    assert_eq!(machine.unit_read(0, 0x1c, 4) >> 31, 1);
    assert_eq!(nop(&mut machine, &mut host, 0xfee0_0000, 0x41), 0, "nothing at the untranslated address");
    assert_eq!(host.ram.u64(0x20_5000) as u8, 1);
    // The next page is not mapped: its access is blocked, and recorded.
    let unit = machine.units.first_mut();
    let mut path = Path { source: Layout::GENEROUS.dsas[0], unit, tally: &mut Tally::default(), host: &mut host };
    assert_eq!(path.write(None, RECORD + 0x1000, &[0; 32]), Err(Fault));
    assert!(machine.report().lines().any(|line| line == "vtd.dma_faults=1"));
}

/// A machine whose firmware has set up its functions.
fn set_up(options: &str) -> (Machine, Fake) {
    let options = Options::parse(options).unwrap();
    let mut machine = Machine::new(&options);
    let mut host = Fake { ram: Ram::new(0x100_0000), delivered: Vec::new(), requested: Vec::new() };
    machine.set_up_functions(&mut host);
    (machine, host)
}

#[test]
fn firmware_places_bars_above_4_gib_and_the_command_register_decides_whether_they_answer() {
    let (mut machine, mut host) = set_up("");
    let bars = Layout::SAPPHIRE_RAPIDS.bars(1).unwrap();
    let register = |machine: &Machine, at| machine.config_read(1, at, 4);
    assert_eq!([0x10, 0x14].map(|at| register(&machine, at)), [bars[0] as u32 | 0xc, (bars[0] >> 32) as u32]);
    assert_eq!(machine.config_read(1, COMMAND, 2), 4, "a bus master without memory, as idxd finds it");
    assert_eq!(machine.decode(bars[0]), None);
    machine.config_write(1, COMMAND, 2, 6, &mut host);
    assert_eq!(machine.decode(bars[0] + 0x10), Some((1, Bar::Registers, 0x10)));
    assert_eq!(machine.decode(bars[0] + machine.options.bar_bytes(Bar::Registers)), None);
    assert_eq!(machine.decode(bars[1] + 0x1_f000), Some((1, Bar::Portals, 0x1_f000)));
    // Software may place them elsewhere.
    machine.config_write(1, 0x10, 4, bars[0] as u32 + 0x10_0000, &mut host);
    assert_eq!(machine.decode(bars[0]), None);
    assert_eq!(machine.decode(bars[0] + 0x10_0000), Some((1, Bar::Registers, 0)));
    // A function level reset forgets them, and firmware does not come again.
    machine.config_write(1, 0x48, 2, 1 << 15, &mut host);
    assert_eq!((register(&machine, 0x10), machine.config_read(1, COMMAND, 2)), (0xc, 0));
}

#[test]
fn the_bios_places_the_bars_on_bus_0() {
    let (machine, _) = set_up("generous");
    assert_eq!((machine.config_read(0, 0x10, 4), machine.config_read(0, COMMAND, 2)), (0, 0));
}

#[test]
fn each_unit_sees_what_is_in_its_scope() {
    let (mut machine, mut host) = set_up("four-dsas");
    for (n, dsa) in [(0, 0), (1, 1), (0, 2), (1, 3)] {
        let before = machine.units[n].stats().compatibility;
        let (_, mut path) = machine.dsa(dsa, &mut host).unwrap();
        path.message(0xfee0_0000, 0x41);
        assert_eq!(machine.units[n].stats().compatibility, before + 1, "DSA {dsa}");
    }
    machine.ioapic_write(0, 0x22, &mut host);
    machine.ioapic_write(0x10, 0x52, &mut host);
    machine.ioapic_line(9, true, &mut host);
    assert_eq!(machine.units.iter().map(|unit| unit.stats().compatibility).collect::<Vec<_>>(), [2, 3]);
}
