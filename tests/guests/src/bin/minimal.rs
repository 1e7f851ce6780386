//! Uses one interrupt of its DSA's message store: the smallest such guest. It takes a slot, sends the slot's interrupts to itself, has the
//! device raise one, and gives the slot back. `tests/guests/README.md` tells how to build and boot one's own.
#![no_std]
#![no_main]

use guests::bare::assigned::{AssignedDsa, Records, batch_page, hypercalls};
use guests::bare::{Guest, apic, dma::DmaBuffer, idle, interrupts, vector};
use guests::dsa::Descriptor;
use guests::guest_shim::{Domain, MmioStore, Request, hcall_abi::Target, vmcall::Vmcall};
use guests::println;

guests::guest!(main);

static PAGE: DmaBuffer<4096> = DmaBuffer::new();
static RECORDS: Records<4096> = Records::new();
/// TSC ticks after which the interrupt is given up.
const LIMIT: u64 = 100_000_000;

fn main(guest: &Guest) -> Result<(), &'static str> {
    let calls = hypercalls().ok_or("no hypercall domain")?;
    let mut device = AssignedDsa::start(guest).map_err(|missing| {
        println!("minimal: {missing}");
        "no device to work with"
    })?;
    let mut domain: Domain<'_, Vmcall, MmioStore> = Domain::hypercall(calls, device.id(), batch_page(&PAGE));
    idle::enable_interrupts();
    let interrupt = domain.alloc(0).map_err(|_| "no slot")?;
    let target = Target { apic_id: apic::id(), vector: vector::FIRST };
    domain.map(&interrupt, &Request { target, unmask: true, cookie: 0 }).map_err(|_| "the slot cannot be mapped")?;
    let handle = device.dsa.request_ims_handle(interrupt.index()).map_err(|_| "no handle")?;
    device.portals[0].submit(&Descriptor::noop(RECORDS.address(0), handle));
    let fired = idle::wait_until(LIMIT, || interrupts::count(vector::FIRST) == 1);
    domain.free(interrupt).map_err(|_| "the slot cannot be freed")?;
    println!("@result slots=1 slots_fired={} errors={}", u8::from(fired), u8::from(!fired));
    if fired { Ok(()) } else { Err("the interrupt did not come") }
}
