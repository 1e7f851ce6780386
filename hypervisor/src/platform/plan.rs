//! Who gets what: read from all modules' strings once, in their order, before any processor makes a guest. So it does not depend on
//! which processor is faster.

use alloc::{format, string::String, vec::Vec};

use super::{assign::Refusal, dsa, loader::Module, machine::Machine, ports::MachinePorts};
use crate::{
    addr::Bdf,
    guest::options::{Device, Options},
    pci::Function,
};

/// A guest as it is to be made.
pub struct Plan {
    /// What its module's string asks for.
    pub options: Options,
    /// The numbers of the processors that run its virtual processors.
    pub processors: Vec<usize>,
    /// The functions that it gets.
    pub functions: Vec<&'static Function>,
}

/// The plans of all guests, or why there is none.
pub type Plans = Vec<Result<Plan, String>>;

/// Makes the plans for these modules. Virtual processors are dealt out in turn to the processors that are `fit`; a function goes to the
/// first who asks for it.
pub fn plans(machine: &'static Machine, ports: &MachinePorts, modules: &[Module], fit: &[usize]) -> Plans {
    let mut turns = fit.iter().copied().cycle();
    let mut taken = Vec::new();
    let plan = |module| {
        let options = options(module)?;
        let processors = turns.by_ref().take(options.cpus as usize).collect();
        let functions = functions(machine, ports, &options, &mut taken);
        let functions = functions.map_err(|why| format!("{}: {why}", options.name))?;
        Ok(Plan { options, processors, functions })
    };
    modules.iter().map(plan).collect()
}

fn options(module: &Module) -> Result<Options, String> {
    let string = module.string.as_deref().ok_or("its string is not UTF-8")?;
    Options::parse(string).map_err(|error| {
        let name: String = string.chars().take_while(|c| c.is_ascii_graphic() && *c != '"').take(32).collect();
        format!("{name}: its string: {error}")
    })
}

/// The functions that a guest asks for, all of them or none.
fn functions(
    machine: &'static Machine,
    ports: &MachinePorts,
    options: &Options,
    taken: &mut Vec<Bdf>,
) -> Result<Vec<&'static Function>, String> {
    let mut found: Vec<&Function> = Vec::new();
    for &device in &options.devices {
        let is_free = |function: &Function| {
            !taken.contains(&function.bdf) && !found.iter().any(|other| other.bdf == function.bdf)
        };
        found.push(find(machine, ports, device, is_free).map_err(|why| refused(device, why))?);
    }
    taken.extend(found.iter().map(|function| function.bdf));
    Ok(found)
}

fn find(
    machine: &'static Machine,
    ports: &MachinePorts,
    device: Device,
    is_free: impl Fn(&Function) -> bool,
) -> Result<&'static Function, Refusal> {
    let is_it = |function: &&Function| match device {
        Device::At(bdf) => function.bdf == bdf,
        Device::FirstDsa => dsa::is_one(function),
    };
    let all = || machine.functions().iter().filter(is_it);
    all().next().ok_or(Refusal::NoSuchFunction)?;
    let function = all().find(|function| is_free(function)).ok_or(Refusal::Taken)?;
    // Its store is behind registers that only a DSA has.
    if !dsa::is_one(function) {
        Err(Refusal::NoStore)
    } else if !ports.covers(function.bdf) {
        Err(Refusal::NoRemapping)
    } else if machine.has_reserved_memory(function.bdf) {
        Err(Refusal::ReservedMemory)
    } else {
        Ok(function)
    }
}

fn refused(device: Device, why: Refusal) -> String {
    match device {
        Device::At(bdf) => format!("device {bdf} is refused: {why}"),
        Device::FirstDsa => format!("device dsa is refused: {why}"),
    }
}
