//! `imsvisor-ctl`: manages all guests, from a guest with `manage=on`.
//!
//! Its command line holds commands with `;` between them; without one it reads commands from its serial port, until `exit`:
//!
//! | command | what |
//! |---|---|
//! | `list` | a line for each guest: number, name, state, processors, memory, weight, starts |
//! | `start NAME` | starts a guest |
//! | `stop NAME`, `stop NAME --force` | asks a guest to stop, and ends it after ten seconds; or ends it at once |
//! | `restart NAME`, `restart NAME --force` | the same, and starts it again |
//! | `stop NAME --grace=50` | it gets so many milliseconds |
//! | `counters NAME` | ticks charged, interrupting, and used to make it; VM exits; interrupts |
//! | `wait NAME STATE` | waits until a guest is in a state |
//! | `repeat NUMBER restart NAME`, with `--force` | restarts a guest again and again, each time when it runs |
//! | `cycle NUMBER NAME` | starts a guest that ends by itself so often |
//! | `exit` | ends |
#![no_std]
#![no_main]

mod commands;
mod terminal;

use commands::Client;
use guests::bare::{Guest, assigned, dma::DmaBuffer, idle, interrupts};
use guests::println;

guests::guest!(main);

static PAGE: DmaBuffer<4096> = DmaBuffer::new();

fn main(guest: &Guest) -> Result<(), &'static str> {
    let calls = assigned::hypercalls().ok_or("there is no hypervisor that can be asked")?;
    if !calls.can_manage() {
        return Err("the guest does not manage others: its module needs manage=on");
    }
    interrupts::set_handler(|_| ());
    idle::enable_interrupts();
    let mut client = Client::new(calls, assigned::batch_page(&PAGE));
    let mut errors = 0;
    if guest.command_line.trim().is_empty() {
        terminal::each_line(|line| {
            client.run(line).inspect_err(|why| println!("imsvisor-ctl: {why}")).is_ok_and(|goes_on| !goes_on)
        });
    } else {
        for command in guest.command_line.split(';') {
            if let Err(why) = client.run(command) {
                println!("imsvisor-ctl:{command}: {why}");
                errors += 1;
            }
        }
    }
    println!("@result {} errors={errors}", client.figures());
    if errors == 0 { Ok(()) } else { Err("not every command has succeeded") }
}
