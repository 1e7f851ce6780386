//! Random writes and calls against an oracle that knows what the guest should see and where interrupts should come out. The
//! machine checks the invariants at every single operation.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Slots that are played with: few, so that things meet.
const SLOTS: u16 = 4;

#[derive(Clone, Debug)]
enum Step {
    Write {
        offset: u64,
        width: u8,
        value: u64,
    },
    /// A whole message in one of the likely forms.
    Program {
        slot: u16,
        address: u32,
        data: u32,
        ctrl: u32,
    },
    /// The slot's own pair.
    Pair {
        slot: u16,
        ctrl: u32,
    },
    Alloc,
    Map(Vec<(usize, Target, bool, u64)>),
    OnSlot(Call, usize),
    Affinity(usize, Target),
    Reset,
    /// The function as a whole.
    FunctionReset,
    /// The next calls fail.
    Fail {
        k: usize,
        count: usize,
    },
}

fn any_target() -> impl Strategy<Value = Target> {
    (
        prop_oneof![4 => prop::sample::select(&PROCESSORS[..]), 1 => 0..8u32],
        prop_oneof![4 => 0x40..0x44u8, 1 => 16..=255u8],
    )
        .prop_map(|(apic_id, vector)| target(apic_id, vector))
}

fn any_message() -> impl Strategy<Value = (u32, u32)> {
    let address = prop_oneof![
        6 => prop::sample::select(&PROCESSORS[..]).prop_map(|id| ADDRESS | id << 12),
        1 => (0..=255u32, 0..32u32).prop_map(|(id, low)| ADDRESS | id << 12 | low),
        1 => any::<u32>(),
        1 => Just(0),
    ];
    let data = prop_oneof![6 => 0x40..0x44u32, 2 => 0..0x1_0000u32, 1 => any::<u32>(), 1 => Just(0)];
    (address, data)
}

fn any_ctrl() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(0u32), 2 => Just(1), 1 => any::<u32>()]
}

fn any_step(failures: u32) -> impl Strategy<Value = Step> {
    let value = prop_oneof![
        any::<u64>(),
        any_message().prop_map(|(address, _)| address.into()),
        (any_message(), any_ctrl()).prop_map(|((_, data), ctrl)| u64::from(ctrl) << 32 | u64::from(data)),
        Just(0),
    ];
    let call = prop::sample::select(vec![Call::Free, Call::Unmap, Call::Mask, Call::Unmask]);
    let item = (0..8usize, any_target(), any::<bool>(), 0..2u64);
    prop_oneof![
        4 => (0..u64::from(SLOTS) * 16, 0..=9u8, value).prop_map(|(offset, width, value)| Step::Write { offset, width, value }),
        4 => (0..SLOTS, 0..4u64, any_message(), any_ctrl()).prop_map(|(slot, _, (address, data), ctrl)| Step::Program { slot, address, data, ctrl }),
        2 => (0..SLOTS, any_ctrl()).prop_map(|(slot, ctrl)| Step::Pair { slot, ctrl }),
        3 => Just(Step::Alloc),
        3 => prop::collection::vec(item, 1..6).prop_map(Step::Map),
        5 => (call, 0..8usize).prop_map(|(call, handle)| Step::OnSlot(call, handle)),
        2 => (0..8usize, any_target()).prop_map(|(handle, target)| Step::Affinity(handle, target)),
        1 => Just(Step::Reset),
        1 => Just(Step::FunctionReset),
        failures => (0..12usize, prop_oneof![1..4usize, Just(50)]).prop_map(|(k, count)| Step::Fail { k, count }),
    ]
}

/// What a slot should be.
#[derive(Clone, Debug)]
struct Expected {
    bytes: [u8; 16],
    /// Its handle, if it is allocated, and what it is mapped to.
    held: Option<(SlotHandle, Option<(Target, u64)>)>,
}

impl Default for Expected {
    fn default() -> Self {
        let mut bytes = [0; 16];
        bytes[12] = 1;
        Self { bytes, held: None }
    }
}

impl Expected {
    fn put(&mut self, address: u32, data: u32) {
        self.bytes[0..4].copy_from_slice(&address.to_le_bytes());
        self.bytes[4..8].fill(0);
        self.bytes[8..12].copy_from_slice(&data.to_le_bytes());
    }

    fn dword(&self, n: usize) -> u32 {
        u32::from_le_bytes(self.bytes[n * 4..n * 4 + 4].try_into().unwrap())
    }

    fn message(&self) -> (u32, u32, u32) {
        (self.dword(0), self.dword(1), self.dword(2))
    }
}

/// What should be.
struct Oracle {
    slots: Vec<Expected>,
    /// Every message that is right, and where it goes.
    right: HashMap<(u32, u32, u32), Target>,
    /// Every handle that ever was.
    handles: Vec<SlotHandle>,
}

impl Oracle {
    fn new() -> Self {
        let mut right = HashMap::new();
        for apic_id in PROCESSORS {
            for vector in 16..=255u8 {
                for form in 0..16u32 {
                    let (hint, level, lowest, logical) = (form & 1, form >> 1 & 1, form >> 2 & 1, form >> 3 & 1);
                    let destination = if logical == 1 { 1 << apic_id } else { apic_id };
                    let address = 0xfee0_0000 + destination * 0x1000 + hint * 8 + logical * 4;
                    let data = u32::from(vector) + lowest * 0x100 + level * 0x4000;
                    right.insert((address, 0, data), target(apic_id, vector));
                }
            }
        }
        Self { slots: vec![Expected::default(); usize::from(SLOTS)], right, handles: Vec::new() }
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) {
        if !(1..=8).contains(&width) {
            return;
        }
        for (n, byte) in (0..width).zip(value.to_le_bytes()) {
            let at = (offset + u64::from(n)) as usize;
            let Some(slot) = self.slots.get_mut(at / 16) else { continue };
            match at % 16 {
                12 => slot.bytes[12] = byte & 1,
                13..16 => {}
                place => slot.bytes[place] = byte,
            }
        }
    }

    fn held(&mut self, handle: SlotHandle) -> Option<&mut Expected> {
        let slot = self.slots.get_mut(usize::from(handle.index()))?;
        (slot.held?.0 == handle).then_some(slot)
    }

    /// What a slot's interrupt does.
    fn fires(&self, slot: &Expected) -> Option<Target> {
        if slot.bytes[12] == 1 {
            return None;
        }
        match slot.held {
            None => self.right.get(&slot.message()).copied(),
            Some((handle, Some((target, _)))) if slot.message() == (0xfee0_0018, 0, handle.bits()) => Some(target),
            Some(_) => None,
        }
    }

    fn map(&mut self, handle: SlotHandle, target: Target, unmask: bool, cookie: u64) -> bool {
        let right = PROCESSORS.contains(&target.apic_id);
        let Some(slot) = self.held(handle) else { return false };
        let fresh = match slot.held {
            Some((_, Some(mapped))) if mapped != (target, cookie) => return false,
            Some((_, mapped)) => mapped.is_none(),
            None => return false,
        };
        if !right {
            return false;
        }
        slot.held = Some((handle, Some((target, cookie))));
        slot.put(0xfee0_0018, handle.bits());
        if unmask {
            slot.bytes[12] = 0;
        } else if fresh {
            slot.bytes[12] = 1;
        }
        true
    }

    fn on_slot(&mut self, call: Call, handle: SlotHandle) -> bool {
        let Some(slot) = self.held(handle) else { return false };
        let mapped = slot.held.is_some_and(|(_, mapped)| mapped.is_some());
        match call {
            Call::Free => *slot = Expected::default(),
            Call::Unmap if mapped => *slot = Expected { held: Some((handle, None)), ..Expected::default() },
            Call::Unmap => {}
            Call::Mask if mapped => slot.bytes[12] = 1,
            Call::Unmask if mapped && slot.message() == (0xfee0_0018, 0, handle.bits()) => slot.bytes[12] = 0,
            _ => return false,
        }
        true
    }

    fn affinity(&mut self, handle: SlotHandle, target: Target) -> bool {
        let Some(slot) = self.held(handle) else { return false };
        let Some((_, Some(mapped))) = &mut slot.held else { return false };
        mapped.0 = if PROCESSORS.contains(&target.apic_id) { target } else { return false };
        true
    }
}

/// A handle of those that ever were, or one that never was.
fn pick(oracle: &Oracle, n: usize) -> SlotHandle {
    let count = oracle.handles.len();
    // The newest are the most interesting.
    if n < count { oracle.handles[count - 1 - n] } else { SlotHandle::from_bits(0x7777_0000 | n as u32).unwrap() }
}

/// Does a step on both; whether each succeeded must agree.
fn play(bench: &Bench, oracle: &mut Oracle, step: &Step) -> bool {
    match *step {
        Step::Write { offset, width, value } => {
            let _ = bench.write(StoreName::Ims, offset, width, value);
            oracle.write(offset, width, value);
            true
        }
        Step::Program { slot, address, data, ctrl } => program(bench, oracle, slot, address, data, ctrl),
        Step::Pair { slot, ctrl } => {
            let data = oracle.slots[usize::from(slot)].held.map_or(0x1_0000, |(handle, _)| handle.bits());
            program(bench, oracle, slot, 0xfee0_0018, data, ctrl)
        }
        Step::Alloc => {
            let Ok(handle) = bench.call(Call::Alloc, [DEVICE.0.into(), 0, 0, 0]) else { return false };
            let handle = SlotHandle::from_register(handle).unwrap();
            assert!(!oracle.handles.contains(&handle), "a handle is never given twice");
            oracle.handles.push(handle);
            if let Some(slot) = oracle.slots.get_mut(usize::from(handle.index())) {
                assert!(slot.held.is_none() && slot.bytes == Expected::default().bytes, "it was free");
                slot.held = Some((handle, None));
            } else {
                // Beyond those that are played with: give it back.
                oracle.handles.pop();
                bench.on(Call::Free, handle).unwrap();
            }
            true
        }
        Step::Map(ref items) => {
            let request = |&(n, target, unmask, cookie)| MapRequest { handle: pick(oracle, n), target, unmask, cookie };
            let requests: Vec<_> = items.iter().map(request).collect();
            let (done, replies) = bench.map(&requests);
            let expected: Vec<_> =
                requests.iter().map(|r| oracle.map(r.handle, r.target, r.unmask, r.cookie)).collect();
            replies.iter().map(Result::is_ok).collect::<Vec<_>>() == expected && done.is_ok()
        }
        Step::OnSlot(call, n) => {
            let handle = pick(oracle, n);
            bench.on(call, handle).is_ok() == oracle.on_slot(call, handle)
        }
        Step::Affinity(n, target) => {
            let handle = pick(oracle, n);
            bench.retarget(handle, target).is_ok() == oracle.affinity(handle, target)
        }
        Step::Reset => {
            bench.machine().reset(&bench.spec(StoreName::Ims));
            oracle.slots.fill(Expected::default());
            bench.service.device_reset(&bench.domain, DEVICE).is_ok()
        }
        Step::FunctionReset => {
            // Masked while the function can still be written; then it forgets all of it, and answers again.
            let reset = bench.service.function_reset(&bench.domain, DEVICE).is_ok();
            oracle.slots.fill(Expected::default());
            let silent = (0..SLOTS).all(|slot| bench.fire(slot).is_none());
            [StoreName::Ims, StoreName::Msix].iter().for_each(|name| bench.machine().reset(&bench.spec(*name)));
            reset && silent && bench.service.function_ready(&bench.domain, DEVICE).is_ok()
        }
        Step::Fail { k, count } => {
            bench.machine().fail(k, count);
            true
        }
    }
}

fn program(bench: &Bench, oracle: &mut Oracle, slot: u16, address: u32, data: u32, ctrl: u32) -> bool {
    let base = u64::from(slot) * 16;
    for (offset, value) in [(0, address.into()), (8, u64::from(ctrl) << 32 | u64::from(data))] {
        let _ = bench.write(StoreName::Ims, base + offset, 8, value);
        oracle.write(base + offset, 8, value);
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(200), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn interrupts_come_out_where_the_oracle_says(steps in prop::collection::vec(any_step(0), 1..60)) {
        let bench = Bench::new();
        let mut oracle = Oracle::new();
        for step in &steps {
            prop_assert!(play(&bench, &mut oracle, step), "{step:?}");
            for (index, slot) in (0..).zip(&oracle.slots) {
                prop_assert_eq!(bench.fire(index), oracle.fires(slot), "slot {} after {:?}", index, step);
                let seen = [slot.dword(0), slot.dword(1), slot.dword(2), slot.dword(3)];
                prop_assert_eq!(bench.seen(index), seen, "slot {} after {:?}", index, step);
            }
        }
        bench.service.detach(&bench.domain);
        prop_assert_eq!(bench.machine().used(), (0, 0), "invariant 7");
    }

    #[test]
    fn nothing_is_unsafe_or_lost_when_ports_fail(steps in prop::collection::vec(any_step(6), 1..60)) {
        // Few entries and vectors, so that they run out as well.
        let bench = Bench::with(3, 3);
        let mut oracle = Oracle::new();
        for step in &steps {
            play(&bench, &mut oracle, step);
            // Calls that failed leave the oracle wrong: only handles and the machine's own checks count here.
            oracle.slots.fill(Expected::default());
        }
        bench.machine().mend();
        bench.service.detach(&bench.domain);
        prop_assert_eq!(bench.machine().used(), (0, 0), "invariant 7");
        prop_assert_eq!(bench.service.counters().quarantined, 0);
    }
}
