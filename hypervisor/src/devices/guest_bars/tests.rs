use dsa_model::{Config, Dsa};

use super::*;
use crate::{
    addr::Bdf,
    devices::{dsa::tests::Model, virtual_bars},
    memory::testing::TestFrames,
    pci::{MsiX, function::enable_memory},
    vdev::vdsa,
};

const BDF: Bdf = Bdf::new(0x6a, 1, 0);
const BAR0: u64 = 0x206f_fff0_0000;
const BAR2: u64 = 0x206f_fff4_0000;

/// What a page of a guest's BAR leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// The device, for reads and writes, at this offset of the device's BAR.
    Device(u64),
    /// The device, for reads, at this offset.
    ReadOnly(u64),
    /// Memory of the guest's own frames, for reads.
    Image,
    /// Nothing: an exit.
    Trapped,
}

/// What a guest's function is put into.
struct Fixture {
    frames: TestFrames,
    bus: VirtualBus,
    bars: BarAllocator,
    ept: Ept,
    regions: MmioRegions,
    own: Vec<(Hpa, u64)>,
}

impl Fixture {
    fn new() -> Self {
        let frames = TestFrames::default();
        let ept = Ept::new(&frames, false).unwrap();
        let (bus, bars) = (VirtualBus::new(), BarAllocator::new());
        Self { frames, bus, bars, ept, regions: MmioRegions::default(), own: Vec::new() }
    }

    fn space(&mut self) -> GuestSpace<'_, TestFrames> {
        let Self { frames, bus, bars, ept, regions, own } = self;
        GuestSpace { bus, bars, ept, mmio_regions: regions, frames: own, source: frames }
    }

    /// Each page of `bytes` at `gpa`, where the device's BAR is at `base`; runs of the same kind are one, with their first page's offset.
    fn pages(&self, gpa: Gpa, bytes: u64, base: u64) -> Vec<(u64, Page)> {
        let is_own = |hpa: Hpa| {
            self.own
                .iter()
                .any(|(first, count)| (first.as_u64()..first.as_u64() + count * PAGE_SIZE).contains(&hpa.as_u64()))
        };
        let page = |offset| match self.ept.lookup(&self.frames, Gpa::new(gpa.as_u64() + offset)) {
            None => Page::Trapped,
            Some((hpa, writable)) if is_own(hpa) => {
                assert!(!writable, "an image at {offset:#x} can be written");
                Page::Image
            }
            Some((hpa, true)) => Page::Device(hpa.as_u64().wrapping_sub(base)),
            Some((hpa, false)) => Page::ReadOnly(hpa.as_u64().wrapping_sub(base)),
        };
        (0..bytes).step_by(PAGE_SIZE as usize).map(|offset| (offset, page(offset))).collect()
    }
}

/// The guest's pages that are not the device's own page at the same offset, for reads and writes.
fn exceptions(pages: &[(u64, Page)]) -> Vec<(u64, Page)> {
    pages.iter().copied().filter(|&(offset, page)| page != Page::Device(offset)).collect()
}

fn dsa_of(config: Config) -> (Model, Function) {
    let model = Model::of(Dsa::new(config));
    for (offset, value) in
        [(0x10, BAR0 as u32), (0x14, (BAR0 >> 32) as u32), (0x18, BAR2 as u32), (0x1c, (BAR2 >> 32) as u32)]
    {
        model.write(BDF, offset, value);
    }
    let function = Function::read(&model, BDF).unwrap();
    enable_memory(&model, BDF);
    (model, function)
}

/// The pages of BAR 0 and BAR 2 of a whole DSA in a guest.
fn shown(config: Config) -> [Vec<(u64, Page)>; 2] {
    let (model, function) = dsa_of(config);
    let mut fixture = Fixture::new();
    let mut space = fixture.space();
    let descr = describe(&model, &function, space.bars).unwrap();
    let mut layout =
        BarLayout { function: &function, descr: &descr, id: DeviceId(8), space: &mut space, shared: Vec::new() };
    layout.show_all(Some(&model), |_| None).unwrap();
    [(0, BAR0), (2, BAR2)].map(|(n, base)| {
        let bar = descr.bars[n].unwrap();
        fixture.pages(bar.gpa, bar.size, base)
    })
}

/// Offsets as Sapphire Rapids has them: MSI-X table at 0x2000, pending bits at 0x3000, message store from 0x4000 to 0xc000.
#[test]
fn attack_26_of_a_whole_dsa_a_guest_writes_all_but_its_commands_and_its_tables() {
    let [bar0, bar2] = shown(Config::sapphire_rapids());
    assert_eq!(bar0.len(), 16);
    let mut expected = vec![(0, Page::ReadOnly(0)), (0x2000, Page::Image), (0x3000, Page::ReadOnly(0x3000))];
    expected.extend((4..12).map(|n| (n * PAGE_SIZE, Page::Image)));
    assert_eq!(exceptions(&bar0), expected);
    assert_eq!(exceptions(&bar2), [], "its portals go straight through");
}

/// A function with an MSI-X table of three entries in the middle of its only BAR's second page.
#[test]
fn of_a_function_that_says_nothing_of_its_registers_the_tables_page_is_trapped_for_reads_as_well() {
    let (_, mut function) = dsa_of(Config::sapphire_rapids());
    let bar = Bar::Memory { base: Hpa::new(BAR0), size: 0x4000, prefetchable: false, wide: false };
    function.bars = [Some(bar), None, None, None, None, None];
    let place = |offset| TableLocation { bar: 0, offset };
    function.msix = Some(MsiX { capability: 0x40, entries: 3, table: place(0x1800), pba: place(0x3000) });
    function.siov = None;
    let (mut fixture, model) = (Fixture::new(), Model::of(Dsa::new(Config::sapphire_rapids())));
    let mut space = fixture.space();
    let descr = describe(&model, &function, space.bars).unwrap();
    let mut layout =
        BarLayout { function: &function, descr: &descr, id: DeviceId(8), space: &mut space, shared: Vec::new() };
    layout.show_all(None::<&Model>, |_| None).unwrap();
    let pages = fixture.pages(descr.bars[0].unwrap().gpa, 0x4000, BAR0);
    assert_eq!(exceptions(&pages), [(0x1000, Page::Trapped), (0x3000, Page::ReadOnly(0x3000))]);
    let gpa = |offset| Gpa::new(descr.bars[0].unwrap().gpa.as_u64() + offset);
    let kind = |offset| fixture.regions.find(gpa(offset)).map(|(kind, _)| kind);
    assert!(matches!(kind(0x1800), Some(RegionKind::Store { name: StoreName::Msix, .. })));
    for beside in [0x1000, 0x17fc, 0x1830, 0x1ffc] {
        assert!(
            matches!(kind(beside), Some(RegionKind::Registers(Registers { kind: RegisterKind::Plain, .. }))),
            "{beside:#x}"
        );
    }
    assert!(matches!(kind(0x3000), Some(RegionKind::Registers(Registers { kind: RegisterKind::PendingBits, .. }))));
}

/// Another guest's queue lies behind, and the portals of the device's own MSI-X table before.
#[test]
fn of_a_virtual_function_a_guest_reaches_the_portals_of_its_own_queue_and_nothing_else_of_the_device() {
    let (_, function) = dsa_of(Config::sapphire_rapids());
    for queue in 0..8u8 {
        let mut fixture = Fixture::new();
        let mut space = fixture.space();
        let registers = space.zeroed(1).unwrap();
        let (bar0, bar2) = (Gpa::new(0xe000_0000), Gpa::new(0xe004_0000));
        let portals = dsa::portals_of_queue(&function, queue).unwrap();
        virtual_bars::map(&mut space, DeviceId(8), (bar0, bar2), (registers, 256 * 16, portals)).unwrap();
        let mut expected = vec![(0, Page::Image)];
        expected.extend((1..16).map(|n| (n * PAGE_SIZE, if n == 8 { Page::Image } else { Page::Trapped })));
        assert_eq!(fixture.pages(bar0, vdsa::BAR0_SIZE, BAR0), expected, "registers and the table's shadow");
        let first = u64::from(queue) * 0x4000 + 0x2000;
        let portals = [Page::Device(first), Page::Device(first + PAGE_SIZE), Page::Trapped, Page::Trapped];
        let seen: Vec<_> = fixture.pages(bar2, vdsa::BAR2_SIZE, BAR2).into_iter().map(|(_, page)| page).collect();
        assert_eq!(seen, portals, "queue {queue}");
    }
}
