//! From a module to a guest that can run.

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::fmt::Display;

use super::{
    assign::{self, Prepared, prepare},
    dsa,
    guest::{Counts, Guest, Holdings, State},
    loader::Module,
    machine::Machine,
    memory::FRAMES,
    outside::Outside,
    ports::MachineService,
    windows::{Kind, Window, Windows},
    world::World,
};
use hcall_abi::cpuid::Features;

use crate::{
    addr::{Bdf, Gpa, Hpa, PAGE_SIZE},
    cpu,
    ept::{Access, Ept},
    exits::{Devices, memo::Memo},
    guest::{
        build::{self, GuestRam},
        memory_map::{BarAllocator, ECAM, ECAM_SIZE},
        options::{Device, Options},
    },
    ims::{FEATURES, GuestId, GuestSpec, LIMITS},
    memory::{FrameSource, Ram},
    pci::Function,
    vdev::{
        cpuid::Policy,
        msr::{self, Msrs},
        pci::{ConfigPage, VirtualBus},
        uart::Uart,
        x2apic::X2Apic,
    },
    vmx::{Frames, Host, LocalApic, Start, Vcpu, VirtualApic, bitmap::MsrBitmap, caps, virtual_apic},
};

/// x2APIC ID of a guest's one processor.
const APIC_ID: u32 = 0;

/// What a guest reads where its bus has no function.
static ABSENT: ConfigPage = ConfigPage::ABSENT;

/// Everything that guests are made from.
pub struct Maker {
    /// The machine.
    pub machine: &'static Machine,
    /// The service.
    pub service: &'static MachineService,
    /// The processor.
    pub host: Host,
}

impl Maker {
    /// Makes a guest of a module. On failure nothing is held any more, and the reason is said in words.
    pub fn make(&self, id: GuestId, module: &Module) -> Result<Guest, String> {
        let string = module.string.as_deref().ok_or("its string is not UTF-8")?;
        let options = Options::parse(string).map_err(|error| {
            let name: String = string.chars().take_while(|c| c.is_ascii_graphic() && *c != '"').take(32).collect();
            format!("{name}: its string: {error}")
        })?;
        let mut holdings = Holdings::new(id, self.service);
        let made = self.fill(&mut holdings, id, module, &options);
        made.map(|parts| parts.guest(holdings)).map_err(|why| format!("{}: {why}", options.name))
    }

    fn fill(&self, holdings: &mut Holdings, id: GuestId, module: &Module, options: &Options) -> Result<Parts, String> {
        self.service.ports().settle(id, cpu::this::this().number);
        let free = FRAMES.statistics().0;
        let ram =
            holdings
                .ram
                .insert(Ram::alloc(&FRAMES, options.memory).ok_or_else(|| {
                    format!("mem={}M: the machine has {} MiB left", options.memory >> 20, free >> 20)
                })?);
        let image = image(module);
        let entry = build::build(&mut Building(ram), image, &options.cmdline, 1).map_err(text)?;
        let gibibyte_pages = self.host.capabilities.ept_1g;
        let ept = holdings.ept.insert(Ept::new(&FRAMES, gibibyte_pages).map_err(debug)?);
        ept.map(&FRAMES, Gpa::new(0), ram.base(), ram.len(), Access::Ram).map_err(debug)?;
        let mut bus = VirtualBus::new();
        let mut windows = Windows::default();
        let devices = self.assign(holdings, options, &mut bus, &mut windows)?;
        let ept = holdings.ept.as_mut().ok_or("it has no page tables")?;
        map_ecam(ept, &bus, &mut windows)?;
        let eptp = ept.pointer();
        let spec = GuestSpec { guest: id, apic_ids: [APIC_ID].into(), devices };
        let domain = self.service.attach(spec).map_err(|status| format!("the service: {status}"))?;
        holdings.domain = Some(Arc::clone(&domain));
        let start = Start {
            rip: entry.rip,
            rsp: entry.rsp,
            rsi: entry.rsi,
            cr3: entry.cr3,
            gdt: (entry.gdt.as_u64(), entry.gdt_limit),
            selectors: [entry.code_selector, entry.data_selector, 0],
            tss: (0, 0x67),
        };
        let virtual_apic = self.virtual_apic(holdings, id, options)?;
        let vcpu = self.vcpu(holdings, id, eptp, &start, virtual_apic.as_ref())?;
        let devices = self.devices(bus, virtual_apic.is_some());
        Ok(Parts { id, name: options.name.clone(), marks: options.marks, vcpu, virtual_apic, devices, windows })
    }

    /// Finds the functions asked for and gives them to the guest.
    fn assign(
        &self,
        holdings: &mut Holdings,
        options: &Options,
        bus: &mut VirtualBus,
        windows: &mut Windows,
    ) -> Result<Vec<crate::ims::DeviceSpec>, String> {
        let mut bars = BarAllocator::new();
        let mut specs = Vec::new();
        for &device in &options.devices {
            let function = self.find(device).map_err(|why| refused(device, why))?;
            self.allow(function.bdf).map_err(|why| refused(device, why))?;
            let Holdings { ept: Some(ept), ram: Some(ram), frames, .. } = &mut *holdings else {
                return Err("it has no memory".into());
            };
            let prepared = prepare(self.machine, function, bus, &mut bars, ept, windows, frames);
            let Prepared { spec, assigned } = prepared.map_err(|why| refused(device, why))?;
            let attached = self.service.ports().attach(function.bdf, ram);
            holdings.functions.push(assigned);
            attached.map_err(|why| refused(device, why))?;
            specs.push(spec);
        }
        Ok(specs)
    }

    fn find(&self, device: Device) -> Result<&'static Function, assign::Refusal> {
        let is_it = |function: &&Function| match device {
            Device::At(bdf) => function.bdf == bdf,
            Device::FirstDsa => dsa::is_one(function),
        };
        let function = self.machine.functions().iter().find(is_it).ok_or(assign::Refusal::NoSuchFunction)?;
        // Its store is behind registers that only a DSA has.
        if dsa::is_one(function) { Ok(function) } else { Err(assign::Refusal::NoStore) }
    }

    fn allow(&self, bdf: Bdf) -> Result<(), assign::Refusal> {
        if !self.service.ports().covers(bdf) {
            Err(assign::Refusal::NoRemapping)
        } else if self.service.ports().is_attached(bdf) {
            Err(assign::Refusal::Taken)
        } else if self.machine.has_reserved_memory(bdf) {
            Err(assign::Refusal::ReservedMemory)
        } else {
            Ok(())
        }
    }

    /// Leaves the local APIC to the processor where it can keep it, unless the guest wants otherwise. On Bochs a guest has to ask for
    /// it: ordinary guests run into the emulator's defects there.
    fn virtual_apic(
        &self,
        holdings: &mut Holdings,
        id: GuestId,
        options: &Options,
    ) -> Result<Option<VirtualApic>, String> {
        let capable = self.host.capabilities.apicv;
        if options.apicv == Some(true) && !capable {
            return Err("apicv=on: the processor does not virtualise the local APIC".into());
        }
        if !options.apicv.unwrap_or(capable && !self.machine.is_bochs()) {
            return match options.posting {
                Some(true) => Err("posting=on: needs apicv=on".into()),
                _ => Ok(None),
            };
        }
        let destination = u8::try_from(cpu::this::this().apic_id);
        let destination = destination.map_err(|_| "the processor's APIC ID does not fit into a descriptor")?;
        let virtual_apic = VirtualApic::new(&FRAMES, destination).ok_or("memory ran out")?;
        holdings.frames.extend([(virtual_apic.page(), 1), (virtual_apic.descriptor().address(), 1)]);
        let can_post = self.service.ports().can_post();
        if options.posting == Some(true) && !can_post {
            return Err("posting=on: a remapping unit cannot post interrupts (CAP.PI)".into());
        }
        if options.posting.unwrap_or(can_post) {
            self.service.ports().post_to(id, APIC_ID, virtual_apic.descriptor().address());
        }
        Ok(Some(virtual_apic))
    }

    fn vcpu(
        &self,
        holdings: &mut Holdings,
        id: GuestId,
        eptp: u64,
        start: &Start,
        virtual_apic: Option<&VirtualApic>,
    ) -> Result<Vcpu, String> {
        let mut frame = || {
            let frame = FRAMES.alloc_zeroed(1, PAGE_SIZE).ok_or("memory ran out")?;
            holdings.frames.push((frame, 1));
            Ok::<Hpa, &str>(frame)
        };
        let frames = Frames { vmcs: frame()?, msr_bitmap: frame()? };
        let rdtscp = self.host.capabilities.secondary & caps::SECONDARY_RDTSCP != 0;
        let mut bitmap = MsrBitmap::new(msr::passthrough(rdtscp));
        let apic = match virtual_apic {
            None => LocalApic::Emulated,
            Some(apic) => {
                bitmap.allow_reads(virtual_apic::read_from_page());
                bitmap.allow_writes(virtual_apic::written_by_processor());
                LocalApic::Virtualised { page: apic.page(), descriptor: apic.descriptor().address() }
            }
        };
        // SAFETY: the frame was allocated just now and is as large as the bitmap.
        unsafe {
            let bytes = bitmap.bytes();
            FRAMES.pointer(frames.msr_bitmap).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        let vpid = id.0.checked_add(1).ok_or("too many guests")?;
        // SAFETY: the EPT maps the guest's memory, its devices and its shadows; the bitmap lets through only what `vdev::msr` says.
        unsafe { Vcpu::new(&self.host, frames, eptp, vpid, start, apic) }.map_err(|failure| format!("VMCS: {failure}"))
    }

    fn features(&self, apicv: bool) -> Features {
        if apicv { FEATURES.union(Features::POSTED) } else { FEATURES }
    }

    fn devices(&self, bus: VirtualBus, apicv: bool) -> Devices {
        let secondary = self.host.capabilities.secondary;
        let physical_bits = raw_cpuid::CpuId::new()
            .get_processor_capacity_feature_info()
            .map_or(36, |info| info.physical_address_bits());
        Devices {
            apic: X2Apic::new(APIC_ID, true),
            uart: Uart::new(),
            bus,
            msrs: Msrs::new(physical_bits, apicv),
            policy: Policy {
                vcpus: 1,
                tsc_hz: None,
                rdtscp: secondary & caps::SECONDARY_RDTSCP != 0,
                invpcid: secondary & caps::SECONDARY_INVPCID != 0,
                monitor: apicv,
                kvm_signature: false,
                features: self.features(apicv),
                limits: LIMITS,
            },
            memo: Memo::default(),
            tsc_offset: 0,
            apic_id: APIC_ID,
            physical_bits,
        }
    }
}

/// A guest but for what it holds.
struct Parts {
    id: GuestId,
    name: String,
    marks: bool,
    vcpu: Vcpu,
    virtual_apic: Option<VirtualApic>,
    devices: Devices,
    windows: Windows,
}

impl Parts {
    fn guest(self, holdings: Holdings) -> Guest {
        Guest {
            id: self.id,
            state: State::Ready,
            vcpu: self.vcpu,
            world: World::default(),
            devices: self.devices,
            virtual_apic: self.virtual_apic,
            outside: Outside::new(self.name, self.windows, self.marks),
            holdings,
            counts: Counts::default(),
            announced: false,
        }
    }
}

/// The module's bytes.
fn image(module: &Module) -> &[u8] {
    let len = usize::try_from(module.range.len).unwrap_or(0);
    if len == 0 {
        return &[];
    }
    // SAFETY: the loader put the module there; the memory was reserved before anything was allocated, is mapped, and nobody writes it.
    unsafe { core::slice::from_raw_parts(module.range.start.as_u64() as *const u8, len) }
}

/// Configuration space of bus 0: each function's page, and a page of ones for each that is not there; writes are trapped.
fn map_ecam(ept: &mut Ept, bus: &VirtualBus, windows: &mut Windows) -> Result<(), String> {
    for number in 0..ECAM_SIZE / PAGE_SIZE {
        let page = bus.function(Bdf(number as u16)).map_or(&ABSENT, |function| function.config_page());
        let gpa = ECAM.checked_add(number * PAGE_SIZE).ok_or("the ECAM window wraps")?;
        let hpa = Hpa::new(page.bytes().as_ptr() as u64);
        ept.map(&FRAMES, gpa, hpa, PAGE_SIZE, Access::Shadow).map_err(debug)?;
    }
    // SAFETY: the virtual bus answers for this kind; no memory is behind it.
    unsafe { windows.add(Window { start: ECAM, len: ECAM_SIZE, kind: Kind::Ecam }) };
    Ok(())
}

/// A guest's memory while it is built.
struct Building<'a>(&'a Ram);

impl GuestRam for Building<'_> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), build::Outside> {
        self.0.write(gpa, bytes).map_err(|_| build::Outside)
    }
}

fn refused(device: Device, why: assign::Refusal) -> String {
    match device {
        Device::At(bdf) => format!("device {bdf} is refused: {why}"),
        Device::FirstDsa => format!("device dsa is refused: {why}"),
    }
}

fn text(error: impl Display) -> String {
    format!("{error}")
}

fn debug(error: impl core::fmt::Debug) -> String {
    format!("{error:?}")
}
