//! Works with a virtual function until the guest is asked to stop: each interrupt must come once.

use guest_shim::hcall_abi::Target;
use guests::bare::{assigned, interrupts};
use guests::println;

use super::function::{self, COUNTS, Vf};

/// The vector of the request to stop: above those of the device and of the hypervisor's own interrupts.
const STOP: u8 = 0xee;
/// Vectors that the device raises again and again.
const VECTORS: u16 = 9;

pub fn run(vf: &mut Vf) -> Result<(), &'static str> {
    let calls = assigned::hypercalls().ok_or("there is no hypervisor that can ask")?;
    calls.set_stop_request(Some(Target { apic_id: 0, vector: STOP })).map_err(|_| "it cannot be asked to stop")?;
    interrupts::set_handler(|vector| {
        if vector != STOP {
            COUNTS.arrived(vector);
        }
    });
    vf.start_some(VECTORS)?;
    let mut rounds = 0_u64;
    while interrupts::count(STOP) == 0 {
        vf.fire(1..VECTORS);
        rounds += 1;
    }
    let errors = function::errors() + COUNTS.strays();
    println!("@result rounds={rounds} handled={} errors={errors}", COUNTS.total());
    if errors == 0 { Ok(()) } else { Err("not everything was right") }
}
