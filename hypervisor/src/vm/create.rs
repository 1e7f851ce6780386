//! Creates a guest from its boot module and its plan: memory and image, functions and their BARs, EPT, interrupt domain, chipset, and what each
//! processor needs to make its virtual processors ([`NewVcpu`]). The work is done in pieces (`cpu::fiber`); when it fails, what was made is
//! released by [`Resources`](crate::vm::resources::Resources).

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::fmt::Display;

use hcall_abi::{Pasid, cpuid::Features};
use spin::Once;

use crate::{
    addr::{Bdf, Gpa, Hpa, PAGE_SIZE},
    console::{self, terminal},
    cpu::{fiber, speculation},
    devices::{
        assign_error::AssignError,
        guest_bars::GuestSpace,
        mmio_regions::{MmioRegion, MmioRegions, RegionKind},
        passthrough::{Prepared, attach, prepare},
        plan::{Assignment, Plan},
        virtual_functions::Parents,
    },
    ept::{Ept, MapError, PageType},
    guest::{
        acpi,
        build::{self, GuestRam},
        image::Files,
        memory_map::{BarAllocator, ECAM, ECAM_SIZE},
        options::{Options, Os},
    },
    ims::{DeviceSpec, FEATURES, GuestId, GuestSpec, LIMITS},
    irq::{host_vectors::Vectors, ports::MachineService},
    machine::{boot_info::Module, discovery::Machine, memory::FRAMES},
    memory::{FrameSource, NearFrames, PhysRange, Ram},
    vdev::{
        cpuid::{KvmFeatures, Policy},
        pci::{ConfigPage, VirtualBus},
    },
    vm::{
        chipset::Chipset,
        instance::Vm,
        management::Management,
        new_vcpu::{NewVcpu, VcpuConfig},
        resources::Resources,
        switched_state,
    },
    vmx::{Capabilities, Frames, Start, VirtualApic, controls, posted::Descriptor},
};

/// The configuration space that a guest reads where its bus has no function.
static ABSENT: Once<Box<ConfigPage>> = Once::new();

/// The parts of the machine from which guests are made.
pub struct GuestBuilder {
    /// The machine.
    pub machine: &'static Machine,
    /// The service.
    pub service: &'static MachineService,
    /// The parent functions.
    pub parents: &'static Parents,
    /// What a guest that manages reaches.
    pub management: &'static dyn Management,
    /// This processor's capabilities, which are those of all.
    pub capabilities: Capabilities,
}

/// A guest that has been made, and its virtual processors, which their processors have to make.
pub struct NewGuest {
    /// The guest.
    pub vm: Arc<Vm>,
    /// Its virtual processors.
    pub vcpus: Vec<NewVcpu>,
}

/// Why a guest could not be made.
#[derive(Debug, PartialEq, Eq)]
pub struct NotMade {
    /// In words.
    pub why: String,
    /// Memory ran out: it may succeed when others have released theirs.
    pub lacks_memory: bool,
}

impl NotMade {
    fn lacks_memory(why: impl Display) -> Self {
        Self { why: text(why), lacks_memory: true }
    }
}

impl<T: Into<String>> From<T> for NotMade {
    fn from(why: T) -> Self {
        Self { why: why.into(), lacks_memory: false }
    }
}

impl GuestBuilder {
    /// Makes a guest from a module, with VPIDs from `vpid` on. On failure it releases everything, and returns the reason.
    pub fn make(&self, id: GuestId, vpid: u16, module: &Module, plan: &Plan) -> Result<NewGuest, NotMade> {
        let resources = Resources::new(id, self.service, self.parents);
        let made = self.fill(resources, (id, vpid), module, plan);
        made.map_err(|NotMade { why, lacks_memory }| NotMade {
            why: format!("{}: {why}", plan.options.name),
            lacks_memory,
        })
    }

    /// The guest's memory, of this node's if there is enough.
    fn memory(&self, options: &Options, node: Option<u32>) -> Result<Ram, NotMade> {
        let free = FRAMES.free_bytes();
        let near = node.map(|node| self.machine.memory_of_node(node)).unwrap_or_default();
        let ram = Ram::alloc(&NearFrames { frames: &FRAMES, near: &near }, options.memory).ok_or_else(|| {
            let (asked, left) = (options.memory >> 20, free >> 20);
            NotMade::lacks_memory(format_args!("mem={asked}M: the machine has {left} MiB left"))
        })?;
        let is_near = near.iter().any(|range| range.contains(ram.base()));
        if let Some(node) = node.filter(|_| !near.is_empty() && !is_near) {
            log::info!(
                "guest {}: node {node} has no {} MiB in one piece; it gets another node's",
                options.name,
                ram.len() >> 20
            );
        }
        Ok(ram)
    }

    fn fill(
        &self,
        mut resources: Resources,
        (id, vpid): (GuestId, u16),
        module: &Module,
        Plan { options, processors, node, given }: &Plan,
    ) -> Result<NewGuest, NotMade> {
        let ram = resources.ram.insert(self.memory(options, *node)?);
        let platform = acpi::Platform { vcpus: options.cpus, ims_forbidden: options.ims_forbidden };
        let files = Files { image: bytes(module.range), initrd: module.initrd.map(bytes), cmdline: &options.cmdline };
        let entry = build::build(&mut Building(ram), files, platform).map_err(text)?;
        let ept = resources.ept.insert(Ept::new(&FRAMES, self.capabilities.ept_1g).map_err(not_mapped)?);
        if speculation::plan().small_code_pages {
            ept.use_small_code_pages();
        }
        ept.map(&FRAMES, Gpa::new(0), ram.base(), ram.len(), PageType::Ram).map_err(not_mapped)?;
        ept.reserve_splits(&FRAMES).map_err(not_mapped)?;
        let mut bus = VirtualBus::new();
        let mut mmio_regions = MmioRegions::default();
        let devices = self.assign(&mut resources, (id, options.pasids), given, &mut bus, &mut mmio_regions)?;
        map_ecam(resources.ept.as_mut().ok_or("it has no page tables")?, &bus, &mut mmio_regions)?;
        let parts = self.parts(&mut resources, (id, vpid), options, processors)?;
        let spec =
            GuestSpec { guest: id, apic_ids: (0..options.cpus).collect(), hypercalls: options.hypercalls, devices };
        let domain = self.service.attach(spec).map_err(|status| format!("the service: {status}"))?;
        resources.parents.iter().for_each(|parent| parent.admit(id, &domain));
        resources.domain = Some(domain);
        let mailboxes: Vec<_> = parts.iter().map(|parts| Arc::new(parts.mailbox(self.service))).collect();
        for (number, mailbox) in (0..).zip(&mailboxes) {
            self.service.ports().mailbox(id, number, mailbox);
        }
        if options.console && !terminal::open() {
            let (own, console) = (terminal::port(), console::port());
            log::warn!(
                "guest {}: console=on: no port answers at {own}; what it writes is on {console} alone",
                options.name
            );
        }
        let chipset = Chipset::new(bus, options, self.machine.wall_clock());
        let vm = Arc::new(Vm::new(id, options, resources, mmio_regions, chipset, mailboxes, self.management));
        let start = start(&entry);
        let vcpus = parts.into_iter().map(|parts| NewVcpu::new(Arc::clone(&vm), parts, start)).collect();
        Ok(NewGuest { vm, vcpus })
    }

    /// The configuration of each virtual processor.
    fn parts(
        &self,
        resources: &mut Resources,
        (id, first_vpid): (GuestId, u16),
        options: &Options,
        processors: &[usize],
    ) -> Result<Vec<VcpuConfig>, NotMade> {
        let mut all = Vec::with_capacity(processors.len());
        for (number, &processor) in processors.iter().enumerate() {
            self.service.ports().settle(id, number as u32, processor);
            let virtual_apic = self.virtual_apic(resources, (id, number as u32), options, processor)?;
            let inbox = self.inbox(resources, (id, number as u32), options, processor)?;
            let frames = self.frames(resources, virtual_apic.is_some())?;
            let vpid = u16::try_from(number).ok().and_then(|number| first_vpid.checked_add(number));
            let vpid = vpid.ok_or("too many virtual processors")?;
            let policy = self.policy(options, virtual_apic.is_some());
            all.push(VcpuConfig { number, processor, vpid, frames, virtual_apic, inbox, policy });
        }
        Ok(all)
    }

    /// Assigns functions to the guest.
    fn assign(
        &self,
        resources: &mut Resources,
        (id, pasids): (GuestId, Option<(Pasid, Pasid)>),
        given: &[Assignment],
        bus: &mut VirtualBus,
        mmio_regions: &mut MmioRegions,
    ) -> Result<Vec<DeviceSpec>, NotMade> {
        let mut bars = BarAllocator::new();
        let mut specs = Vec::new();
        for one in given {
            let Resources { ept: Some(ept), ram: Some(ram), frames, functions, parents, .. } = &mut *resources else {
                return Err("it has no memory".into());
            };
            match one {
                Assignment::Whole(function) => {
                    let refused = |why| not_assigned(function.bdf, "", why);
                    let mut space = GuestSpace { bus, bars: &mut bars, ept, mmio_regions, frames, source: &FRAMES };
                    let prepared = prepare(self.machine, self.service.ports(), function, pasids, &mut space);
                    let Prepared { spec, assigned } = prepared.map_err(refused)?;
                    functions.get_mut().push(assigned);
                    self.attach(id, (function.bdf, pasids), ram).map_err(refused)?;
                    specs.push(spec);
                }
                Assignment::Virtual(allocation) => {
                    let refused = |why| not_assigned(allocation.parent.bdf, "vdsa:", why);
                    let service = self.service;
                    let parent = self.parents.take(id, self.machine, service, allocation.parent).map_err(refused)?;
                    if !parents.iter().any(|other| Arc::ptr_eq(other, &parent)) {
                        parents.push(Arc::clone(&parent));
                    }
                    let mut space = GuestSpace { bus, bars: &mut bars, ept, mmio_regions, frames, source: &FRAMES };
                    let spec = parent.add(id, allocation, &mut space).map_err(refused)?;
                    let pasid = spec.msix.and_then(|msix| msix.backing).map(|backing| backing.pasid);
                    // Requests without a PASID are nobody's.
                    let pasid = pasid.ok_or(AssignError::NoPasid).map_err(refused)?;
                    attach(service.ports(), id, (parent.bdf(), Some(pasid)), ram).map_err(refused)?;
                    specs.push(spec);
                }
            }
        }
        Ok(specs)
    }

    /// Attaches all requests of a function to the guest's memory, including those with the guest's PASIDs.
    fn attach(&self, id: GuestId, (bdf, pasids): (Bdf, Option<(Pasid, Pasid)>), ram: &Ram) -> Result<(), AssignError> {
        let ports = self.service.ports();
        attach(ports, id, (bdf, None), ram)?;
        let Some((first, last)) = pasids else { return Ok(()) };
        let mut all = (first.value()..=last.value()).filter_map(Pasid::new);
        all.try_for_each(|pasid| attach(ports, id, (bdf, Some(pasid)), ram))
    }

    /// Has the processor virtualise the local APIC if it can, unless the guest's options say otherwise. On Bochs the options have to ask
    /// for it, because ordinary guests run into the emulator's defects there.
    fn virtual_apic(
        &self,
        resources: &mut Resources,
        (id, number): (GuestId, u32),
        options: &Options,
        processor: usize,
    ) -> Result<Option<VirtualApic>, NotMade> {
        let capable = self.capabilities.apicv;
        if options.apicv == Some(true) && !capable {
            return Err("apicv=on: the processor does not virtualise the local APIC".into());
        }
        if !options.apicv.unwrap_or(capable && !self.machine.is_bochs()) {
            return match options.posting {
                Some(true) => Err("posting=on: needs apicv=on".into()),
                _ => Ok(None),
            };
        }
        let ports = self.service.ports();
        let destination = self.notified(processor).ok_or("the processor's APIC ID does not fit into a descriptor")?;
        let virtual_apic = VirtualApic::new(&FRAMES, destination).ok_or_else(out_of_memory)?;
        resources.frames.extend([(virtual_apic.page(), 1), (virtual_apic.descriptor().address(), 1)]);
        let can_post = ports.can_post();
        if options.posting == Some(true) && !can_post {
            return Err("posting=on: a remapping unit cannot post interrupts (CAP.PI)".into());
        }
        if options.posting == Some(true) && options.storm.is_some() {
            return Err("storm=: needs posting=off, because posted interrupts pass the hypervisor by uncounted".into());
        }
        if options.posting.unwrap_or(can_post && options.storm.is_none()) {
            ports.post_to(id, number, virtual_apic.descriptor().address(), true);
        }
        Ok(Some(virtual_apic))
    }

    /// The processor's APIC ID, as a descriptor names it.
    fn notified(&self, processor: usize) -> Option<u32> {
        let ports = self.service.ports();
        let apic_id = ports.vectors_of(processor).map(Vectors::destination)?;
        ports.notification_destination(apic_id)
    }

    /// The inbox for devices' interrupts that the hypervisor injects: a descriptor that the hypervisor reads, if all units can post. If
    /// not, the virtual processor gets host vectors of its processor.
    fn inbox(
        &self,
        resources: &mut Resources,
        (id, number): (GuestId, u32),
        options: &Options,
        processor: usize,
    ) -> Result<Option<Arc<Descriptor>>, NotMade> {
        let ports = self.service.ports();
        if options.devices.is_empty() || ports.posts_to(id) {
            return Ok(None);
        }
        let Some(destination) = self.notified(processor).filter(|_| ports.can_post()) else {
            ports.admit(id, number);
            return Ok(None);
        };
        let inbox = Descriptor::for_hypervisor(&FRAMES, destination).ok_or_else(out_of_memory)?;
        resources.frames.push((inbox.address(), 1));
        ports.post_to(id, number, inbox.address(), false);
        Ok(Some(Arc::new(inbox)))
    }

    fn frames(&self, resources: &mut Resources, apicv: bool) -> Result<Frames, NotMade> {
        let mut frame = || {
            let frame = FRAMES.alloc_zeroed(1, PAGE_SIZE).ok_or_else(out_of_memory)?;
            resources.frames.push((frame, 1));
            Ok::<Hpa, NotMade>(frame)
        };
        let frames = Frames { vmcs: frame()?, msr_bitmap: frame()? };
        let optional = switched_state::optional_msrs(&self.capabilities);
        let bitmap = switched_state::msr_bitmap(optional, apicv);
        // SAFETY: the frame was allocated just now and is as large as the bitmap.
        unsafe {
            let bytes = bitmap.bytes();
            FRAMES.pointer(frames.msr_bitmap).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        Ok(frames)
    }

    fn policy(&self, options: &Options, apicv: bool) -> Policy {
        let secondary = self.capabilities.secondary;
        let feature = |there: bool, feature: Features| if there { feature } else { Features::default() };
        let posted = feature(apicv, Features::POSTED);
        let ended = feature(!apicv, Features::PV_EOI);
        let limited = feature(options.storm.is_some(), Features::STORM_LIMIT);
        let stops = feature(options.hypercalls, Features::STOP_REQUEST);
        let manages = feature(options.manages, Features::MANAGE);
        let forbidden = feature(options.ims_forbidden, Features::IMS_FORBIDDEN);
        Policy {
            vcpus: options.cpus,
            tsc_hz: self.machine.clock().tsc_hertz(),
            rdtscp: secondary & controls::SECONDARY_RDTSCP != 0,
            invpcid: secondary & controls::SECONDARY_INVPCID != 0,
            monitor: apicv,
            kvm: (options.os == Os::Linux).then(|| KvmFeatures::served(!apicv)),
            hypercalls: options.hypercalls,
            features: FEATURES.union(posted).union(ended).union(limited).union(stops).union(manages).union(forbidden),
            limits: LIMITS,
        }
    }
}

/// The first virtual processor's start. The guest starts the others.
fn start(entry: &build::Entry) -> Start {
    Start {
        rip: entry.rip,
        rsp: entry.rsp,
        rsi: entry.rsi,
        cr3: entry.cr3,
        gdt: (entry.gdt.as_u64(), entry.gdt_limit),
        selectors: [entry.code_selector, entry.data_selector, 0],
        // Of 104 bytes, as VM entry wants one; a guest that uses a TSS loads its own.
        tss: (0, 0x67),
    }
}

/// A module's bytes. `range` is the place that the boot loader gives.
fn bytes(range: PhysRange) -> &'static [u8] {
    let len = usize::try_from(range.len).unwrap_or(0);
    if len == 0 {
        return &[];
    }
    // SAFETY: the loader put the module there; the memory was reserved before anything was allocated, is mapped, and nobody writes it.
    unsafe { core::slice::from_raw_parts(range.start.as_u64() as *const u8, len) }
}

/// Maps configuration space of bus 0: each function's page, and a page of ones for each absent function. Writes are trapped.
fn map_ecam(ept: &mut Ept, bus: &VirtualBus, mmio_regions: &mut MmioRegions) -> Result<(), NotMade> {
    let absent: &ConfigPage = ABSENT.call_once(|| Box::new(ConfigPage::ABSENT));
    for number in 0..ECAM_SIZE / PAGE_SIZE {
        let page = bus.function(Bdf(number as u32)).map_or(absent, |function| function.config_page());
        let gpa = ECAM.checked_add(number * PAGE_SIZE).ok_or("the ECAM window wraps")?;
        let hpa = Hpa::new(page.bytes().as_ptr() as u64);
        ept.map(&FRAMES, gpa, hpa, PAGE_SIZE, PageType::Shadow).map_err(not_mapped)?;
    }
    // SAFETY: the virtual bus answers for this kind; no memory is behind it.
    unsafe { mmio_regions.add(MmioRegion { start: ECAM, len: ECAM_SIZE, kind: RegionKind::Ecam }) };
    Ok(())
}

/// Bytes of an image that are copied without a break.
const PIECE: usize = 1 << 20;

/// A guest's memory while it is built.
struct Building<'a>(&'a Ram);

impl GuestRam for Building<'_> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), build::Outside> {
        let mut at = gpa;
        for piece in bytes.chunks(PIECE) {
            self.0.write(at, piece).map_err(|_| build::Outside)?;
            at = at.checked_add(piece.len() as u64).ok_or(build::Outside)?;
            fiber::cond_resched();
        }
        Ok(())
    }
}

fn out_of_memory() -> NotMade {
    NotMade::lacks_memory("memory ran out")
}

fn not_mapped(error: MapError) -> NotMade {
    NotMade { why: text(error), lacks_memory: error == MapError::OutOfMemory }
}

/// A function could not be assigned. `what`: words before its address.
fn not_assigned(bdf: Bdf, what: &str, why: AssignError) -> NotMade {
    NotMade { why: format!("device {what}{bdf} is refused: {why}"), lacks_memory: why == AssignError::OutOfMemory }
}

fn text(error: impl Display) -> String {
    format!("{error}")
}
