//! Groups: which work queues feed which engines (GRPCFG).

use crate::spec::{ENGINES, GROUPS, READ_BUFFERS, TOTAL_WQ_SIZE, WQS, command_error};
use crate::work_queue::WorkQueue;

/// Dwords of a group's configuration block (`GRPCFG_SIZE`).
pub(crate) const DWORDS: usize = 16;

/// A group's configuration: 256 bits of work queues, 64 of engines, 64 of flags.
#[derive(Clone, Copy, Default)]
pub(crate) struct Group {
    config: [u32; DWORDS],
}

impl Group {
    /// The mask of its work queues.
    pub(crate) fn queues(&self) -> u64 {
        u64::from(self.config[1]) << 32 | u64::from(self.config[0])
    }

    /// The mask of its engines.
    pub(crate) fn engines(&self) -> u64 {
        u64::from(self.config[9]) << 32 | u64::from(self.config[8])
    }

    /// Read buffers that are its alone, and the most that it may use; no limit of its own where that is 0 (`union group_flags`).
    fn read_buffers(&self) -> (u32, u32) {
        (self.config[10] >> 8 & 0xff, self.config[10] >> 20 & 0xff)
    }

    /// More read buffers reserved than it may use, or than there are.
    fn buffers_wrong(&self) -> bool {
        let (reserved, allowed) = self.read_buffers();
        allowed != 0 && allowed < reserved || allowed > u32::from(READ_BUFFERS)
    }

    /// A bit for a work queue or an engine that the device does not have.
    fn names_absent(&self) -> bool {
        self.queues() >> WQS != 0 || self.engines() >> ENGINES != 0 || self.config[2..8].iter().any(|dword| *dword != 0)
    }

    pub(crate) fn read(&self, dword: usize) -> u32 {
        self.config.get(dword).copied().unwrap_or(0)
    }

    /// Writes a dword; those beyond the flags do not exist.
    pub(crate) fn write(&mut self, dword: usize, value: u32) {
        if dword < 12
            && let Some(place) = self.config.get_mut(dword)
        {
            *place = value;
        }
    }
}

/// What Enable Device finds wrong with groups and queue sizes.
pub(crate) fn check(groups: &[Group; GROUPS], queues: &[WorkQueue; WQS]) -> Result<(), u8> {
    if queues.iter().map(WorkQueue::size).sum::<u32>() > TOTAL_WQ_SIZE {
        return Err(command_error::WQ_SIZE_ERANGE);
    }
    let reserved: u32 = groups.iter().map(|group| group.read_buffers().0).sum();
    if reserved > READ_BUFFERS.into() || groups.iter().any(Group::buffers_wrong) {
        return Err(command_error::GRP_CONFIG);
    }
    let (mut seen_queues, mut seen_engines) = (0, 0);
    for group in groups {
        let (queues, engines) = (group.queues(), group.engines());
        let wrong = [
            (group.names_absent(), command_error::GRP_CONFIG),
            (queues & seen_queues != 0, command_error::GRP_CONFIG2),
            (engines & seen_engines != 0, command_error::GRP_CONFIG3),
            ((queues == 0) != (engines == 0), command_error::GRP_CONFIG4),
        ];
        if let Some((_, error)) = wrong.into_iter().find(|(is, _)| *is) {
            return Err(error);
        }
        seen_queues |= queues;
        seen_engines |= engines;
    }
    let orphan = queues.iter().enumerate().any(|(n, queue)| queue.size() != 0 && seen_queues >> n & 1 == 0);
    if orphan { Err(command_error::GRP_CONFIG2) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(settings: &[(usize, u32, u32)], sizes: &[u32]) -> Result<(), u8> {
        let mut groups = [Group::default(); GROUPS];
        for (group, queues, engines) in settings {
            groups[*group].write(0, *queues);
            groups[*group].write(8, *engines);
        }
        let mut queues: [WorkQueue; WQS] = std::array::from_fn(|_| WorkQueue::default());
        for (queue, size) in queues.iter_mut().zip(sizes) {
            queue.write(0, *size, false);
        }
        check(&groups, &queues)
    }

    #[test]
    fn a_right_configuration_passes() {
        assert_eq!(with(&[(0, 0b11, 0b01), (3, 0b100, 0b1110)], &[64, 32, 32]), Ok(()));
        assert_eq!(with(&[], &[]), Ok(()));
    }

    #[test]
    fn read_buffers_are_shared_out_and_no_more_than_there_are() {
        let buffers = |settings: [(u32, u32); 2]| {
            let mut groups = [Group::default(); GROUPS];
            for (group, (reserved, allowed)) in groups.iter_mut().zip(settings) {
                group.write(10, reserved << 8 | allowed << 20);
            }
            check(&groups, &std::array::from_fn(|_| WorkQueue::default()))
        };
        assert_eq!(buffers([(0, 0), (0, 96)]), Ok(()));
        assert_eq!(buffers([(48, 96), (48, 48)]), Ok(()));
        for wrong in [[(48, 96), (49, 96)], [(2, 1), (0, 0)], [(0, 97), (0, 0)]] {
            assert_eq!(buffers(wrong), Err(command_error::GRP_CONFIG), "{wrong:?}");
        }
    }

    #[test]
    fn each_wrong_configuration_has_its_error() {
        assert_eq!(with(&[(0, 0b11, 1)], &[64, 65]), Err(command_error::WQ_SIZE_ERANGE));
        assert_eq!(with(&[(0, 1 << 8, 1)], &[]), Err(command_error::GRP_CONFIG));
        assert_eq!(with(&[(0, 1, 1 << 4)], &[]), Err(command_error::GRP_CONFIG));
        assert_eq!(with(&[(0, 1, 1), (1, 1, 2)], &[]), Err(command_error::GRP_CONFIG2));
        assert_eq!(with(&[(0, 1, 1)], &[1, 1]), Err(command_error::GRP_CONFIG2));
        assert_eq!(with(&[(0, 1, 1), (1, 2, 1)], &[]), Err(command_error::GRP_CONFIG3));
        assert_eq!(with(&[(0, 1, 0)], &[]), Err(command_error::GRP_CONFIG4));
        assert_eq!(with(&[(0, 0, 1)], &[]), Err(command_error::GRP_CONFIG4));
    }
}
