//! The plan which guest gets which functions and which processors. It is made once, from all modules' command lines in their order, before any processor makes a
//! guest. So the result does not depend on which processor is faster.

use alloc::{format, string::String, vec::Vec};

use crate::{
    addr::Bdf,
    devices::{
        allocation::{Allocations, QueueAllocation, Unavailable, VirtualAllocation},
        assign_error::AssignError,
        dsa, passthrough, virtual_functions,
    },
    guest::options::{Device, Options},
    ims::most_bytes,
    irq::ports::MachinePorts,
    machine::{boot_info::Module, discovery::Machine, topology::LogicalProcessor},
    options::Smt,
    pci::{Function, scan::stands_alone},
    quirks::{self, Erratum},
};

mod placement;

use placement::Asked;

/// Bytes of the heap that a virtual processor takes, rounded up. Most of them are its decode cache.
const PROCESSOR_BYTES: u64 = 64 << 10;

/// The plan of a guest.
pub struct Plan {
    /// The options on the guest's module command line.
    pub options: Options,
    /// The numbers of the processors that run its virtual processors.
    pub processors: Vec<usize>,
    /// The node that all these processors are in, if it is known and one: the guest's memory is best there.
    pub node: Option<u32>,
    /// The functions that the guest gets.
    pub given: Vec<Assignment>,
}

impl Plan {
    /// Bytes of the heap that the guest takes with its functions, including all that it may ask for later.
    pub fn heap_bytes(&self, machine: &Machine) -> u64 {
        let cpus = self.options.cpus;
        let processors = u64::from(cpus) * PROCESSOR_BYTES;
        let each = self.given.iter().map(|given| match given {
            Assignment::Whole(function) => most_bytes(passthrough::slots(machine, function), cpus),
            Assignment::Virtual(allocation) => most_bytes(allocation.vectors.into(), cpus),
        });
        processors + each.sum::<u64>()
    }
}

/// A function that a guest gets.
#[derive(Clone, Copy)]
pub enum Assignment {
    /// A function of the machine.
    Whole(&'static Function),
    /// A virtual function.
    Virtual(VirtualAllocation),
}

/// The facts about the machine that the plan needs.
pub trait Inventory {
    /// The machine's functions.
    fn functions(&self) -> &'static [Function];
    /// Whether a unit that is up serves the function.
    fn is_covered(&self, bdf: Bdf) -> bool;
    /// Whether the firmware has reserved memory for the function (RMRR).
    fn has_reserved_memory(&self, bdf: Bdf) -> bool;
    /// Whether requests with PASIDs of the function can be attached.
    fn has_pasids(&self, bdf: Bdf) -> bool;
    /// The node that the function is in, if it is known.
    fn node(&self, bdf: Bdf) -> Option<u32>;
    /// A DSA's work queues, and its message store's slots.
    fn capacity(&self, function: &Function) -> Option<(u8, u32)>;
}

impl Inventory for (&'static Machine, &MachinePorts) {
    fn functions(&self) -> &'static [Function] {
        self.0.functions()
    }

    fn is_covered(&self, bdf: Bdf) -> bool {
        self.1.covers(bdf)
    }

    fn has_reserved_memory(&self, bdf: Bdf) -> bool {
        self.0.has_reserved_memory(bdf)
    }

    fn has_pasids(&self, bdf: Bdf) -> bool {
        self.1.has_pasids(bdf)
    }

    fn node(&self, bdf: Bdf) -> Option<u32> {
        self.0.node_of(bdf)
    }

    fn capacity(&self, function: &Function) -> Option<(u8, u32)> {
        virtual_functions::capacity(self.0, function)
    }
}

/// For each guest its plan, or why it cannot be made.
pub type Plans = Vec<Result<Plan, String>>;

/// Makes the plans for these modules. The processors that are `fit` run the virtual processors, as [`placement`] has it. The first guest that
/// asks for a function gets it.
pub fn plans(machine: &impl Inventory, modules: &[Module], fit: &[LogicalProcessor], smt: Smt) -> Plans {
    let mut allocations = Allocations::default();
    let (mut terminal, mut manager) = (None, None);
    let plan = |module| {
        let options = options(module)?;
        let own = |why| format!("{}: {why}", options.name);
        take(options.console, &options, &mut terminal)
            .map_err(|holder| own(format!("console=on: the guest {holder} has the terminal")))?;
        take(options.manages, &options, &mut manager)
            .map_err(|holder| own(format!("manage=on: the guest {holder} manages")))?;
        let given = given(machine, &options, &mut allocations);
        let given = given.map_err(|why| format!("{}: {why}", options.name))?;
        Ok(Plan { options, processors: Vec::new(), node: None, given })
    };
    let mut plans: Plans = modules.iter().map(plan).collect();
    let asked: Vec<_> = plans.iter().map(|plan| plan.as_ref().ok().map(|plan| asked(machine, plan))).collect();
    for (plan, placed) in plans.iter_mut().zip(placement::place(fit, smt, &asked)) {
        match (plan, placed) {
            (Ok(plan), Ok(processors)) => {
                plan.node = common_node(fit, &processors);
                plan.processors = processors;
            }
            (plan, Err(why)) => *plan = Err(why),
            (Err(_), Ok(_)) => {}
        }
    }
    plans
}

/// The processors that a guest asks for.
fn asked(machine: &impl Inventory, plan: &Plan) -> Asked {
    let Options { name, cpus, pin, .. } = &plan.options;
    let functions = plan.given.iter().map(|given| match given {
        Assignment::Whole(function) => function.bdf,
        Assignment::Virtual(allocation) => allocation.parent.bdf,
    });
    let near = functions.into_iter().find_map(|bdf| machine.node(bdf));
    Asked { name: name.clone(), cpus: *cpus as usize, pin: *pin, near }
}

/// The node that all these processors are in, if there is one.
fn common_node(fit: &[LogicalProcessor], processors: &[usize]) -> Option<u32> {
    let node = |number| fit.iter().find(|processor| processor.number == number).and_then(|processor| processor.node);
    let first = processors.first().and_then(|&number| node(number));
    first.filter(|_| processors.iter().all(|&number| node(number) == first))
}

/// Gives what only one guest can have to the first that asks for it. For others it is the error who has it.
fn take(asks: bool, options: &Options, holder: &mut Option<String>) -> Result<(), String> {
    match holder {
        _ if !asks => Ok(()),
        Some(holder) => Err(holder.clone()),
        None => {
            *holder = Some(options.name.clone());
            Ok(())
        }
    }
}

fn options(module: &Module) -> Result<Options, String> {
    let command_line = module.command_line.as_deref().ok_or("its module command line is not UTF-8")?;
    Options::parse(command_line).map_err(|error| {
        let name: String = command_line.chars().take_while(|c| c.is_ascii_graphic() && *c != '"').take(32).collect();
        format!("{name}: module command line: {error}")
    })
}

/// Allocates the functions that a guest asks for, all or none.
fn given(
    machine: &impl Inventory,
    options: &Options,
    allocations: &mut Allocations,
) -> Result<Vec<Assignment>, String> {
    let mut after = allocations.clone();
    let mut given = Vec::new();
    for &device in &options.devices {
        let one = match device {
            Device::Virtual { parent, vectors } => virtual_function(machine, options, (parent, vectors), &mut after),
            _ => whole(machine, options, device, &mut after),
        };
        given.push(one.map_err(|why| refused(device, why))?);
    }
    *allocations = after;
    Ok(given)
}

/// Tries `give` with one function after another until one succeeds. If none does, the error about a function itself is preferred to the one
/// that others have it.
fn first<T>(
    functions: impl Iterator<Item = &'static Function>,
    mut give: impl FnMut(&'static Function) -> Result<T, AssignError>,
) -> Result<T, AssignError> {
    let mut refusal = AssignError::NoSuchFunction;
    for function in functions {
        match give(function) {
            Ok(given) => return Ok(given),
            Err(why) if matches!(refusal, AssignError::NoSuchFunction | AssignError::Taken) => refusal = why,
            Err(_) => {}
        }
    }
    Err(refusal)
}

/// The function that the guest names, or the first DSA that it can have.
fn whole(
    machine: &impl Inventory,
    options: &Options,
    device: Device,
    allocations: &mut Allocations,
) -> Result<Assignment, AssignError> {
    let is_it = |function: &&Function| match device {
        Device::At(bdf) => function.bdf == bdf,
        _ => dsa::is_one(function),
    };
    first(machine.functions().iter().filter(is_it), |function| {
        if !allocations.is_free(function.bdf) {
            return Err(AssignError::Taken);
        }
        check(machine, function)?;
        let accepted = check_errata(function, options)?;
        allocations.take(function.bdf);
        log_accepted(accepted, function, options);
        Ok(Assignment::Whole(function))
    })
}

/// Allocates a virtual function with so many vectors, of the parent that the guest names or of the first that suffices.
fn virtual_function(
    machine: &impl Inventory,
    options: &Options,
    (parent, vectors): (Option<Bdf>, u16),
    allocations: &mut Allocations,
) -> Result<Assignment, AssignError> {
    let is_it = |function: &&Function| parent.map_or(dsa::is_one(function), |parent| function.bdf == parent);
    first(machine.functions().iter().filter(is_it), |function| {
        let accepted = check_errata(function, options)?;
        let part = part(machine, function, vectors, allocations)?;
        log_accepted(accepted, function, options);
        Ok(Assignment::Virtual(VirtualAllocation { parent: function, part, vectors }))
    })
}

/// Allocates the next queue of a parent.
fn part(
    machine: &impl Inventory,
    function: &Function,
    vectors: u16,
    allocations: &mut Allocations,
) -> Result<QueueAllocation, AssignError> {
    // Its work queues and its store are behind registers that only a DSA has.
    if !dsa::is_one(function) {
        return Err(AssignError::NoStore);
    }
    check(machine, function)?;
    let capacity = machine.capacity(function).ok_or(AssignError::NoPasid)?;
    // Functions of one parent are told apart by their PASIDs alone.
    if !machine.has_pasids(function.bdf) {
        return Err(AssignError::NoPasidRemapping);
    }
    allocations.take_part(function.bdf, capacity, vectors).map_err(AssignError::from)
}

/// Checks whether a function can be assigned.
fn check(machine: &impl Inventory, function: &Function) -> Result<(), AssignError> {
    if !machine.is_covered(function.bdf) {
        Err(AssignError::NoRemapping)
    } else if machine.has_reserved_memory(function.bdf) {
        Err(AssignError::ReservedMemory)
    } else if !stands_alone(machine.functions(), function.bdf) {
        Err(AssignError::NotAlone)
    } else {
        Ok(())
    }
}

/// Checks a function's erratum, if it has one. Returns the erratum if the guest accepts it.
fn check_errata(function: &Function, options: &Options) -> Result<Option<&'static Erratum>, AssignError> {
    match quirks::of(function.vendor, function.device) {
        Some(erratum) if !options.accepted.contains(&erratum) => Err(AssignError::Unsafe(erratum)),
        accepted => Ok(accepted),
    }
}

/// Logs the erratum that the guest accepts, if there is one.
fn log_accepted(accepted: Option<&Erratum>, function: &Function, options: &Options) {
    if let Some(Erratum { name, what, .. }) = accepted {
        log::warn!("{}: {} gets it in spite of {name}: {what}", function.bdf, options.name);
    }
}

impl From<Unavailable> for AssignError {
    fn from(why: Unavailable) -> Self {
        match why {
            Unavailable::Taken => Self::Taken,
            Unavailable::NoRoom => Self::NoRoom,
        }
    }
}

fn refused(device: Device, why: AssignError) -> String {
    match device {
        Device::At(bdf) => format!("device {bdf} is refused: {why}"),
        Device::FirstDsa => format!("device dsa is refused: {why}"),
        Device::Virtual { parent: Some(bdf), .. } => format!("device vdsa:{bdf} is refused: {why}"),
        Device::Virtual { parent: None, .. } => format!("device vdsa is refused: {why}"),
    }
}

#[cfg(test)]
mod tests;
