//! RDMSR and WRMSR of registers that the MSR bitmap traps.

use super::{Action, Devices, Platform};
use crate::{
    cpu::bits::cr0,
    memory::Ram,
    vdev::{
        msr::{Effect, VcpuState},
        x2apic,
    },
    vmx::{Registers, Vcpu, fields},
};

/// Handles RDMSR.
#[inline(never)]
pub fn read(vcpu: &mut Vcpu, devices: &mut Devices, ram: &Ram, now: u64) -> Action {
    devices.pv_eoi.settle(&mut devices.apic, ram);
    let register = vcpu.registers.get32(Registers::RCX);
    let state = state(vcpu, devices, now);
    match devices.msrs.read(register, state, &mut devices.apic) {
        Ok(value) => {
            vcpu.registers.set_edx_eax(value);
            Action::Advance
        }
        Err(_) => Action::GENERAL_PROTECTION,
    }
}

/// Ends an interrupt, if that is what the WRMSR does. Each interrupt ends so, and that changes nothing else.
#[inline(always)]
pub fn end_interrupt(vcpu: &Vcpu, devices: &mut Devices) -> bool {
    let is_end = vcpu.registers.get32(Registers::RCX) == x2apic::EOI
        && vcpu.registers.edx_eax() == 0
        && !devices.pv_eoi.is_offered();
    if is_end {
        devices.apic.end();
    }
    is_end
}

/// Handles WRMSR.
#[inline(never)]
pub fn write(vcpu: &mut Vcpu, devices: &mut Devices, ram: &Ram, platform: &mut impl Platform, now: u64) -> Action {
    devices.pv_eoi.settle(&mut devices.apic, ram);
    let register = vcpu.registers.get32(Registers::RCX);
    let value = vcpu.registers.edx_eax();
    let state = state(vcpu, devices, now);
    match devices.msrs.write(register, value, state, &mut devices.apic) {
        Ok(effect) => {
            apply(vcpu, devices, platform, effect, now);
            Action::Advance
        }
        Err(_) => Action::GENERAL_PROTECTION,
    }
}

fn state(vcpu: &Vcpu, devices: &Devices, now: u64) -> VcpuState {
    VcpuState {
        tsc: devices.guest_tsc(now),
        tsc_offset: devices.tsc_offset,
        efer: vcpu.efer(),
        paging: vcpu.cr0() & cr0::PG != 0,
    }
}

fn apply(vcpu: &mut Vcpu, devices: &mut Devices, platform: &mut impl Platform, effect: Effect, now: u64) {
    match effect {
        Effect::None => {}
        Effect::Efer(value) => vcpu.set_efer(value),
        Effect::Pat(value) => vcpu.write(fields::GUEST_PAT, value),
        Effect::TscOffset(offset) => {
            let before = devices.guest_tsc(now);
            devices.tsc_offset = offset;
            devices.apic.tsc_jumped(before, devices.guest_tsc(now));
            vcpu.write(fields::TSC_OFFSET, offset);
            devices.request_timer_check();
        }
        Effect::SpecCtrl(value) => vcpu.set_spec_ctrl(value),
        Effect::PvEoi(at) => platform.set_pv_eoi(at),
        Effect::Apic(x2apic::Effect::Ipi(ipi)) => platform.ipi(ipi),
        Effect::Apic(x2apic::Effect::Timer) => devices.request_timer_check(),
        // The run loop looks at what is pending before every entry.
        Effect::Apic(x2apic::Effect::None | x2apic::Effect::Recheck | x2apic::Effect::Eoi(_)) => {}
    }
}
