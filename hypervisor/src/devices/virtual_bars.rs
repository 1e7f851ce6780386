//! The BARs of a virtual function in the guest.

use hcall_abi::DeviceId;

use crate::{
    addr::{Gpa, Hpa, PAGE_SIZE},
    devices::{
        assign_error::AssignError,
        guest_bars::GuestSpace,
        mmio_regions::{MmioRegion, RegionKind},
    },
    ept::PageType,
    ims::StoreName,
    memory::FrameSource,
    vdev::vdsa,
};

/// Maps a virtual function's BARs 0 and 2 at these guest addresses: the page of its registers at `page`, which the guest reads without an
/// exit; an MSI-X table of `table` bytes, whose writes are trapped; and the portals of its work queue, straight through. The rest of the
/// BARs is not mapped. Returns the address of the table's shadow.
pub fn map(
    space: &mut GuestSpace<'_, impl FrameSource>,
    id: DeviceId,
    (bar0, bar2): (Gpa, Gpa),
    (page, table, (portals, portal_bytes)): (Hpa, u64, (Hpa, u64)),
) -> Result<Hpa, AssignError> {
    let shadow = map_table(space, id, bar0, table)?;
    map_registers(space, id, bar0, page)?;
    space.map(bar2, portals, portal_bytes, PageType::Device)?;
    Ok(shadow)
}

fn map_table(
    space: &mut GuestSpace<'_, impl FrameSource>,
    id: DeviceId,
    bar0: Gpa,
    bytes: u64,
) -> Result<Hpa, AssignError> {
    let start = bar0.checked_add(vdsa::TABLE.into()).ok_or(AssignError::Table)?;
    let len = bytes.next_multiple_of(PAGE_SIZE);
    let shadow = space.zeroed(len / PAGE_SIZE)?;
    space.map(start, shadow, len, PageType::Shadow)?;
    let kind = RegionKind::Store { device: id, name: StoreName::Msix, shadow };
    // SAFETY: the shadow's frames were allocated just now, and go back only when the guest has ended: nobody looks at regions then.
    unsafe { space.mmio_regions.add(MmioRegion { start, len: bytes, kind }) };
    Ok(shadow)
}

fn map_registers(
    space: &mut GuestSpace<'_, impl FrameSource>,
    id: DeviceId,
    bar0: Gpa,
    page: Hpa,
) -> Result<(), AssignError> {
    let start = bar0.checked_add(vdsa::REGISTERS.into()).ok_or(AssignError::Table)?;
    space.map(start, page, PAGE_SIZE, PageType::Shadow)?;
    let region = MmioRegion { start: bar0, len: vdsa::BAR0_SIZE, kind: RegionKind::Virtual { device: id } };
    // SAFETY: the function's model answers for this kind; the region of the table, which lies in it, came before and counts first.
    unsafe { space.mmio_regions.add(region) };
    Ok(())
}
