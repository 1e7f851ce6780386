//! Work queues: their configuration (WQCFG), their state, and the descriptors in them.

use crate::Config;
use crate::portal::{PortalWrite, Submission};
use crate::spec::command_error;
use std::collections::VecDeque;

/// Dwords of WQCFG (`union wqcfg`).
pub(crate) const DWORDS: usize = 16;

const MODE_DEDICATED: u32 = 1 << 0;
const BLOCK_ON_FAULT: u32 = 1 << 1;
const PASID_ENABLE: u32 = 1 << 28;
const OCCUPANCY_DWORD: usize = 6;
/// WQ state at bits 31:30 of dword 6: enabled.
const STATE_ENABLED: u32 = 1 << 30;

/// The bits of each dword that software may write. The size only changes while the device is disabled.
const WRITABLE: [u32; DWORDS] =
    [0xffff, 0xffff, 0x3fff_ffff, 0x1ff, 0x1_ffff, 0x1_ffff, 0, 0, !0, !0, !0, !0, !0, !0, !0, !0];

/// A work queue.
#[derive(Default)]
pub(crate) struct WorkQueue {
    config: [u32; DWORDS],
    enabled: bool,
    /// It is being disabled: what is in it is done, and nothing more is taken.
    closing: bool,
    descriptors: VecDeque<Submission>,
    /// Descriptors that came in, and those that are in it no longer.
    accepted: u64,
    left: u64,
}

impl WorkQueue {
    pub(crate) fn size(&self) -> u32 {
        self.config[0] & 0xffff
    }

    fn threshold(&self) -> u32 {
        self.config[1] & 0xffff
    }

    fn dedicated(&self) -> bool {
        self.config[2] & MODE_DEDICATED != 0
    }

    fn priority(&self) -> u32 {
        self.config[2] >> 4 & 0xf
    }

    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    /// The longest transfer that its descriptors may ask for.
    pub(crate) fn max_transfer(&self) -> u32 {
        1 << (self.config[3] & 0x1f)
    }

    /// The most descriptors of a batch.
    pub(crate) fn max_batch(&self) -> u32 {
        1 << (self.config[3] >> 5 & 0xf)
    }

    /// Its descriptors may wait for pages.
    pub(crate) fn blocks_on_fault(&self) -> bool {
        self.config[2] & BLOCK_ON_FAULT != 0
    }

    fn uses_pasid(&self) -> bool {
        self.config[2] & PASID_ENABLE != 0
    }

    /// The PASID that a descriptor works with: the queue's own if dedicated, the submitter's if shared.
    pub(crate) fn pasid(&self, submitted: u32) -> Option<u32> {
        let own = self.config[2] >> 8 & 0xf_ffff;
        self.uses_pasid().then_some(if self.dedicated() { own } else { submitted })
    }

    pub(crate) fn read(&self, dword: usize) -> u32 {
        let state = if self.enabled { STATE_ENABLED } else { 0 };
        match self.config.get(dword) {
            Some(_) if dword == OCCUPANCY_DWORD => state | self.descriptors.len() as u32,
            Some(value) => *value,
            None => 0,
        }
    }

    /// A write to the configuration: ignored while the queue is enabled, as is one to the size while the device is.
    pub(crate) fn write(&mut self, dword: usize, value: u32, device_enabled: bool) {
        if self.enabled || dword == 0 && device_enabled {
            return;
        }
        if let (Some(place), Some(mask)) = (self.config.get_mut(dword), WRITABLE.get(dword)) {
            *place = value & mask;
        }
    }

    /// The Enable WQ command, with the device enabled.
    pub(crate) fn enable(&mut self, pasid_capability: bool, setup: &Config) -> Result<(), u8> {
        let wrong = [
            (self.enabled, command_error::WQ_ENABLED),
            (self.size() == 0, command_error::WQ_SIZE),
            (self.priority() == 0, command_error::WQ_PRIOR),
            (self.blocks_on_fault() && !setup.page_requests, command_error::BOF_EN),
            (self.uses_pasid() && !pasid_capability, command_error::PASID_EN),
            (self.config[3] >> 5 & 0xf > setup.max_batch_shift.into(), command_error::MAX_BATCH_SIZE),
            (self.config[3] & 0x1f > setup.max_transfer_shift.into(), command_error::MAX_XFER_SIZE),
        ];
        if let Some((_, error)) = wrong.into_iter().find(|(is, _)| *is) {
            return Err(error);
        }
        self.enabled = true;
        Ok(())
    }

    /// Takes no more descriptors, or takes them again.
    pub(crate) fn set_closing(&mut self, closing: bool) {
        self.closing = closing;
    }

    /// How many descriptors have come in so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// How many of them are not in it any longer, in their order.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Disables the queue; what is in it is given up.
    pub(crate) fn disable(&mut self) {
        self.enabled = false;
        self.closing = false;
        self.abort();
    }

    /// Gives up what is in the queue.
    pub(crate) fn abort(&mut self) {
        self.descriptors.clear();
        self.left = self.accepted;
    }

    /// Gives up what works with `pasid`.
    pub(crate) fn abort_pasid(&mut self, pasid: u32) {
        let mut kept = std::mem::take(&mut self.descriptors);
        kept.retain(|one| self.pasid(crate::descriptor::submitted_pasid(&one.bytes)) != Some(pasid));
        self.left = self.accepted - kept.len() as u64;
        self.descriptors = kept;
    }

    /// Back to the reset state, configuration included.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// The Reset WQ command. The size stays, because it changes only while the device is disabled: Linux 7 resets a queue and enables it
    /// again with the device enabled (`idxd_wq_set_pasid`).
    pub(crate) fn reset_but_size(&mut self) {
        let size = self.size();
        self.reset();
        self.config[0] = size;
    }

    /// A descriptor from a portal.
    pub(crate) fn submit(&mut self, submission: Submission) -> PortalWrite {
        if !self.enabled || self.closing {
            return PortalWrite::Dropped;
        }
        let shared = !self.dedicated();
        let limit = if shared && submission.limited { self.size().min(self.threshold()) } else { self.size() };
        if self.descriptors.len() >= limit as usize {
            return if shared { PortalWrite::Retry } else { PortalWrite::Dropped };
        }
        self.accepted += 1;
        self.descriptors.push_back(submission);
        PortalWrite::Queued
    }

    pub(crate) fn next(&mut self) -> Option<Submission> {
        let next = self.descriptors.pop_front();
        self.left += u64::from(next.is_some());
        next
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Table;

    fn queue(mode: u32) -> WorkQueue {
        let mut queue = WorkQueue::default();
        queue.write(0, 4, false);
        queue.write(1, 2, false);
        queue.write(2, 1 << 4 | mode, false);
        queue
    }

    fn submission(limited: bool) -> Submission {
        Submission { queue: 0, table: Table::Ims, limited, bytes: [0; 64] }
    }

    #[test]
    fn each_wrong_configuration_has_its_error() {
        let cases = [
            (0, 0, command_error::WQ_SIZE),
            (2, 1, command_error::WQ_PRIOR),
            (2, 1 << 4 | BLOCK_ON_FAULT, command_error::BOF_EN),
            (2, 1 << 4 | PASID_ENABLE, command_error::PASID_EN),
            (3, 6 << 5, command_error::MAX_BATCH_SIZE),
            (3, 22, command_error::MAX_XFER_SIZE),
        ];
        for (dword, value, error) in cases {
            let mut queue = queue(MODE_DEDICATED);
            queue.write(dword, value, false);
            assert_eq!(queue.enable(false, &Config::default()), Err(error));
            assert!(!queue.enabled());
        }
        let mut queue = queue(MODE_DEDICATED);
        assert_eq!(queue.enable(false, &Config::default()), Ok(()));
        assert_eq!(queue.enable(false, &Config::default()), Err(command_error::WQ_ENABLED));
    }

    #[test]
    fn configuration_is_frozen_while_enabled() {
        let mut queue = queue(MODE_DEDICATED);
        queue.enable(false, &Config::default()).unwrap();
        queue.write(2, 0, true);
        assert_eq!(queue.read(2), 1 << 4 | 1);
        queue.disable();
        queue.write(0, 9, true);
        assert_eq!(queue.read(0), 4, "the size wants the device disabled");
        queue.write(2, !0, true);
        assert_eq!(queue.read(2), 0x3fff_ffff);
        queue.write(6, !0, false);
        assert_eq!(queue.read(6), 0);
    }

    #[test]
    fn a_full_dedicated_queue_drops_and_shows_its_occupancy() {
        let mut queue = queue(MODE_DEDICATED);
        assert_eq!(queue.submit(submission(true)), PortalWrite::Dropped);
        queue.enable(false, &Config::default()).unwrap();
        for _ in 0..4 {
            assert_eq!(queue.submit(submission(true)), PortalWrite::Queued);
        }
        assert_eq!(queue.submit(submission(false)), PortalWrite::Dropped);
        assert_eq!(queue.read(6), STATE_ENABLED | 4);
    }

    #[test]
    fn a_limited_portal_stops_at_the_threshold() {
        let mut queue = queue(0);
        queue.enable(false, &Config::default()).unwrap();
        assert_eq!(queue.submit(submission(true)), PortalWrite::Queued);
        assert_eq!(queue.submit(submission(true)), PortalWrite::Queued);
        assert_eq!(queue.submit(submission(true)), PortalWrite::Retry);
        assert_eq!(queue.submit(submission(false)), PortalWrite::Queued);
    }

    #[test]
    fn the_pasid_is_the_queues_own_or_the_submitters() {
        let mut dedicated = queue(MODE_DEDICATED);
        assert_eq!(dedicated.pasid(7), None);
        dedicated.write(2, PASID_ENABLE | 5 << 8 | MODE_DEDICATED, false);
        assert_eq!(dedicated.pasid(7), Some(5));
        let mut shared = queue(0);
        shared.write(2, PASID_ENABLE | 5 << 8, false);
        assert_eq!(shared.pasid(7), Some(7));
    }
}
