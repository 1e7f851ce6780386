//! What the hypervisor tells of slots, devices and faults.

use core::ffi::c_void;

use guest_shim::hcall_abi::{DeviceId, DeviceInfo, Pasid, SlotInfo, StoreKind};

use crate::{ImsDomain, ImsInterface, calls, on_slot, page, result};

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

/// Writes what is known of a device's store to `info`. `page` is a page of ordinary memory at the physical address `page_physical`.
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
    let ask = |domain: &mut crate::Open, slot| {
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
    use guest_shim::hcall_abi::{MessagePair, Target};

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
