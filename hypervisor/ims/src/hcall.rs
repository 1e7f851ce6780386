//! The service's hypercalls: which call a number is, which arguments are right, and what it answers. `hcall_abi` has the contract. A call that
//! the guest got wrong changes nothing.

use hcall_abi::{
    Call, DeviceId, DeviceInfo, FaultRecord, Pasid, SlotHandle, SlotInfo, Status, StoreId, StoreKind, Target,
    VERSION_MAJOR, VERSION_MINOR,
    call::{FAULTS_MAX, PV_EOI_ENABLE, QUEUE_SLOTS_MAX},
    cpuid::{CALL_BASE, Features, Limits},
    rax_from_result,
};

use super::{
    batch, batch_buffer, bulk,
    counters::count,
    device::{Bank, Device},
    domain::Domain,
    ports::{CallingGuest, Field, Ports},
    service::Service,
    slot::{Slot, State},
    spec::{MOST_IMS_SLOTS, StoreName},
    store_access::StoreAccess,
};
use crate::addr::{Gpa, PAGE_SIZE};

/// Most items in a batch.
pub const BATCH_LIMIT: u32 = batch_buffer::BATCH_LIMIT as u32;

/// The features that the service offers by itself. The platform adds its own.
pub const FEATURES: Features = Features::ARRAY_STORE
    .union(Features::BATCH)
    .union(Features::RETARGET)
    .union(Features::ENABLE)
    .union(Features::FEWER_GRANT)
    .union(Features::GROUP)
    .union(Features::QUEUE_STORE)
    .union(Features::QUERY_SLOT)
    .union(Features::AUX_PASID)
    .union(Features::FAULT_LOG);

/// The limits of these features.
pub const LIMITS: Limits = Limits { slots_per_device: MOST_IMS_SLOTS, batch: BATCH_LIMIT, groups: 256 };

/// RBX, RCX, RDX and RSI. Arguments that a call does not use must be 0.
type Args = [u64; 4];

impl<P: Ports> Service<P> {
    /// Answers a VMCALL. `number` is RAX, `args` are RBX, RCX, RDX and RSI. The result goes to RAX. The caller of this function has checked
    /// that 64-bit code at CPL 0 made the call.
    ///
    /// Calls that drivers make while they work are answered in this function, as a part of the exit path; all others are answered
    /// elsewhere.
    #[inline(always)]
    pub fn hypercall(&self, domain: &Domain, number: u64, args: Args, memory: &dyn CallingGuest) -> u64 {
        const NOP: u64 = Call::Nop.number(CALL_BASE);
        const MASK: u64 = Call::Mask.number(CALL_BASE);
        const UNMASK: u64 = Call::Unmask.number(CALL_BASE);
        count(&domain.counts.hypercalls);
        let result = match number {
            NOP if domain.is_enabled() => nop(args),
            MASK if domain.is_enabled() => self.on_slot(domain, args, 2, Self::mask),
            UNMASK if domain.is_enabled() => self.on_slot(domain, args, 2, Self::unmask),
            _ => {
                // One by one, so that they need not be in memory before.
                let [rbx, rcx, rdx, rsi] = args;
                self.other_call(domain, memory, number, rbx, rcx, rdx, rsi)
            }
        };
        rax_from_result(StoreAccess::<P>::counted(&domain.counts.refused, result))
    }

    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "they are registers")]
    fn other_call(
        &self,
        domain: &Domain,
        memory: &dyn CallingGuest,
        number: u64,
        rbx: u64,
        rcx: u64,
        rdx: u64,
        rsi: u64,
    ) -> Result<u64, Status> {
        let args = [rbx, rcx, rdx, rsi];
        let call = match Call::from_number(number, CALL_BASE) {
            Some(call) if domain.is_enabled() => call,
            call => return before_enabling(domain, call, args, memory),
        };
        match call {
            Call::Nop => nop(args),
            Call::Mask => self.on_slot(domain, args, 2, Self::mask),
            Call::Unmask => self.on_slot(domain, args, 2, Self::unmask),
            Call::Discover => discover(domain, args),
            Call::QueryDevice => self.query(domain, args, memory),
            Call::Enable => enable(domain, args, memory),
            Call::Alloc => self.alloc(domain, args),
            Call::AllocMany => self.alloc_many(domain, args, memory),
            Call::FreeMany => self.free_many(domain, args, memory),
            Call::FreeGroup => self.free_group(domain, args),
            Call::QuerySlot => self.query_slot(domain, args, memory),
            Call::OpenQueue => open_queue(domain, args),
            Call::SetPvEoi => set_pv_eoi(args, memory),
            Call::ReadFaults => read_faults(domain, args, memory),
            Call::Map => self.map(domain, args, memory),
            Call::Free => self.on_slot(domain, args, 2, Self::free),
            Call::Unmap => self.on_slot(domain, args, 2, Self::unmap),
            Call::SetAux => {
                let pasid = Pasid::from_register(args[2])?;
                self.on_slot(domain, args, 3, |access, _, index, slot| {
                    watched(access.name)?;
                    access.set_pasid(index, slot, pasid)
                })
            }
            Call::SetAffinity => {
                let target = Target::from_register(args[2])?;
                self.on_slot(domain, args, 3, |access, _, index, slot| {
                    let target = domain.own(target)?;
                    mapped(slot)?;
                    access.retarget(index, slot, target)
                })
            }
        }
    }

    /// Calls `what` with the slots of a device that has an interrupt message store.
    #[inline]
    fn on_device<T>(
        &self,
        domain: &Domain,
        device: u64,
        what: impl FnOnce(&StoreAccess<P>, &Bank) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let StoreId { device, queue } = StoreId::from_register(device)?;
        let device = domain.device(device)?;
        let name = if queue { StoreName::Queue } else { StoreName::Ims };
        let access = StoreAccess::new(self, device, name)?;
        let slots = device.slots()?;
        access.commit(what(&access, slots.bank(name)))
    }

    /// Calls `what` with the slot that RBX (device) and RCX (handle) name, under the slot's lock. The call uses the first `used` arguments.
    #[inline(always)]
    fn on_slot(
        &self,
        domain: &Domain,
        args: Args,
        used: usize,
        what: impl FnOnce(&StoreAccess<P>, &Bank, u16, &mut Slot) -> Result<(), Status>,
    ) -> Result<u64, Status> {
        unused(args.get(used..).unwrap_or_default())?;
        let handle = SlotHandle::from_register(args[1])?;
        self.on_device(domain, args[0], |access, bank| {
            let slot = &mut *bank.lock_allocated(handle)?;
            what(access, bank, handle.index(), slot).map(|()| 0)
        })
    }

    fn query(&self, domain: &Domain, args: Args, memory: &dyn CallingGuest) -> Result<u64, Status> {
        unused(&args[2..])?;
        let at = Gpa::new(args[1]);
        self.on_device(domain, args[0], |access, bank| {
            if at.page_offset() + DeviceInfo::SIZE as u64 > PAGE_SIZE {
                return Err(Status::CrossesPage);
            }
            let mut bytes = [0; DeviceInfo::SIZE];
            memory.read(at, &mut bytes)?;
            DeviceInfo::check_request(&bytes)?;
            let info = DeviceInfo {
                kind: if access.name == StoreName::Queue { StoreKind::Queue } else { StoreKind::Array },
                slots: bank.slots.len() as u32,
                free: bank.free.lock().count(),
                bar: access.store.bar,
                offset: access.store.offset,
                device: access.device.spec.id,
                pasids: access.device.spec.pasids,
            };
            memory.write(at, &info.to_bytes()).map(|()| 0)
        })
    }

    fn alloc(&self, domain: &Domain, args: Args) -> Result<u64, Status> {
        unused(&args[2..])?;
        let group = group(args[1])?;
        self.on_device(domain, args[0], |_, bank| Ok(bank.allocate(group)?.bits().into()))
    }

    #[inline(never)]
    fn alloc_many(
        &self,
        domain: &Domain,
        [device, at, count, group_id]: Args,
        memory: &dyn CallingGuest,
    ) -> Result<u64, Status> {
        let (at, group) = (Gpa::new(at), group(group_id)?);
        let range = [count as u32, (count >> 32) as u32];
        self.on_device(domain, device, |access, bank| {
            access.device.with_batch(|batch| bulk::alloc_many(bank, memory, at, range, group, batch.handles()))
        })
    }

    #[inline(never)]
    fn free_many(&self, domain: &Domain, args: Args, memory: &dyn CallingGuest) -> Result<u64, Status> {
        unused(&args[3..])?;
        let [device, at, number, _] = args;
        self.on_device(domain, device, |access, bank| {
            access
                .device
                .with_batch(|batch| bulk::free_many(access, bank, memory, Gpa::new(at), number, batch.handles()))
        })
    }

    #[inline(never)]
    fn free_group(&self, domain: &Domain, args: Args) -> Result<u64, Status> {
        unused(&args[2..])?;
        let group = group(args[1])?;
        self.on_device(domain, args[0], |access, bank| Ok(bulk::free_group(access, bank, group)))
    }

    #[inline(never)]
    fn query_slot(&self, domain: &Domain, args: Args, memory: &dyn CallingGuest) -> Result<u64, Status> {
        unused(&args[3..])?;
        let (handle, at) = (SlotHandle::from_register(args[1])?, Gpa::new(args[2]));
        self.on_device(domain, args[0], |access, bank| {
            let mut bytes = [0; SlotInfo::SIZE];
            if at.page_offset() + bytes.len() as u64 > PAGE_SIZE {
                return Err(Status::CrossesPage);
            }
            memory.read(at, &mut bytes)?;
            SlotInfo::check_request(&bytes)?;
            let info = {
                let slot = &mut *bank.lock_allocated(handle)?;
                access.info(handle.index(), slot)
            };
            memory.write(at, &info.to_bytes()).map(|()| 0)
        })
    }

    fn map(
        &self,
        domain: &Domain,
        [device, at, number, layout]: Args,
        memory: &dyn CallingGuest,
    ) -> Result<u64, Status> {
        let at = Gpa::new(at);
        let number = batch::check(at, number, layout)?;
        self.admit(domain.guest)?;
        self.on_device(domain, device, |access, bank| {
            access.device.with_batch(|batch| batch.map(domain, access, bank, memory, at, number))
        })
    }

    fn free(access: &StoreAccess<P>, bank: &Bank, index: u16, slot: &mut Slot) -> Result<(), Status> {
        not_being_mapped(slot)?;
        access.unbind(index, slot)?;
        access.vacate(bank, index, slot);
        Ok(())
    }

    fn unmap(access: &StoreAccess<P>, _: &Bank, index: u16, slot: &mut Slot) -> Result<(), Status> {
        not_being_mapped(slot)?;
        if slot.state == State::Mapped {
            access.unbind(index, slot)?;
            slot.unmap();
            access.show_all(index, slot);
        }
        Ok(())
    }

    fn mask(access: &StoreAccess<P>, _: &Bank, index: u16, slot: &mut Slot) -> Result<(), Status> {
        mapped(slot)?;
        watched(access.name)?;
        access.mask(index, slot)?;
        slot.masked = true;
        access.show(index, slot, Field::Control);
        Ok(())
    }

    /// Unmasks a slot. A slot into which the guest wrote anything but its pair stays masked until it is mapped again.
    fn unmask(access: &StoreAccess<P>, _: &Bank, index: u16, slot: &mut Slot) -> Result<(), Status> {
        mapped(slot)?;
        watched(access.name)?;
        if !slot.holds_pair() {
            return Err(Status::InvalidArgument);
        }
        access.unmask(index, slot)?;
        slot.masked = false;
        access.show(index, slot, Field::Control);
        Ok(())
    }
}

/// Answers an unknown call, or a call of a guest that has not enabled the interface yet.
#[cold]
fn before_enabling(domain: &Domain, call: Option<Call>, args: Args, memory: &dyn CallingGuest) -> Result<u64, Status> {
    match call.filter(|_| domain.offers_calls) {
        None => Err(Status::UnknownCall),
        Some(Call::Nop) => nop(args),
        Some(Call::Enable) => enable(domain, args, memory),
        Some(_) => Err(Status::NotEnabled),
    }
}

fn nop(args: Args) -> Result<u64, Status> {
    unused(&args).map(|()| 0)
}

/// Enables the interface for the guest.
fn enable(domain: &Domain, args: Args, memory: &dyn CallingGuest) -> Result<u64, Status> {
    unused(&args[1..])?;
    let version = u32::try_from(args[0]).map_err(|_| Status::InvalidArgument)?;
    if version >> 16 != u32::from(VERSION_MAJOR) {
        return Err(Status::Unsupported);
    }
    domain.enable(version as u16);
    memory.reveal_stores();
    Ok(u64::from(VERSION_MINOR).min(version as u16 as u64))
}

fn open_queue(domain: &Domain, args: Args) -> Result<u64, Status> {
    unused(&args[2..])?;
    let device = domain.device(DeviceId::from_register(args[0])?)?;
    let slots = u32::try_from(args[1]).ok().filter(|slots| (1..=QUEUE_SLOTS_MAX).contains(&u64::from(*slots)));
    let slots = slots.ok_or(Status::InvalidArgument)?;
    if device.spec.shares_requester {
        return Err(Status::NotIsolated);
    }
    device.exclusively(|all| {
        if !all.attached {
            return Err(Status::NoSuchDevice);
        }
        if !all.queue.slots.is_empty() {
            return Err(Status::Exists);
        }
        all.queue = Bank::try_new(slots)?;
        Ok(0)
    })
}

fn set_pv_eoi(args: Args, memory: &dyn CallingGuest) -> Result<u64, Status> {
    unused(&args[1..])?;
    let at = match args[0] {
        0 => None,
        word if word & PV_EOI_ENABLE == 0 => return Err(Status::InvalidArgument),
        word => Some(Gpa::new(word & !PV_EOI_ENABLE)),
    };
    if let Some(at) = at {
        let inside = at.is_aligned(4) && memory.read(at, &mut [0; 4]).is_ok();
        inside.then_some(()).ok_or(Status::BadAddress)?;
    }
    memory.set_pv_eoi(at).map(|()| 0)
}

/// Refuses slots in the guest's own memory, which the guest masks by itself.
fn watched(name: StoreName) -> Result<(), Status> {
    if name == StoreName::Queue { Err(Status::Unsupported) } else { Ok(()) }
}

#[inline(never)]
fn read_faults(domain: &Domain, args: Args, memory: &dyn CallingGuest) -> Result<u64, Status> {
    unused(&args[2..])?;
    let (at, most) = (Gpa::new(args[0]), args[1]);
    if !(1..=FAULTS_MAX).contains(&most) {
        return Err(Status::InvalidArgument);
    }
    if !at.is_aligned(FaultRecord::SIZE as u64) {
        return Err(Status::BadAddress);
    }
    if at.page_offset() + most * FaultRecord::SIZE as u64 > PAGE_SIZE {
        return Err(Status::CrossesPage);
    }
    // An address that is wrong is so whether there are faults or not. All of the room is in the page where it begins.
    memory.read(at, &mut [0; FaultRecord::SIZE])?;
    let count = domain.faults.take(most as usize, |records| {
        let mut to = at;
        for record in records {
            memory.write(to, &record.to_bytes())?;
            to = to.checked_add(FaultRecord::SIZE as u64).ok_or(Status::BadAddress)?;
        }
        Ok(())
    })?;
    Ok(count as u64)
}

fn group(value: u64) -> Result<u8, Status> {
    u8::try_from(value).map_err(|_| Status::InvalidArgument)
}

fn mapped(slot: &Slot) -> Result<(), Status> {
    if slot.state == State::Mapped { Ok(()) } else { Err(Status::NotMapped) }
}

/// Refuses a slot that another virtual processor's call is mapping. The slot is not mapped yet, and the other call still needs it.
fn not_being_mapped(slot: &Slot) -> Result<(), Status> {
    if slot.state == State::Mapping { Err(Status::NotMapped) } else { Ok(()) }
}

fn unused(args: &[u64]) -> Result<(), Status> {
    if args.iter().all(|&arg| arg == 0) { Ok(()) } else { Err(Status::InvalidArgument) }
}

fn discover(domain: &Domain, args: Args) -> Result<u64, Status> {
    unused(&args[1..])?;
    let has_store = |device: &&alloc::sync::Arc<Device>| device.spec.ims.is_some();
    let n = usize::try_from(args[0]).map_err(|_| Status::InvalidArgument)?;
    let device = domain.devices.iter().filter(has_store).nth(n).ok_or(Status::NoSuchDevice)?;
    Ok(device.spec.id.0.into())
}
