//! Every call at random, right or with one thing wrong, against a simple model of what the interface's documentation says. What is
//! wrong has its own status and changes nothing.

use hcall_abi::{
    DeviceInfo, Pasid, SlotInfo,
    call::{HANDLES_MAX, PV_EOI_ENABLE},
};
use proptest::prelude::*;

use super::*;

/// Slots of the store: few, so that they run out.
const SLOTS: u16 = 6;
const DEVICE_ARG: u64 = DEVICE.0 as u64;
const OUTSIDE: u64 = 0x9000;

/// One thing that is wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Nothing,
    UnknownCall,
    /// An argument that the call does not use is not zero.
    Unused,
    ForeignDevice,
    DeviceBits,
    HandleBits,
    StaleHandle,
    SlotBeyond,
    AddressOutside,
    AddressMisaligned,
    AddressCrosses,
    /// A count, a size or a group that is out of its range.
    Range,
    Layout,
    Target,
    Vector,
    TargetBits,
    Pasid,
}

/// A call in the making: numbers that are brought into their ranges when the model is known.
#[derive(Clone, Debug)]
struct Step {
    call: Call,
    wrong: Wrong,
    picks: [usize; 4],
    group: u8,
    count: u32,
    unmask: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    let wrong = prop_oneof![
        3 => Just(Wrong::Nothing),
        1 => prop::sample::select(vec![
            Wrong::UnknownCall, Wrong::Unused, Wrong::ForeignDevice, Wrong::DeviceBits, Wrong::HandleBits, Wrong::StaleHandle,
            Wrong::SlotBeyond, Wrong::AddressOutside, Wrong::AddressMisaligned, Wrong::AddressCrosses, Wrong::Range,
            Wrong::Layout, Wrong::Target, Wrong::Vector, Wrong::TargetBits, Wrong::Pasid,
        ]),
    ];
    let call = prop::sample::select(Call::ALL.to_vec());
    (call, wrong, prop::array::uniform4(0..64usize), 0..3u8, 1..9u32, any::<bool>())
        .prop_map(|(call, wrong, picks, group, count, unmask)| Step { call, wrong, picks, group, count, unmask })
}

/// What a slot is, as the documentation has it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Slot {
    generation: u16,
    held: Option<Held>,
}

#[derive(Clone, Debug, PartialEq)]
struct Held {
    group: u8,
    pasid: Option<Pasid>,
    mapping: Option<(Target, u64)>,
    masked: bool,
}

/// The interface, as the documentation has it.
struct Model {
    slots: Vec<Slot>,
    queue: u32,
}

impl Model {
    fn handle(&self, index: usize) -> SlotHandle {
        SlotHandle::from_bits(u32::from(self.slots[index].generation) << 16 | index as u32).unwrap()
    }

    fn held(&self) -> Vec<usize> {
        (0..self.slots.len()).filter(|&index| self.slots[index].held.is_some()).collect()
    }

    fn alloc(&mut self, group: u8) -> Option<SlotHandle> {
        let index = self.slots.iter().position(|slot| slot.held.is_none())?;
        let slot = &mut self.slots[index];
        slot.generation += 1;
        slot.held = Some(Held { group, pasid: None, mapping: None, masked: true });
        Some(self.handle(index))
    }

    fn free_group(&mut self, group: u8) -> u64 {
        let of_group = self.slots.iter_mut().filter(|slot| slot.held.as_ref().is_some_and(|held| held.group == group));
        of_group.map(|slot| slot.held = None).count() as u64
    }

    fn map(&mut self, index: usize, request: (Target, u64), unmask: bool) -> bool {
        let Some(held) = &mut self.slots[index].held else { return false };
        if held.mapping.is_some_and(|mapping| mapping != request) {
            return false;
        }
        held.mapping = Some(request);
        held.masked &= !unmask;
        true
    }

    fn info(&self, index: usize) -> Option<SlotInfo> {
        let Held { group, pasid, mapping, masked } = self.slots[index].held.clone()?;
        let pair = MessagePair { address: 0xfee0_0018, data: self.handle(index).bits() };
        let mapping = mapping.map(|(target, cookie)| hcall_abi::info::Mapping { target, cookie, pair });
        Some(SlotInfo { mapping, masked, pending: false, limited: false, group: group.into(), pasid })
    }
}

fn bench() -> Bench {
    let service = Service::new(Machine::new(64, 64));
    let device = DeviceSpec { ims: Some(store(0x104_0000, SLOTS.into())), ..function(1) };
    for store in [device.msix, device.ims].into_iter().flatten() {
        service.ports().plug(store, device.requester, GuestId(1), &PROCESSORS);
    }
    let apic_ids = PROCESSORS.to_vec();
    let spec = GuestSpec { guest: GuestId(1), apic_ids, hypercalls: true, devices: vec![device] };
    let domain = service.attach(spec).unwrap();
    domain.enable(hcall_abi::VERSION_MINOR);
    Bench { service, domain }
}

/// What a call's registers are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Unused,
    Store,
    Device,
    Handle,
    Target,
    Group,
    Count,
    Page { size: u64, align: u64 },
    Other,
}

/// What each register of a call is for.
fn uses(call: Call) -> [Use; 4] {
    use self::Use::*;
    let page = |size, align| Page { size, align };
    match call {
        Call::Nop => [Unused; 4],
        Call::Discover | Call::Enable | Call::SetPvEoi => [Other, Unused, Unused, Unused],
        Call::QueryDevice => [Store, page(64, 1), Unused, Unused],
        Call::Alloc => [Store, Group, Unused, Unused],
        Call::Free | Call::Unmap | Call::Mask | Call::Unmask => [Store, Handle, Unused, Unused],
        Call::Map => [Store, page(16, 16), Count, Other],
        Call::SetAffinity => [Store, Handle, Target, Unused],
        Call::AllocMany => [Store, page(4, 4), Count, Group],
        Call::FreeMany => [Store, page(4, 4), Count, Unused],
        Call::FreeGroup => [Store, Group, Unused, Unused],
        Call::SetAux => [Store, Handle, Other, Unused],
        Call::QuerySlot => [Store, Handle, page(64, 1), Unused],
        Call::ReadFaults => [page(32, 32), Count, Unused, Unused],
        Call::OpenQueue => [Device, Count, Unused, Unused],
    }
}

/// The registers of a call that is right, and the page; the slot that it means.
fn right(model: &Model, step: &Step) -> Option<([u64; 4], Box<[u8; 4096]>, usize)> {
    let held = model.held();
    let index = held.get(step.picks[0] % held.len().max(1)).copied();
    let mut page = Box::new([0; 4096]);
    let count = u64::from(step.count);
    let target = any_target(step);
    let mut args = uses(step.call).map(|what| match what {
        Use::Store | Use::Device => DEVICE_ARG,
        Use::Handle => index.map_or(0, |index| model.handle(index).bits().into()),
        Use::Target => target.to_register(),
        Use::Group => step.group.into(),
        Use::Count => count,
        Use::Page { .. } => PAGE.as_u64(),
        Use::Unused | Use::Other => 0,
    });
    match step.call {
        Call::Enable => args[0] = 1 << 16 | 1,
        Call::SetPvEoi => args[0] = PAGE.as_u64() | PV_EOI_ENABLE,
        Call::QueryDevice => page[..64].copy_from_slice(&DeviceInfo::request()),
        Call::QuerySlot => page[..64].copy_from_slice(&SlotInfo::request()),
        Call::AllocMany => args[2] = (count + 3) << 32 | count,
        Call::SetAux => args[2] = 1 << 31 | (0x100 + count),
        Call::Map => {
            let handle = model.handle(index?);
            let item = MapRequest { handle, target, unmask: step.unmask, cookie: step.picks[1] as u64 % 2 };
            page[..16].copy_from_slice(&item.to_bytes());
            args[2] = 1;
            args[3] = ItemLayout::V1.0;
        }
        Call::FreeMany => {
            page[..4].copy_from_slice(&model.handle(index?).bits().to_le_bytes());
            args[2] = 1;
        }
        _ => {}
    }
    let needs_slot = uses(step.call).contains(&Use::Handle);
    if needs_slot && index.is_none() { None } else { Some((args, page, index.unwrap_or(0))) }
}

fn any_target(step: &Step) -> Target {
    target(PROCESSORS[step.picks[2] % 3], 0x40 + (step.picks[3] % 4) as u8)
}

/// Makes one thing wrong. The status that this is to have; `None` if it cannot be wrong in this call.
fn spoil(step: &Step, args: &mut [u64; 4]) -> Option<Status> {
    let uses = uses(step.call);
    let find = |request: fn(Use) -> bool| uses.iter().position(|what| request(*what));
    let page = || {
        uses.iter().enumerate().find_map(|(n, what)| match what {
            Use::Page { size, align } => Some((n, *size, *align)),
            _ => None,
        })
    };
    let handle = || find(|what| what == Use::Handle);
    let store = || find(|what| matches!(what, Use::Store | Use::Device));
    let (at, value, status) = match step.wrong {
        Wrong::Nothing | Wrong::UnknownCall => return None,
        Wrong::Unused => (find(|what| what == Use::Unused)?, 1 << (step.picks[3] % 64), Status::InvalidArgument),
        Wrong::ForeignDevice => (store()?, DEVICE_ARG + 8, Status::NoSuchDevice),
        Wrong::DeviceBits => (store()?, 1 << 17 | DEVICE_ARG, Status::InvalidArgument),
        Wrong::HandleBits => (handle()?, args[handle()?] | 1 << 40, Status::InvalidArgument),
        Wrong::StaleHandle => (handle()?, args[handle()?] ^ 0x4000_0000, Status::StaleHandle),
        Wrong::SlotBeyond => (handle()?, 1 << 16 | u64::from(SLOTS), Status::NoSuchSlot),
        Wrong::AddressOutside if step.call == Call::SetPvEoi => (0, OUTSIDE | PV_EOI_ENABLE, Status::BadAddress),
        Wrong::AddressMisaligned if step.call == Call::SetPvEoi => {
            (0, (PAGE.as_u64() + 2) | PV_EOI_ENABLE, Status::BadAddress)
        }
        Wrong::AddressOutside => (page()?.0, OUTSIDE, Status::BadAddress),
        Wrong::AddressMisaligned => {
            let (at, _, align) = page()?;
            (at, if align == 1 { return None } else { PAGE.as_u64() + align / 2 }, Status::BadAddress)
        }
        Wrong::AddressCrosses => {
            let (at, size, align) = page()?;
            // Room for half an item is left: what is not aligned to its size crosses the page's end.
            let count = uses.iter().position(|what| *what == Use::Count);
            if let Some(at) = count {
                args[at] = if step.call == Call::AllocMany { 2 << 32 | 1 } else { 2 };
            }
            let last = 4096 - if count.is_some() { size } else { size / 2 };
            (at, PAGE.as_u64() + last.next_multiple_of(align), Status::CrossesPage)
        }
        Wrong::Range => match step.call {
            Call::Map => (2, [0, 257][step.picks[3] % 2], Status::InvalidArgument),
            Call::AllocMany => {
                let bad = [0, 1, 5 << 32, (HANDLES_MAX + 1) << 32 | 1, 2 << 32 | 3][step.picks[3] % 5];
                (2, bad, Status::InvalidArgument)
            }
            Call::FreeMany => (2, [0, HANDLES_MAX + 1][step.picks[3] % 2], Status::InvalidArgument),
            Call::ReadFaults => (1, [0, 129, u64::MAX][step.picks[3] % 3], Status::InvalidArgument),
            Call::OpenQueue => (1, [0, 4097, 1 << 40][step.picks[3] % 3], Status::InvalidArgument),
            Call::Enable => (0, 2 << 16, Status::Unsupported),
            Call::Discover => (0, 1, Status::NoSuchDevice),
            Call::SetPvEoi => (0, PAGE.as_u64(), Status::InvalidArgument),
            _ => (find(|what| what == Use::Group)?, 256, Status::InvalidArgument),
        },
        Wrong::Layout if step.call == Call::Map => (3, ItemLayout::V1.0 + 1, Status::BadLayout),
        Wrong::Target => (find(|what| what == Use::Target)?, target(2, 0x40).to_register(), Status::BadTarget),
        Wrong::Vector => (find(|what| what == Use::Target)?, 15, Status::BadVector),
        Wrong::TargetBits => (find(|what| what == Use::Target)?, 0x140, Status::InvalidArgument),
        Wrong::Pasid if step.call == Call::SetAux => {
            let (value, status) =
                [(1 << 31 | 0x42, Status::BadPasid), (0x100, Status::InvalidArgument)][step.picks[3] % 2];
            (2, value, status)
        }
        Wrong::Layout | Wrong::Pasid => return None,
    };
    args[at] = value;
    Some(status)
}

/// What the model says of a call that is right.
fn expect(model: &mut Model, step: &Step, index: usize) -> Result<u64, Status> {
    let mapped = |model: &Model| model.slots[index].held.as_ref().is_some_and(|held| held.mapping.is_some());
    let set = |model: &mut Model, change: &dyn Fn(&mut Held)| {
        model.slots[index].held.iter_mut().for_each(change);
        Ok(0)
    };
    match step.call {
        Call::Nop | Call::QueryDevice | Call::QuerySlot | Call::ReadFaults => Ok(0),
        Call::Enable => Ok(1),
        // There is no virtual processor here.
        Call::SetPvEoi => Err(Status::Unsupported),
        Call::Discover => Ok(DEVICE_ARG),
        Call::Alloc => model.alloc(step.group).map(|handle| handle.bits().into()).ok_or(Status::NoFreeSlot),
        Call::AllocMany => {
            let (min, max) = (step.count as usize, step.count as usize + 3);
            let free = model.slots.len() - model.held().len();
            if free < min {
                return Err(Status::NoFreeSlot);
            }
            Ok((0..max.min(free)).filter_map(|_| model.alloc(step.group)).count() as u64)
        }
        Call::Free => {
            model.slots[index].held = None;
            Ok(0)
        }
        Call::FreeMany => {
            model.slots[index].held = None;
            Ok(1)
        }
        Call::FreeGroup => Ok(model.free_group(step.group)),
        Call::Map => Ok(model.map(index, (any_target(step), step.picks[1] as u64 % 2), step.unmask).into()),
        Call::Unmap => set(model, &|held| (held.mapping, held.masked) = (None, true)),
        Call::Mask | Call::Unmask | Call::SetAffinity if !mapped(model) => Err(Status::NotMapped),
        Call::Mask => set(model, &|held| held.masked = true),
        Call::Unmask => set(model, &|held| held.masked = false),
        Call::SetAffinity => set(model, &|held| {
            if let Some((to, _)) = &mut held.mapping {
                *to = any_target(step);
            }
        }),
        Call::SetAux => set(model, &|held| held.pasid = Pasid::new(0x100 + step.count)),
        Call::OpenQueue if model.queue != 0 => Err(Status::Exists),
        Call::OpenQueue => {
            model.queue = step.count;
            Ok(0)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(300), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_call_does_what_the_documentation_says_and_what_is_wrong_changes_nothing(
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        let bench = bench();
        let mut model = Model { slots: vec![Slot::default(); SLOTS.into()], queue: 0 };
        for step in &steps {
            let Some((mut args, mut page, index)) = right(&model, step) else { continue };
            if step.wrong == Wrong::UnknownCall {
                let memory = OnePage { bytes: RefCell::new(*page), machine: bench.machine() };
                let number = u64::from(CALL_BASE) + Call::ALL.len() as u64 + step.picks[0] as u64;
                let rax = bench.service.hypercall(&bench.domain, number, args, &memory);
                prop_assert_eq!(result_from_rax(rax), Err(Status::UnknownCall));
                continue;
            }
            let free = model.slots.len() - model.held().len();
            if (step.call, step.wrong) == (Call::AllocMany, Wrong::AddressOutside) && free < step.count as usize {
                // Two things would be wrong.
                continue;
            }
            let before = bench.machine().snapshot();
            if let Some(status) = spoil(step, &mut args) {
                prop_assert_eq!(bench.call_with(step.call, args, &mut page), Err(status), "{:?} {:x?}", step, args);
                prop_assert!(bench.machine().snapshot() == before, "{:?} has changed something", step);
            } else {
                let expected = expect(&mut model, step, index);
                prop_assert_eq!(bench.call_with(step.call, args, &mut page), expected, "{:?} {:x?}", step, args);
                if expected.is_err() {
                    prop_assert!(bench.machine().snapshot() == before, "{:?} has changed something", step);
                }
            }
            for (index, slot) in model.slots.iter().enumerate() {
                let held = slot.held.as_ref();
                let fires = held.filter(|held| !held.masked).and_then(|held| held.mapping).map(|(target, _)| target);
                prop_assert_eq!(bench.fire(index as u16), fires, "slot {} after {:?}", index, step);
                if slot.generation != 0 {
                    let info = bench.info(model.handle(index));
                    prop_assert_eq!(info, model.info(index).ok_or(Status::StaleHandle), "slot {} after {:?}", index, step);
                }
            }
        }
        bench.service.detach(&bench.domain);
        prop_assert_eq!(bench.machine().used(), (0, 0), "all came back");
    }
}
