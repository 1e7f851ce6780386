//! Makes a virtual processor from its configuration, on the processor that runs it.

use alloc::sync::Arc;

use crate::{
    cpu::{self, speculation},
    ept::Ept,
    exits::{Devices, EndReason, PvEoi, RepeatedFault, decode_cache::DecodeCache},
    ims::GuestId,
    irq::{host_vectors::Vectors, mailbox::Mailbox, ports::MachineService, storm::RateCounter},
    vdev::{
        cpuid::{KvmFeatures, Policy},
        msr::{Msrs, Traits},
        x2apic::X2Apic,
    },
    vm::{
        instance::Vm,
        switched_state::SwitchedState,
        virtual_cpu::{State, VirtualCpu},
    },
    vmx::{
        Frames, Host, LocalApic, Start, Vcpu, VirtualApic,
        instr::{self, Forgotten},
        posted::Descriptor,
    },
};

/// A virtual processor's configuration.
pub(super) struct VcpuConfig {
    /// The virtual processor's number in the guest, which is its x2APIC ID.
    pub number: usize,
    /// The number of the processor that runs it.
    pub processor: usize,
    /// The VPID that tags its translations. No other virtual processor has it, but the same one of the guest's other lives.
    pub vpid: u16,
    /// VMCS and MSR bitmaps, which the guest's resources own.
    pub frames: Frames,
    /// The virtual-APIC page, if the processor virtualises the local APIC.
    pub virtual_apic: Option<VirtualApic>,
    /// The descriptor into which units post devices' interrupts that the hypervisor injects.
    pub inbox: Option<Arc<Descriptor>>,
    /// The guest's CPUID policy.
    pub policy: Policy,
}

impl VcpuConfig {
    /// The virtual processor's mailbox.
    pub fn mailbox(&self, service: &MachineService) -> Mailbox {
        let host_apic_id = service.ports().vectors_of(self.processor).map_or(0, Vectors::destination);
        let descriptor = self.virtual_apic.as_ref().map(|apic| Arc::clone(apic.descriptor()));
        Mailbox::new(self.processor, host_apic_id, descriptor, self.inbox.clone())
    }

    fn devices(&self) -> Devices {
        let physical_bits = raw_cpuid::CpuId::new()
            .get_processor_capacity_feature_info()
            .map_or(36, |info| info.physical_address_bits());
        let apic_id = self.number as u32;
        Devices {
            apic: X2Apic::new(apic_id, apic_id == 0),
            pv_eoi: PvEoi::default(),
            msrs: Msrs::new(Traits {
                address_width: physical_bits,
                monitor: self.policy.monitor,
                pv_eoi: self.policy.kvm.is_some_and(KvmFeatures::has_pv_eoi),
                arch_capabilities: cpu::arch_capabilities(),
                spec_ctrl: speculation::plan().spec_ctrl.map(|_| speculation::spec_ctrl_bits()),
            }),
            policy: self.policy,
            decode_cache: DecodeCache::default(),
            tsc_offset: 0,
            apic_id,
            physical_bits,
            exits_to_timer_check: 1,
            held_until: 0,
            repeated_fault: RepeatedFault::default(),
        }
    }
}

/// A virtual processor that its processor has not made yet. Its VMCS holds state of that processor, so only that processor can make it.
pub struct NewVcpu {
    vm: Arc<Vm>,
    parts: VcpuConfig,
    start: Start,
}

impl NewVcpu {
    /// A virtual processor of guest `vm`. `start` is the first instruction of the guest's first one.
    pub(super) fn new(vm: Arc<Vm>, parts: VcpuConfig, start: Start) -> Self {
        Self { vm, parts, start }
    }

    /// Its guest.
    pub fn guest(&self) -> GuestId {
        self.vm.id
    }

    /// The number of the processor that runs it.
    pub fn processor(&self) -> usize {
        self.parts.processor
    }

    /// Makes the virtual processor, on its processor, where its VMCS is current then. If that fails, the guest ends, and this returns what
    /// [`Vm::leave`] does.
    pub fn create(self, host: &Host) -> Result<VirtualCpu, bool> {
        let Self { vm, parts, start } = self;
        let apic = match &parts.virtual_apic {
            None => LocalApic::Emulated,
            Some(apic) => LocalApic::Virtualised { page: apic.page(), descriptor: apic.descriptor().address() },
        };
        let eptp = vm.resources.ept.as_ref().map_or(0, Ept::pointer);
        // The guest may have had a life before this one.
        instr::invvpid(parts.vpid).unwrap_or_else(|failure| panic!("INVVPID {}: {failure}", parts.vpid));
        // SAFETY: the EPT maps the guest's memory, its devices and its shadows; the bitmap lets through only what `vdev::msr` says; the
        // frames are the guest's, which gives them back after its virtual processors have left.
        match unsafe { Vcpu::new(host, parts.frames, eptp, parts.vpid, &start, apic) } {
            Ok(vcpu) => Ok(VirtualCpu {
                number: parts.number,
                state: if parts.number == 0 { State::Ready } else { State::WaitForSipi },
                vcpu,
                switched: SwitchedState::default(),
                devices: parts.devices(),
                virtual_apic: parts.virtual_apic,
                nmi: false,
                rate_counter: vm.storm_limit.map(RateCounter::new),
                mailbox: vm.mailbox(parts.number).clone(),
                ran: 0,
                interrupted_others: false,
                sleeps_through_timer: false,
                is_suppressed: false,
                vm,
            }),
            Err(failure) => {
                log::error!("guest {}: VMCS: {failure}", vm.name);
                vm.end(EndReason::Killed("its VMCS could not be made"));
                Err(vm.leave(Forgotten::never_ran()))
            }
        }
    }
}
