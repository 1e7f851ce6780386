//! Attachments of functions to guests' memory, by which DMA is confined.
//!
//! A guest that has a function, or a part of one, has a VT-d domain for it, which maps the guest's memory at the guest's own addresses. The
//! function's requests without a PASID, those with the guest's PASIDs, or both use that domain.

use alloc::vec::Vec;

use hcall_abi::Pasid;

use crate::{
    addr::{Bdf, Gpa},
    ims::GuestId,
    memory::{FrameSource, Ram, Registers},
    sync::Mutex,
    vtd::{Domain, Error, Remapper},
};

/// Requests of a function: those with a PASID, or those without one.
pub type Requests = (Bdf, Option<Pasid>);

/// A guest's domain for a function.
struct Attachment {
    guest: GuestId,
    bdf: Bdf,
    pasids: Vec<Option<Pasid>>,
    domain: Domain,
}

impl Attachment {
    fn new(
        guest: GuestId,
        bdf: Bdf,
        ram: &Ram,
        unit: &Remapper<'_, impl Registers, impl FrameSource>,
    ) -> Result<Self, Error> {
        let mut domain = unit.create_domain()?;
        // SAFETY: the memory is the guest's, whose function it is; it is freed only after `detach` has succeeded.
        let mapped = unsafe { unit.map(&mut domain, Gpa::new(0), ram.base(), ram.len(), true) };
        if let Err(error) = mapped {
            let _ = unit.destroy_domain(domain);
            return Err(error);
        }
        Ok(Self { guest, bdf, pasids: Vec::new(), domain })
    }

    fn add(
        &mut self,
        pasid: Option<Pasid>,
        unit: &Remapper<'_, impl Registers, impl FrameSource>,
    ) -> Result<(), Error> {
        match pasid {
            None => unit.attach(self.bdf, &mut self.domain)?,
            Some(pasid) => unit.attach_pasid(self.bdf, pasid.value(), &mut self.domain)?,
        }
        self.pasids.push(pasid);
        Ok(())
    }

    /// Detaches each request, even if another one fails, so that as few paths as possible stay open to memory that gets a new owner.
    fn end(mut self, unit: &Remapper<'_, impl Registers, impl FrameSource>) -> Result<(), Error> {
        let mut detached = Ok(());
        for pasid in self.pasids {
            detached = detached.and(match pasid {
                None => unit.detach(self.bdf, &mut self.domain),
                Some(pasid) => unit.detach_pasid(self.bdf, pasid.value(), &mut self.domain),
            });
        }
        detached.and_then(|()| unit.destroy_domain(self.domain))
    }
}

/// All attachments.
#[derive(Default)]
pub struct Attachments(Mutex<Vec<Attachment>>);

impl Attachments {
    /// Attaches requests to a guest's memory. `unit` is the function's unit.
    pub fn add(
        &self,
        guest: GuestId,
        (bdf, pasid): Requests,
        ram: &Ram,
        unit: &Remapper<'_, impl Registers, impl FrameSource>,
    ) -> Result<(), Error> {
        let mut all = self.0.lock();
        let known = all.iter_mut().find(|one| (one.guest, one.bdf) == (guest, bdf));
        let added = match known {
            Some(attachment) => attachment.add(pasid, unit),
            None => {
                let mut attachment = Attachment::new(guest, bdf, ram, unit)?;
                let added = attachment.add(pasid, unit);
                // Kept after an error as well: `remove` knows whether the domain can go.
                all.push(attachment);
                added
            }
        };
        added.inspect_err(|error| log::error!("{bdf}: cannot be attached: {error}"))
    }

    /// Blocks all requests of a function that lead to a guest's memory. Returns whether none can be under way any more.
    pub fn remove(&self, guest: GuestId, bdf: Bdf, unit: &Remapper<'_, impl Registers, impl FrameSource>) -> bool {
        let mut all = self.0.lock();
        let Some(index) = all.iter().position(|one| (one.guest, one.bdf) == (guest, bdf)) else { return true };
        let ended = all.swap_remove(index).end(unit);
        ended.inspect_err(|error| log::error!("{bdf}: cannot be detached: {error}")).is_ok()
    }

    /// The guest that requests belong to. Requests with an unattached PASID belong to the guest that has the whole function.
    pub fn guest_of(&self, (bdf, pasid): Requests) -> Option<GuestId> {
        let all = self.0.lock();
        let whose = |pasid| all.iter().find(|one| one.bdf == bdf && one.pasids.contains(&pasid));
        whose(pasid).or_else(|| whose(None)).map(|one| one.guest)
    }
}

#[cfg(test)]
mod tests;
