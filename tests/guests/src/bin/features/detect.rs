//! The bare-metal test, with every fact that the machine gives.

use guests::bare::{Guest, facts};
use guests::guest_shim::detect::{Hint, hints, on_bare_metal};
use guests::println;

/// Says what it found.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let facts = facts::gather(guest);
    let seen = |hint| u8::from(hints(&facts).any(|seen| seen == hint));
    println!(
        "@result bare_metal={} cpuid={} smbios={} caching_mode={} np_cache={} virtio_iommu={} vendor={} product={} \
         has_smbios={} system_vendor=\"{}\" errors=0",
        u8::from(on_bare_metal(&facts)),
        seen(Hint::CpuidHypervisor),
        seen(Hint::SmbiosVirtualMachine),
        seen(Hint::CachingMode),
        seen(Hint::NpCache),
        seen(Hint::VirtioIommu),
        seen(Hint::SystemVendor),
        seen(Hint::SystemProduct),
        u8::from(facts.smbios_bios.is_some()),
        facts.system_vendor.unwrap_or("")
    );
    Ok(())
}
