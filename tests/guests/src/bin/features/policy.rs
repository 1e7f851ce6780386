//! The policy's decision under each setting of the platform, and the fallback when it refuses: MSI-X.

use guests::bare::assigned::AssignedDsa;
use guests::bare::{Guest, apic, physical};
use guests::guest_shim::discover::{NativeCpuid, discover};
use guests::guest_shim::hcall_abi::cpuid::Features;
use guests::guest_shim::policy::{Decision, Refusal, decide};
use guests::guest_shim::store::{Field, Store};
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{Hypercalls, MmioStore, detect, hcall_abi};
use guests::memory::Memory;
use guests::{acpi, println};

use crate::msix::Msix;
use crate::rig::{Rig, count_interrupts, here};

/// Decides, and works by the way that is open.
pub fn run(guest: &Guest) -> Result<(), &'static str> {
    let interface = discover(&NativeCpuid).ok();
    let by_cpuid = interface.is_some_and(|interface| interface.features.contains(Features::IMS_FORBIDDEN));
    let by_acpi = forbidden_by_acpi(guest).unwrap_or(false);
    let facts = detect::Facts { cpuid_hypervisor: detect::cpuid_hypervisor_bit(&NativeCpuid), ..Default::default() };
    let bare_metal = detect::on_bare_metal(&facts);
    let hidden = AssignedDsa::says_ims(guest) == Some(false);
    let decision = decide(bare_metal, by_acpi || by_cpuid, interface);
    let (way, fired) = match decision {
        Decision::Native => return Err("a guest is not on bare metal"),
        Decision::Hypercall(interface) => {
            // SAFETY: the guest runs at CPL 0, and the interface was found.
            let calls = Hypercalls::new(unsafe { Vmcall::new() }, interface);
            let status = calls.device(0);
            if status != Err(hcall_abi::Status::NotEnabled) {
                return Err("a call is answered before the interface is enabled");
            }
            ("hypercall", by_hypercall(guest)?)
        }
        Decision::Refuse(Refusal::Forbidden) => ("forbidden", by_msix()?),
        Decision::Refuse(Refusal::Virtualised) => ("virtualised", by_msix()?),
    };
    let shown = AssignedDsa::says_ims(guest) == Some(true);
    println!(
        "@result way={way} hidden={} shown={} cpuid={} acpi={} fired={fired} errors=0",
        u8::from(hidden),
        u8::from(shown),
        u8::from(by_cpuid),
        u8::from(by_acpi)
    );
    Ok(())
}

/// Whether the platform's table forbids.
fn forbidden_by_acpi(guest: &Guest) -> Option<bool> {
    let memory = physical::PhysicalMemory;
    let table = acpi::table(&memory, guest.boot.rsdp()?, hcall_abi::acpi::SIGNATURE)?;
    let flags = memory.u32(table + hcall_abi::acpi::FLAGS as u64)?;
    Some(flags & hcall_abi::acpi::FLAG_IMS_FORBIDDEN != 0)
}

fn by_hypercall(guest: &Guest) -> Result<u32, &'static str> {
    let mut rig = Rig::new(guest)?;
    let mut fired = 0;
    for n in 0..16 {
        let slot = rig.mapped(0, here(0x40 + n), n.into())?;
        fired += u32::from(rig.fires(slot.index(), here(0x40 + n)));
    }
    Ok(fired)
}

/// What a driver does that must leave the store alone. That it is left alone does not hang on its good will: what is written there
/// has no effect.
fn by_msix() -> Result<u32, &'static str> {
    count_interrupts();
    let device = AssignedDsa::start_any().map_err(|_| "no device to work with")?;
    let mut store = device.store();
    let before = image(&store);
    for (field, value) in [(Field::AddressLo, apic::message_address(0)), (Field::Data, 0x99), (Field::Control, 0)] {
        store.write(0, field, value);
    }
    if image(&store) != before {
        return Err("a store that is not there can be written");
    }
    let mut msix = Msix::enable(device)?;
    let mut fired = 0;
    for n in 0..16 {
        let target = here(0x40 + n as u8);
        msix.program(n, target);
        fired += u32::from(msix.fires(n, 0, target));
    }
    Ok(fired)
}

fn image(store: &MmioStore) -> [u32; 4] {
    Field::ALL.map(|field| store.read(0, field))
}
