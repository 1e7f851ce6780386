use core::cell::{Cell, RefCell};

use dsa_model::{Config, Dsa, Fault, PortalWrite, Upstream};

use super::*;
use crate::{
    addr::{Bdf, Hpa},
    clock::testing::TickingClock,
    pci::{Bar, Buses, ConfigSpace, function::while_decoding},
};

/// Each look takes a microsecond.
pub static CLOCK: TickingClock = TickingClock { hertz: 1_000_000 };

struct Fake([u64; 64]);

impl Registers for Fake {
    fn read32(&self, offset: usize) -> u32 {
        (self.0[offset / 8] >> (8 * (offset % 8))) as u32
    }
    fn read64(&self, offset: usize) -> u64 {
        self.0[offset / 8]
    }
    fn write32(&self, _: usize, _: u32) {}
    fn write64(&self, _: usize, _: u64) {}
}

#[test]
fn the_store_is_where_the_device_says() {
    let mut fake = Fake([0; 64]);
    assert_eq!(message_store(&fake), None);
    fake.0[GENCAP / 8] = 16 << 25;
    fake.0[TABLE_OFFSETS / 8] = 0x400 << 48;
    assert_eq!(message_store(&fake), Some(MessageStore { offset: 0x40000, slots: 4096 }));
}

/// With the sizes of Sapphire Rapids: 4 groups, 8 queues of 64 bytes, 9 MSI-X entries, 2,048 slots.
#[test]
fn tables_reach_as_far_as_their_entries_and_performance_monitoring_to_what_comes_next() {
    let mut fake = Fake([0; 64]);
    fake.0[GENCAP / 8] = 8 << 25;
    fake.0[WQCAP / 8] = 128 | 8 << 16 | 1 << 24;
    fake.0[GRPCAP / 8] = 4 | 96 << 8;
    fake.0[TABLE_OFFSETS / 8] = 3 | 4 << 16 | 2 << 32 | 0x40 << 48;
    fake.0[TABLE_OFFSETS / 8 + 1] = 0x10;
    let tables = |others: &[Range<u64>]| tables_in_bar(&fake, 9, others);
    let all = [0..0x200, 0x300..0x400, 0x400..0x600, 0x200..0x248, 0x4000..0xc000, 0x1000..0x2000];
    assert_eq!(tables(&[]), all);
    assert_eq!(tables(&[0x800..0x900, 0x1800..0x1890])[5], 0x1000..0x1800);
}

/// What lies beside it is the portals that take numbers of the device's own MSI-X table, and other guests' queues.
#[test]
fn a_guest_reaches_the_portals_for_the_store_of_its_own_queue_and_nothing_else() {
    for queue in 0..=u8::MAX {
        let own = u32::from(queue) * 0x4000;
        assert_eq!(store_portals(queue), own + 0x2000..own + 0x4000);
    }
}

#[test]
fn portals_are_found_in_the_devices_bar_or_not_at_all() {
    let model = Model::of(Dsa::new(Config::sapphire_rapids()));
    let bdf = Bdf::new(0x6a, 1, 0);
    for (offset, value) in [(0x18, 0xfff4_0000), (0x1c, 0x206f)] {
        model.write(bdf, offset, value);
    }
    let mut function = Function::read(&model, bdf).unwrap();
    for queue in 0..=u8::MAX {
        // Eight queues of four pages.
        let place = Hpa::new(0x206f_fff4_0000 + u64::from(queue) * 0x4000 + 0x2000);
        assert_eq!(portals_of_queue(&function, queue), (queue < 8).then_some((place, 0x2000)), "{queue}");
    }
    for at in [0x206f_fff4_0800, u64::MAX - 0xfff] {
        function.bars[2] = Some(Bar::Memory { base: Hpa::new(at), size: 0x2_0000, prefetchable: true, wide: true });
        assert_eq!(portals_of_queue(&function, 0), None, "{at:#x}");
    }
    function.bars[2] = None;
    assert_eq!(portals_of_queue(&function, 0), None);
}

#[test]
fn a_reset_is_seen_in_every_width_that_can_write_it() {
    const CMD: u64 = super::CMD as u64;
    let reset = u64::from(command::RESET_DEVICE << 20);
    assert!(is_reset(CMD, 4, reset));
    assert!(is_reset(CMD, 8, reset));
    assert!(is_reset(CMD + 2, 2, reset >> 16));
    assert!(is_reset(CMD - 4, 8, reset << 32));
    assert!(!is_reset(CMD, 2, reset));
    assert!(!is_reset(CMD, 4, 6 << 20));
    assert!(!is_reset(CMD + 4, 4, reset));
    assert!(!is_reset(CMD - 8, 8, u64::MAX));
}

#[test]
fn a_device_that_never_answers_is_given_up() {
    let mut fake = Fake([0; 64]);
    fake.0[CMDSTS / 8] = 1 << 31;
    assert!(!wait_command(&fake, &CLOCK, COMMAND) && !wait_command(&fake, &CLOCK, RESET));
}

/// A device that is at a command for so many reads of its status.
struct Busy {
    left: Cell<u32>,
    /// A command keeps it busy for so many.
    works: u32,
    /// The commands that it was given, and whether it was at another one then.
    given: RefCell<Vec<(u32, bool)>>,
}

impl Busy {
    fn for_reads(left: u32) -> Self {
        Self { left: Cell::new(left), works: 0, given: RefCell::default() }
    }
}

impl Registers for Busy {
    fn read32(&self, offset: usize) -> u32 {
        let left = self.left.get();
        if offset == CMDSTS {
            self.left.set(left.saturating_sub(1));
        }
        if offset == CMDSTS && left != 0 { CMDSTS_ACTIVE } else { 0 }
    }
    fn read64(&self, _: usize) -> u64 {
        0
    }
    fn write32(&self, offset: usize, value: u32) {
        if offset == CMD {
            self.given.borrow_mut().push((value >> CMD_SHIFT, self.left.get() != 0));
            self.left.set(self.works);
        }
    }
    fn write64(&self, _: usize, _: u64) {}
}

#[test]
fn a_reset_does_not_come_while_the_device_is_at_a_command_unless_that_does_not_end() {
    let [early, late] = [1000, 500_000].map(|reads| {
        let busy = Busy::for_reads(reads);
        assert!(reset(&busy, &CLOCK));
        busy.given.into_inner()
    });
    assert_eq!(early, [(command::RESET_DEVICE, false)]);
    assert_eq!(late, [(command::RESET_DEVICE, true), (command::RESET_DEVICE, false)]);
}

#[test]
fn the_second_write_of_a_reset_gets_the_time_of_a_command() {
    let busy = Busy { works: 300_000, ..Busy::for_reads(500_000) };
    assert!(!reset(&busy, &CLOCK));
    assert_eq!(busy.given.borrow().len(), 2);
    assert!(busy.left.get() > 190_000, "{} reads are left", busy.left.get());
}

#[test]
fn a_reset_that_a_guest_has_written_is_only_looked_at_and_a_look_takes_no_longer_than_it_may() {
    for (left, end) in [(900_000, Progress::Done), (u32::MAX, Progress::Failed)] {
        let (busy, mut resetting) = (Busy::for_reads(left), Resetting::written(&CLOCK));
        let quick = Duration::from_micros(50);
        let looks = (0_u32..).find(|_| resetting.look_for(&busy, quick) != Progress::UnderWay).unwrap();
        let reads = left - busy.left.get();
        assert!(reads <= 51 * (looks + 1), "{reads} reads in {looks} looks");
        assert!(reads.abs_diff(left.min(1_000_000)) <= 1_000 + looks, "{reads} reads until {end:?}");
        assert_eq!((resetting.look(&busy), busy.given.into_inner()), (end, vec![]));
    }
}

/// The model ignores a command that comes while another one is under way, as the device does.
#[test]
fn a_reset_has_taken_place_although_an_older_command_ended_late() {
    let model = Model::shared_out();
    assert_eq!(model.step(3, Step::Enable), Ok(0));
    model.rest(true);
    model.queue(3).begin(Step::Drain);
    let looks = model.reads();
    assert!(reset(&Until { model: &model, read: looks + 200_000 }, &CLOCK));
    assert!(!model.takes_work(3), "the reset was lost");
    assert_eq!(model.read32(0x90), 0, "the device is enabled");
}

/// The model, which rests until the state of its command has been read so often.
struct Until<'a> {
    model: &'a Model,
    read: u32,
}

impl Registers for Until<'_> {
    fn read32(&self, offset: usize) -> u32 {
        self.model.rest(self.model.reads() < self.read);
        self.model.read32(offset)
    }
    fn read64(&self, offset: usize) -> u64 {
        self.model.read64(offset)
    }
    fn write32(&self, offset: usize, value: u32) {
        self.model.write32(offset, value);
    }
    fn write64(&self, offset: usize, value: u64) {
        self.model.write64(offset, value);
    }
}

#[test]
fn a_command_is_done_when_the_device_has_done_it_and_not_before() {
    let outcome = |works| {
        let device = Busy { works, ..Busy::for_reads(0) };
        let outcome = command(&device, &CLOCK, command::ENABLE_DEVICE, 0);
        (outcome, device.left.get() == 0)
    };
    assert_eq!((outcome(90_000), outcome(110_000)), ((Ok(()), true), (Err(NO_ANSWER), false)));
    let resets = |works| reset(&Busy { works, ..Busy::for_reads(0) }, &CLOCK);
    assert_eq!((resets(900_000), resets(1_100_000)), (true, false));
}

/// The device's model. It works on when it is told to, and behind each look at the state of its command: the first look finds it active.
pub struct Model {
    dsa: RefCell<Dsa>,
    /// It does no work.
    rests: Cell<bool>,
    /// Reads of the state of its command.
    reads: Cell<u32>,
    /// Commands that it has taken.
    taken: Cell<u32>,
}

/// Nothing is upstream that a test looks at.
struct Nowhere;

impl Upstream for Nowhere {
    fn read(&mut self, _: Option<u32>, _: u64, _: &mut [u8]) -> Result<(), Fault> {
        Ok(())
    }
    fn write(&mut self, _: Option<u32>, _: u64, _: &[u8]) -> Result<(), Fault> {
        Ok(())
    }
}

impl Registers for Model {
    fn read32(&self, offset: usize) -> u32 {
        let mut dsa = self.dsa.borrow_mut();
        let value = dsa.bar0_read(offset as u64, 4) as u32;
        if offset == CMDSTS {
            self.reads.set(self.reads.get() + 1);
            if !self.rests.get() {
                dsa.work(&mut Nowhere);
            }
        }
        value
    }
    fn read64(&self, offset: usize) -> u64 {
        self.dsa.borrow().bar0_read(offset as u64, 8)
    }
    fn write32(&self, offset: usize, value: u32) {
        if offset == CMD && self.dsa.borrow().bar0_read(CMDSTS as u64, 4) as u32 & CMDSTS_ACTIVE == 0 {
            self.taken.set(self.taken.get() + 1);
        }
        self.dsa.borrow_mut().bar0_write(offset as u64, 4, value.into(), &mut Nowhere);
    }
    fn write64(&self, offset: usize, value: u64) {
        self.dsa.borrow_mut().bar0_write(offset as u64, 8, value, &mut Nowhere);
    }
}

impl Model {
    pub fn of(dsa: Dsa) -> Self {
        Self { dsa: RefCell::new(dsa), rests: Cell::new(false), reads: Cell::new(0), taken: Cell::new(0) }
    }

    /// Has it do no work, or go on.
    pub fn rest(&self, rests: bool) {
        self.rests.set(rests);
    }

    /// Whether a work queue is enabled.
    pub fn takes_work(&self, queue: usize) -> bool {
        self.read32(0x2018 + 64 * queue) >> 30 == 1
    }

    /// Commands that it was given and was at no other one then.
    pub fn commands(&self) -> u32 {
        self.taken.get()
    }

    /// How often the state of its command was read.
    pub fn reads(&self) -> u32 {
        self.reads.get()
    }

    /// A device as firmware of Sapphire Rapids hands it over: it decodes no memory.
    fn as_firmware_leaves_it() -> Self {
        Self::of(Dsa::new(Config::sapphire_rapids()))
    }

    /// A device that was reset, with memory space, bus mastering and PASIDs enabled, and shared out.
    pub fn shared_out() -> Self {
        Self::made(Config::default())
    }

    fn made(config: Config) -> Self {
        let mut dsa = Dsa::new(config);
        dsa.config_write(4, 2, 6, &mut Nowhere);
        dsa.config_write(0x126, 2, 1, &mut Nowhere);
        let model = Self::of(dsa);
        assert!(reset(&model, &CLOCK));
        assert_eq!(share_out(&model, &CLOCK), Ok(()));
        model
    }

    fn queue(&self, number: u8) -> Queue<'_, Self> {
        Queue { registers: self, number, pasid: u32::from(number) + 1, first_slot: 100 }
    }

    /// Has a queue's step carried out.
    fn step(&self, queue: u8, step: Step) -> CommandResult {
        self.queue(queue).begin(step).unwrap_or_else(|| {
            let ended = (0..1000).find_map(|_| command_result(self));
            ended.unwrap_or(Err(NO_ANSWER))
        })
    }

    /// Submits a descriptor without a completion record to a queue.
    pub fn put(&self, queue: u64, opcode: u64) -> PortalWrite {
        self.put_with(queue, opcode, None)
    }

    /// The same with a handle if it is to raise a slot.
    fn put_with(&self, queue: u64, opcode: u64, handle: Option<u16>) -> PortalWrite {
        let flags = u64::from(handle.is_some()) << 4;
        let words = [opcode << 56 | flags << 32, 0, 0, 0, u64::from(handle.unwrap_or(0)) << 32, 0, 0, 0];
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        let portal = queue * 0x4000 + 0x2000;
        self.dsa.borrow_mut().portal_write(portal, &bytes)
    }

    /// Submits a descriptor and lets the device work.
    fn submit(&self, queue: u64, opcode: u64, handle: Option<u16>) -> PortalWrite {
        let outcome = self.put_with(queue, opcode, handle);
        while self.dsa.borrow_mut().work(&mut Nowhere) {}
        outcome
    }

    fn slot_ctrl(&self, slot: usize) -> u32 {
        self.read32(0x4_0000 + 16 * slot + SLOT_CTRL)
    }
}

impl ConfigSpace for Model {
    fn read(&self, _: Bdf, offset: u16) -> u32 {
        self.dsa.borrow().config_read(offset, 4)
    }
    fn write(&self, _: Bdf, offset: u16, value: u32) {
        self.dsa.borrow_mut().config_write(offset, 4, value, &mut Nowhere);
    }
    fn buses(&self) -> Vec<Buses> {
        vec![Buses { segment: 0, first: 0, last: 255 }]
    }
    fn has_extended(&self) -> bool {
        true
    }
}

#[test]
fn a_device_that_decodes_no_memory_is_looked_at_and_left_as_it_was() {
    const COMMAND: u16 = 4;
    let (model, bdf) = (Model::as_firmware_leaves_it(), Bdf::new(0x6a, 1, 0));
    for bus_master in [0, 4] {
        model.write(bdf, COMMAND, bus_master);
        assert_eq!(queues(&model), None, "all ones");
        let seen = while_decoding(&model, bdf, || (queues(&model), message_store(&model)));
        assert_eq!(seen, (Some(Queues { count: 8, size: 16 }), Some(MessageStore { offset: 0x4000, slots: 2048 })));
        assert_eq!(model.read(bdf, COMMAND) as u16, bus_master as u16);
    }
}

#[test]
fn every_dsa_is_known_by_its_id_and_read_as_it_is() {
    for (device_id, known) in [(0x0b25, true), (0x11fb, true), (0x1212, true), (0x0b26, false), (0x0cfe, false)] {
        let model = Model::of(Dsa::new(Config { device_id, ..Config::sapphire_rapids() }));
        let (bdf, at) = (Bdf::new(0x6a, 1, 0), 0x206f_fff4_0000);
        for (offset, value) in [(0x10, at as u32), (0x14, (at >> 32) as u32)] {
            model.write(bdf, offset, value);
        }
        let function = Function::read(&model, bdf).unwrap();
        assert_eq!(is_one(&function), known, "{device_id:#x}");
        let bar = |base, size| Some(Bar::Memory { base: Hpa::new(base), size, prefetchable: true, wide: true });
        assert_eq!(function.bars, [bar(at, 0x1_0000), None, bar(0, 0x2_0000), None, None, None]);
        let msix = function.msix.unwrap();
        assert_eq!((msix.entries, msix.table.offset, msix.pba.offset), (9, 0x2000, 0x3000));
        assert!(function.resets() && function.pasid.is_some() && function.siov.is_some());
    }
}

#[test]
fn a_device_without_handles_is_not_asked_for_them() {
    let model = Model::made(Config::sapphire_rapids());
    assert_eq!(model.step(0, Step::Enable), Ok(0));
    assert_eq!((model.step(0, Step::RequestHandle(7)), model.step(0, Step::ReleaseHandle(107))), (Ok(107), Ok(0)));
    // Whatever stands in the register that is not there.
    let mut fake = Fake([0; 64]);
    fake.0[CMDCAP / 8] = u64::MAX;
    let queue = Queue { registers: &fake, number: 0, pasid: 1, first_slot: 100 };
    assert_eq!(queue.begin(Step::RequestHandle(7)), Some(Ok(107)));
}

#[test]
fn a_device_is_shared_out_in_equal_parts_and_no_queue_takes_work_yet() {
    let model = Model::shared_out();
    assert_eq!(queues(&model), Some(Queues { count: 8, size: 16 }));
    assert_eq!(model.read32(0x90), 1, "enabled");
    assert_eq!((model.read32(0x1000), model.read32(0x1020)), (0xff, 0xf));
    for queue in 0..8 {
        assert_eq!(model.read32(0x2000 + 64 * queue), 16);
        assert_eq!(model.submit(queue as u64, 0, None), PortalWrite::Dropped);
    }
}

#[test]
fn feature_msix_backed_a_queue_raises_slots_of_its_own_pasid_alone() {
    let model = Model::shared_out();
    assert_eq!((model.step(0, Step::Enable), model.step(7, Step::Enable)), (Ok(0), Ok(0)));
    for (slot, pasid) in [(5, 1), (6, 8)] {
        model.write32(0x4_0000 + 16 * slot + SLOT_CTRL, 1 | 1 << 3 | pasid << 12);
    }
    let pending = |slot| model.slot_ctrl(slot) & 0b10 != 0;
    for (queue, slot) in [(0, 6), (7, 5), (0, 4), (7, 4)] {
        assert_eq!(model.submit(queue, 0, Some(slot)), PortalWrite::Queued);
    }
    assert!(!(0..4096).any(pending), "a slot of another queue, or of nobody, was raised");
    model.submit(0, 0, Some(5));
    assert!(pending(5) && !pending(6));
    model.submit(7, 0, Some(6));
    assert!(pending(6));
    model.write32(0x4_0000 + 16 * 7 + SLOT_CTRL, 1 | 1 << 3 | 1 << 12);
    close_slots(&model, 7, 1);
    model.submit(0, 0, Some(7));
    assert!(!pending(7) && model.slot_ctrl(8) == model.slot_ctrl(7), "a slot that was closed was raised");
}

#[test]
fn commands_reach_one_queue() {
    let model = Model::shared_out();
    let state = |queue: usize| model.read32(0x2018 + 64 * queue) >> 30;
    assert_eq!((model.step(3, Step::Enable), model.step(3, Step::Enable)), (Ok(0), Err(0x21)));
    assert_eq!(model.step(4, Step::Enable), Ok(0));
    assert_eq!([Step::Drain, Step::Abort, Step::Disable].map(|step| model.step(3, step)), [Ok(0); 3]);
    assert_eq!((state(3), state(4)), (0, 1));
    assert_eq!((model.step(3, Step::Disable), model.step(3, Step::Enable)), (Err(0x32), Ok(0)));
}

#[test]
fn feature_msix_backed_handles_are_the_devices_and_revoked_ones_are_told_of_once() {
    let model = Model::shared_out();
    model.step(0, Step::Enable).unwrap();
    assert_eq!(model.step(0, Step::ReleaseHandle(107)), Err(0x41));
    assert_eq!(model.step(0, Step::RequestHandle(7)), Ok(107));
    assert!(!take_causes(&model));
    assert_eq!(command(&model, &CLOCK, 31, command::HANDLE_IMS | 107), Ok(()));
    assert_eq!((take_causes(&model), take_causes(&model)), (true, false));
    assert_eq!(model.step(0, Step::ReleaseHandle(107)), Err(0x41));
    assert_eq!((model.step(0, Step::RequestHandle(7)), model.step(0, Step::ReleaseHandle(107))), (Ok(107), Ok(0)));
}

#[test]
fn an_error_is_told_with_its_queue_once() {
    let model = Model::shared_out();
    model.step(2, Step::Enable).unwrap();
    assert_eq!(take_error(&model), None);
    model.submit(2, 0x7f, None);
    let (queue, [first, ..]) = take_error(&model).unwrap();
    assert_eq!((queue, first >> 8 & 0xff), (Some(2), 0x10));
    assert_eq!(take_error(&model), None);
}

#[test]
fn a_device_without_queues_or_a_store_cannot_be_shared_out() {
    let mut fake = Fake([0; 64]);
    assert_eq!((queues(&fake), share_out(&fake, &CLOCK)), (None, Err(NO_ANSWER)));
    fake.0[WQCAP / 8] = 7 | 8 << 16;
    assert_eq!(queues(&fake), None, "fewer descriptors than queues");
    fake.0[WQCAP / 8] = 128 | 33 << 16;
    assert_eq!(queues(&fake), None);
    fake.0[WQCAP / 8] = 128 | 8 << 16;
    assert_eq!(share_out(&fake, &CLOCK), Err(NO_ANSWER), "no store");
}
