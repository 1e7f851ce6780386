//! A device that halts while it is used: the function says so, takes no command but a reset, and works after that as before.

use guests::bare::{apic, idle, interrupts, vector};
use guests::dsa::{Error, Registers, spec};
use guests::println;

use crate::function::{COUNTS, Vf, errors, expect};

/// Descriptors that are tried before the device is to have halted.
const TRIES: u32 = 1_000;
/// Ticks between two descriptors.
const PAUSE: u64 = 20_000;
/// Ticks in which a descriptor is done, and those in which the device is told of as halted.
const SOON: u64 = 1_000_000;
const LIMIT: u64 = 20_000_000;
/// `enum idxd_cmdsts_err`: the hardware has failed.
const HW_ERR: u8 = 3;

/// Works until the device halts, and once more.
pub fn run(vf: &mut Vf) -> Result<(), &'static str> {
    interrupts::set_handler(|number| {
        if number <= vector::LAST {
            COUNTS.arrived(number);
        }
    });
    vf.dsa.registers().write(spec::GENCTRL, spec::GENCTRL_HALT);
    vf.fire(1..5);
    let _ = vf.take_signals();
    let handle = vf.handle(5);
    let mut done = 0;
    while done < TRIES {
        vf.set_mask(5, true);
        vf.submit(5, handle);
        if !idle::poll_until(SOON, || vf.is_complete(5)) {
            break;
        }
        // Another guest with a function of the device is to be at work, too.
        idle::linger(PAUSE);
        done += 1;
    }
    let state = |vf: &mut Vf| vf.dsa.registers().read(spec::GENSTS) & spec::GENSTS_STATE;
    let end = apic::tsc() + LIMIT;
    while state(vf) != spec::GENSTS_HALTED && apic::tsc() < end {
        core::hint::spin_loop();
    }
    let halted = state(vf) == spec::GENSTS_HALTED;
    expect(halted, "the function does not say that it has halted");
    expect(vf.take_signals() == 1, "not one interrupt for the halt");
    let causes = vf.dsa.registers().read(spec::INTCAUSE);
    let told = spec::INTCAUSE_HALTED | spec::INTCAUSE_HANDLE_REVOKED;
    expect(causes & told == told, "the causes do not tell of a halt and of handles");
    let enabled = vf.dsa.request_msix_handle(1);
    expect(matches!(enabled, Err(Error::Command(_, HW_ERR))), "a halted function takes a command");
    vf.restart().map_err(|_| "it does not start again")?;
    expect(state(vf) == spec::GENSTS_ENABLED, "it is not enabled again");
    // The device is told again where the vectors lead.
    vf.fire(1..5);
    let errors = errors() + COUNTS.strays();
    println!("@result done={done} halted={} errors={errors}", u32::from(halted));
    if errors == 0 { Ok(()) } else { Err("not everything was right") }
}
