//! Interrupt posting (VT-d 5.2.3, "Interrupt-Posting Hardware Operation").

use crate::spec::irte::Irte;
use crate::spec::{pid, reason};
use crate::unit::fault::Fault;
use crate::{InterruptResult, Memory, Unit};

/// The descriptor's quadwords.
type Descriptor = [u64; pid::SIZE / 8];

fn read(mem: &mut dyn Memory, at: u64) -> Option<Descriptor> {
    let mut bytes = [0; pid::SIZE];
    if !mem.read(at, &mut bytes) {
        return None;
    }
    let mut descriptor = [0; pid::SIZE / 8];
    for (word, chunk) in descriptor.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    Some(descriptor)
}

impl Unit {
    /// Sets the vector's bit in the descriptor, and ON if a notification is due. Hardware does it in one atomic
    /// read-modify-write of the cache line; here nobody else runs meanwhile. The descriptor is never cached.
    pub(crate) fn post(&mut self, entry: Irte, mem: &mut dyn Memory) -> Result<InterruptResult, Fault> {
        let fault = |reason| Fault::with_fpd(reason, entry.fault_processing_disabled());
        let at = entry.descriptor();
        let descriptor = read(mem, at).ok_or(fault(reason::DESCRIPTOR_ACCESS))?;
        if self.descriptor_is_wrong(&descriptor) {
            return Err(fault(reason::DESCRIPTOR_RESERVED));
        }
        let control = descriptor[pid::CONTROL];
        let notify = control & pid::ON == 0 && (entry.urgent() || control & pid::SN == 0);
        let place = usize::from(entry.vector()) / 64;
        let bit = 1 << (entry.vector() % 64);
        let request = descriptor[place] | bit;
        let merged = descriptor[place] & bit != 0;
        let mut written = mem.write(at + 8 * place as u64, &request.to_le_bytes());
        if notify {
            let control = control | pid::ON;
            written &= mem.write(at + 8 * pid::CONTROL as u64, &control.to_le_bytes());
        }
        if !written {
            return Err(fault(reason::DESCRIPTOR_ACCESS));
        }
        self.stats.posted_merged += u64::from(merged);
        let event = (pid::notification_vector(control), self.notification_apic_id(control));
        Ok(InterruptResult::Posted { notify: notify.then_some(event) })
    }

    fn descriptor_is_wrong(&self, descriptor: &Descriptor) -> bool {
        let control = descriptor[pid::CONTROL];
        let xapic = !self.extended_interrupt_mode();
        control & pid::CONTROL_RESERVED != 0
            || xapic && control & pid::XAPIC_NDST_RESERVED != 0
            || descriptor[pid::CONTROL + 1..].iter().any(|word| *word != 0)
    }

    fn notification_apic_id(&self, control: u64) -> u32 {
        let destination = pid::notification_destination(control);
        if self.extended_interrupt_mode() { destination } else { destination >> 8 & 0xff }
    }
}
