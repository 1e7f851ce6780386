//! What the hypervisor knows of a processor's place: its core and its node.

use core::sync::atomic::{AtomicBool, Ordering};

use raw_cpuid::{CpuId, CpuIdReader};

use crate::options::Smt;

static SHARED: AtomicBool = AtomicBool::new(false);

/// Says once at boot whether guests may share a core.
pub fn settle(smt: Smt) {
    SHARED.store(smt == Smt::Shared, Ordering::Relaxed);
}

/// Whether guests may share a core.
pub fn smt() -> Smt {
    if SHARED.load(Ordering::Relaxed) { Smt::Shared } else { Smt::Core }
}

/// A processor that can run guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalProcessor {
    /// Its number, in the order of the MADT.
    pub number: usize,
    /// Its core: processors with the same value are hyperthreads of one core.
    pub core: u32,
    /// Its node, as a proximity domain of the firmware's tables, if they say so.
    pub node: Option<u32>,
}

/// The number of low bits of an APIC ID that tell the hyperthreads of a core apart.
///
/// From leaf 0x1f or 0xb of CPUID, whose first level is hyperthreads if there are any; where neither leaf says anything, from leaves 1 and 4, as on
/// older processors (SDM vol. 3, 10.9.4). All processors of a machine are alike.
pub fn smt_bits(reader: impl CpuIdReader) -> u32 {
    let cpuid = CpuId::with_cpuid_reader(reader.clone());
    let most = reader.cpuid1(0).eax;
    for leaf in [0x1f, 0xb].into_iter().filter(|leaf| *leaf <= most) {
        let level = reader.cpuid2(leaf, 0);
        if level.ebx != 0 {
            // With hyperthreading off the bits are there, and the level has one processor. Bochs gives its processors consecutive IDs all the same.
            let has_threads = level.ecx >> 8 & 0xff == 1 && level.ebx & 0xffff > 1;
            return if has_threads { level.eax & 0x1f } else { 0 };
        }
    }
    legacy_smt_bits(&cpuid)
}

fn legacy_smt_bits(cpuid: &CpuId<impl CpuIdReader>) -> u32 {
    let Some(features) = cpuid.get_feature_info().filter(|features| features.has_htt()) else { return 0 };
    let logical = u32::from(features.max_logical_processor_ids());
    let cores =
        cpuid.get_cache_parameters().and_then(|mut caches| caches.next()).map(|cache| cache.max_cores_for_package());
    let threads = logical.div_ceil(cores.map_or(logical, |cores| cores as u32).max(1)).max(1);
    threads.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use raw_cpuid::CpuIdResult;

    /// Answers from a table of leaf, subleaf and EAX to EDX; all others are 0.
    #[derive(Clone)]
    struct Table(&'static [(u32, u32, [u32; 4])]);

    impl CpuIdReader for Table {
        fn cpuid2(&self, eax: u32, ecx: u32) -> CpuIdResult {
            let found = self.0.iter().find(|(leaf, subleaf, _)| (*leaf, *subleaf) == (eax, ecx));
            let [eax, ebx, ecx, edx] = found.map_or([0; 4], |(.., values)| *values);
            CpuIdResult { eax, ebx, ecx, edx }
        }
    }

    const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];

    #[test]
    fn hyperthreads_are_told_by_the_newest_leaf_that_is_there() {
        let [ebx, ecx, edx] = INTEL;
        // Two threads of a core, by leaf 0xb, as Sapphire Rapids and its predecessors have it.
        let smt = Table(Box::leak(Box::new([
            (0, 0, [0xb, ebx, ecx, edx]),
            (1, 0, [0, 16 << 16, 0, 1 << 28]),
            (0xb, 0, [1, 2, 0x100, 0]),
            (0xb, 1, [5, 16, 0x201, 0]),
        ])));
        assert_eq!(smt_bits(smt), 1);
        let single = Table(Box::leak(Box::new([
            (0, 0, [0xb, ebx, ecx, edx]),
            (0xb, 0, [0, 1, 0x100, 0]),
            (0xb, 1, [3, 8, 0x201, 0]),
        ])));
        assert_eq!(smt_bits(single), 0);
        // Two packages of one processor, as Bochs has it: the first level is neither threads nor cores.
        let packages = Table(Box::leak(Box::new([
            (0, 0, [0xb, ebx, ecx, edx]),
            (1, 0, [0, 2 << 16, 0, 1 << 28]),
            (0xb, 0, [1, 2, 0, 0]),
        ])));
        assert_eq!(smt_bits(packages), 0);
        let off = Table(Box::leak(Box::new([(0, 0, [0xb, ebx, ecx, edx]), (0xb, 0, [1, 1, 0x100, 0])])));
        assert_eq!(smt_bits(off), 0, "switched off");
    }

    #[test]
    fn older_processors_tell_them_by_cores_and_logical_processors_of_a_package() {
        let [ebx, ecx, edx] = INTEL;
        // Eight logical processors and four cores.
        let old = Table(Box::leak(Box::new([
            (0, 0, [4, ebx, ecx, edx]),
            (1, 0, [0, 8 << 16, 0, 1 << 28]),
            (4, 0, [0x0c00_0121, 0, 0, 0]),
        ])));
        assert_eq!(smt_bits(old), 1);
        let without = Table(Box::leak(Box::new([(0, 0, [1, ebx, ecx, edx]), (1, 0, [0; 4])])));
        assert_eq!(smt_bits(without), 0);
    }
}
