//! What the hypervisor tells of slots, devices and faults.

use core::ffi::c_void;

use guest_shim::hcall_abi::call::FAULTS_MAX;
use guest_shim::hcall_abi::{DeviceId, DeviceInfo, FaultKind, FaultRecord, FaultStore, Pasid, SlotInfo, StoreKind};

use crate::decide::ImsInterface;
use crate::device::{calls, page};
use crate::domain::{ImsDomain, Open, on_slot};
use crate::status::{code, result};

/// Store: slots of 16 bytes in device memory.
pub const IMS_STORE_ARRAY: u16 = 1;
/// Store: beside the work queue, in system memory.
pub const IMS_STORE_QUEUE: u16 = 2;

/// What is known of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImsDeviceInfo {
    /// Slots in its store.
    pub slots: u32,
    /// Slots that can still be taken.
    pub free: u32,
    /// The BAR that holds the store.
    pub bar: u32,
    /// Offset of the store in that BAR, in bytes.
    pub offset: u32,
    /// The first PASID that the guest owns for the device; negative if it owns none.
    pub first_pasid: i32,
    /// The last one; negative if it owns none.
    pub last_pasid: i32,
    /// Where the device keeps its messages: `IMS_STORE_…`.
    pub kind: u16,
    /// The device: its requester ID on the guest's own bus.
    pub device: u16,
}

impl From<DeviceInfo> for ImsDeviceInfo {
    fn from(DeviceInfo { kind, slots, free, bar, offset, device, pasids }: DeviceInfo) -> Self {
        let [first_pasid, last_pasid] = [pasids.map(|(first, _)| first), pasids.map(|(_, last)| last)].map(pasid);
        let kind = match kind {
            StoreKind::Array => IMS_STORE_ARRAY,
            StoreKind::Queue => IMS_STORE_QUEUE,
        };
        Self { slots, free, bar, offset, first_pasid, last_pasid, kind, device: device.0 }
    }
}

/// Writes the properties of a device's store to `info`. `page` is a page of ordinary memory at the physical address `page_physical`.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable); nobody else uses the page during the call, and `info` points to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_query_device(
    interface: *const ImsInterface,
    device: u16,
    page: *mut c_void,
    page_physical: u64,
    info: *mut ImsDeviceInfo,
) -> i32 {
    // SAFETY: the caller's promise.
    let (calls, page) = unsafe { (calls(interface), self::page(page, page_physical)) };
    let found = page.and_then(|mut page| calls.query(DeviceId(device), &mut page));
    // SAFETY: the caller's promise.
    result(found.map(|found| unsafe { info.write(found.into()) }))
}

/// Fault: the remapping unit refused a message of the slot; `reason` is its code (VT-d 5.1.4.1).
pub const IMS_FAULT_REMAPPING: u8 = 1;
/// Fault: the slot fired faster than its limit and was masked. Unmasking lets it fire again.
pub const IMS_FAULT_STORM: u8 = 2;
/// Fault: the hypervisor could not carry out a write to the slot and masked it; `reason` is the status. Unmasking tries again.
pub const IMS_FAULT_REFUSED: u8 = 3;

/// The fault's slot is in the MSI-X table.
pub const IMS_FAULT_STORE_MSIX: u8 = 0;
/// The fault's slot is in the store in device memory.
pub const IMS_FAULT_STORE_ARRAY: u8 = 1;
/// The fault's slot is in the store in the guest's memory.
pub const IMS_FAULT_STORE_QUEUE: u8 = 2;

/// A fault of one of the guest's slots.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImsFault {
    /// The driver's own name for the interrupt; 0 of a slot that no call mapped.
    pub cookie: u64,
    /// How many faults were lost before this one, because nobody had read the older ones.
    pub lost: u32,
    /// The device.
    pub device: u16,
    /// The slot's index.
    pub slot: u16,
    /// What went wrong: `IMS_FAULT_…`; 0 for a fault that this library does not know, whose other fields are 0 as well.
    pub kind: u8,
    /// Depends on the kind; else 0.
    pub reason: u8,
    /// The store that the slot is in: `IMS_FAULT_STORE_…`.
    pub store: u8,
    /// Whether the message came from another function than the slot's.
    pub foreign: bool,
}

impl From<FaultRecord> for ImsFault {
    fn from(FaultRecord { cookie, device, slot, store, kind, foreign, lost }: FaultRecord) -> Self {
        let (kind, reason) = match kind {
            FaultKind::Remapping(reason) => (IMS_FAULT_REMAPPING, reason),
            FaultKind::Storm => (IMS_FAULT_STORM, 0),
            // The record holds one byte of it.
            FaultKind::Refused(status) => (IMS_FAULT_REFUSED, status.code() as u8),
        };
        let store = match store {
            FaultStore::Msix => IMS_FAULT_STORE_MSIX,
            FaultStore::Array => IMS_FAULT_STORE_ARRAY,
            FaultStore::Queue => IMS_FAULT_STORE_QUEUE,
        };
        Self { cookie, lost, device: device.0, slot, kind, reason, store, foreign }
    }
}

/// Moves the oldest faults of the guest's slots, of all its devices, to `faults`, which has room for `count`. Returns their number:
/// at most 128 by one call. `page` is a page of ordinary memory at the physical address `page_physical`.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable); nobody else uses the page during the call, and `faults` points to room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_read_faults(
    interface: *const ImsInterface,
    page: *mut c_void,
    page_physical: u64,
    faults: *mut ImsFault,
    count: usize,
) -> i32 {
    // SAFETY: the caller's promise.
    let (calls, page) = unsafe { (calls(interface), self::page(page, page_physical)) };
    let mut records = [None; FAULTS_MAX as usize];
    let records = &mut records[..count.min(FAULTS_MAX as usize)];
    let found = match page.and_then(|mut page| calls.read_faults(records, &mut page)) {
        Ok(found) => found.min(records.len()),
        Err(status) => return code(status),
    };
    for (n, record) in records[..found].iter().enumerate() {
        // SAFETY: the caller's promise: there is room for `count`, and no more are found.
        unsafe { faults.add(n).write(record.map_or_else(ImsFault::default, ImsFault::from)) }
    }
    found as i32
}

/// What is known of a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImsSlotInfo {
    /// The driver's own name for the interrupt; 0 unless the slot is mapped.
    pub cookie: u64,
    /// The message's address, as it lies in the store; 0 unless the slot is mapped.
    pub address: u64,
    /// The message's data; 0 unless the slot is mapped.
    pub data: u32,
    /// x2APIC ID of the processor to which its interrupts go; 0 unless the slot is mapped.
    pub apic_id: u32,
    /// The PASID that it is for; negative for none.
    pub pasid: i32,
    /// The group that it was taken with.
    pub group: u16,
    /// The vector on which its interrupts come; 0 unless the slot is mapped.
    pub vector: u8,
    /// Whether it is mapped.
    pub mapped: bool,
    /// Whether it is masked.
    pub masked: bool,
    /// Whether a message waits for it to be unmasked.
    pub pending: bool,
    /// Whether it was masked because it fired faster than its limit.
    pub limited: bool,
}

/// A PASID, negative for none.
fn pasid(pasid: Option<Pasid>) -> i32 {
    // It has 20 bits.
    pasid.map_or(-1, |pasid| pasid.value() as i32)
}

impl From<SlotInfo> for ImsSlotInfo {
    fn from(SlotInfo { mapping, masked, pending, limited, group, pasid }: SlotInfo) -> Self {
        let pasid = self::pasid(pasid);
        let slot = Self { mapped: mapping.is_some(), masked, pending, limited, group, pasid, ..Self::default() };
        let Some(mapping) = mapping else { return slot };
        Self {
            cookie: mapping.cookie,
            address: mapping.pair.address,
            data: mapping.pair.data,
            apic_id: mapping.target.apic_id,
            vector: mapping.target.vector,
            ..slot
        }
    }
}

/// Writes what is known of a slot to `info`.
///
/// # Safety
/// `domain` is open and used by one processor at a time; `info` points to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_query_slot(domain: *mut ImsDomain, handle: u32, info: *mut ImsSlotInfo) -> i32 {
    let ask = |domain: &mut Open, slot| {
        let found = domain.query(&slot)?;
        // SAFETY: the caller's promise.
        unsafe { info.write(found.into()) };
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { on_slot(domain, handle, ask) }
}

#[cfg(test)]
mod tests {
    use guest_shim::hcall_abi::info::Mapping;
    use guest_shim::hcall_abi::{MessagePair, Status, Target};

    use super::*;

    #[test]
    fn each_field_of_a_device_comes_to_its_place() {
        let info = DeviceInfo {
            kind: StoreKind::Queue,
            slots: 4096,
            free: 4000,
            bar: 2,
            offset: 0x40000,
            device: DeviceId(0x10),
            pasids: Pasid::new(0x100).zip(Pasid::new(0x1ff)),
        };
        let expected = ImsDeviceInfo {
            slots: 4096,
            free: 4000,
            bar: 2,
            offset: 0x40000,
            first_pasid: 0x100,
            last_pasid: 0x1ff,
            kind: IMS_STORE_QUEUE,
            device: 0x10,
        };
        assert_eq!(ImsDeviceInfo::from(info), expected);
        let none = ImsDeviceInfo::from(DeviceInfo { kind: StoreKind::Array, pasids: None, ..info });
        assert_eq!((none.kind, none.first_pasid, none.last_pasid), (IMS_STORE_ARRAY, -1, -1));
    }

    #[test]
    fn each_field_of_a_fault_comes_to_its_place() {
        let record = FaultRecord {
            cookie: 7,
            device: DeviceId(0x10),
            slot: 4095,
            store: FaultStore::Queue,
            kind: FaultKind::Remapping(0x26),
            foreign: true,
            lost: 3,
        };
        let expected =
            ImsFault { cookie: 7, lost: 3, device: 0x10, slot: 4095, kind: 1, reason: 0x26, store: 2, foreign: true };
        assert_eq!(ImsFault::from(record), expected);
        let kind = |kind| {
            let fault = ImsFault::from(FaultRecord { kind, ..record });
            (fault.kind, fault.reason)
        };
        assert_eq!(kind(FaultKind::Storm), (2, 0));
        assert_eq!(kind(FaultKind::Refused(Status::NoFreeVector)), (3, 8));
    }

    #[test]
    fn each_field_of_a_slot_comes_to_its_place() {
        let mapping = Mapping {
            target: Target { apic_id: 7, vector: 0x61 },
            cookie: 9,
            pair: MessagePair { address: 0xfee0_0018, data: 0x1_0001 },
        };
        let mapped = SlotInfo {
            mapping: Some(mapping),
            masked: true,
            pending: false,
            limited: true,
            group: 3,
            pasid: Pasid::new(0xf_ffff),
        };
        let expected = ImsSlotInfo {
            cookie: 9,
            address: 0xfee0_0018,
            data: 0x1_0001,
            apic_id: 7,
            pasid: 0xf_ffff,
            group: 3,
            vector: 0x61,
            mapped: true,
            masked: true,
            pending: false,
            limited: true,
        };
        assert_eq!(ImsSlotInfo::from(mapped), expected);
        let taken = SlotInfo { mapping: None, masked: false, pending: true, limited: false, group: 0, pasid: None };
        let expected = ImsSlotInfo { pasid: -1, pending: true, ..ImsSlotInfo::default() };
        assert_eq!(ImsSlotInfo::from(taken), expected);
    }
}
