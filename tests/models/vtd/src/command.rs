//! The global command register (VT-d 11.4, GCMD_REG): each field with its conditions.

use crate::cache::{ContextScope, IotlbScope, PasidScope};
use crate::spec::bits;
use crate::spec::regs::{self, RTADDR_TTM, TTM_LEGACY, TTM_SCALABLE, global, irta};
use crate::{Memory, Unit};

/// The fields in the order in which one write carries them out: table pointers before the switches that use them.
const ORDER: [u32; 9] = [
    global::SRTP,
    global::SIRTP,
    global::SFL,
    global::WBF,
    global::EAFL,
    global::QIE,
    global::IRE,
    global::CFI,
    global::TE,
];

impl Unit {
    /// A write of GCMD. The manual allows one field at a time and no reserved bits. A write with more is noted and carried out
    /// field by field, as real units do. A field whose own conditions are not met changes nothing.
    pub(crate) fn command(&mut self, value: u32, mem: &mut dyn Memory) {
        if value & !(global::SWITCHES | global::ONE_SHOT) != 0 {
            self.violation(regs::GCMD, value.into(), "GCMD: reserved bits are zero (ignored)");
        }
        let switched = (value ^ self.regs.gsts) & global::SWITCHES;
        let wanted = switched | value & global::ONE_SHOT;
        if wanted.count_ones() > 1 {
            let rule = "GCMD: one field at a time, the others as GSTS has them, without the commands (all carried out)";
            self.violation(regs::GCMD, value.into(), rule);
        }
        if self.hung {
            return;
        }
        for field in ORDER.into_iter().filter(|field| wanted & field != 0) {
            if let Err(rule) = self.apply(field, value & field != 0, mem) {
                self.violation(regs::GCMD, value.into(), rule);
            }
        }
    }

    /// One field: a command, or a switch that goes on or off.
    fn apply(&mut self, field: u32, on: bool, mem: &mut dyn Memory) -> Result<(), &'static str> {
        match field {
            global::SRTP => self.set_root_table()?,
            global::SIRTP => self.set_interrupt_table()?,
            global::TE => self.check_translation(on)?,
            global::IRE => self.check_interrupt_remapping(on)?,
            global::QIE => self.check_queue(on)?,
            global::CFI if self.config.interrupt_remapping => {}
            _ => return Err("GCMD: a capability that CAP and ECAP do not report"),
        }
        self.complete(field, on);
        if field == global::QIE {
            self.run_queue(mem);
        }
        Ok(())
    }

    /// Shows the command's effect in GSTS.
    fn complete(&mut self, field: u32, on: bool) {
        if on {
            self.regs.gsts |= field;
        } else {
            self.regs.gsts &= !field;
        }
    }

    fn set_root_table(&mut self) -> Result<(), &'static str> {
        let value = self.regs.rtaddr;
        let mode = bits(value, RTADDR_TTM.0, RTADDR_TTM.1);
        if mode != TTM_LEGACY && !(mode == TTM_SCALABLE && self.config.scalable_mode) {
            return Err("RTADDR: a translation table mode that ECAP does not report");
        }
        if self.status(global::TE) && (value ^ self.regs.root) >> RTADDR_TTM.1 & 0b11 != 0 {
            return Err("RTADDR: the translation table mode is not changed while translation is on");
        }
        if value & self.beyond_host_width() != 0 {
            return Err("RTADDR: the table lies within the host address width");
        }
        self.regs.root = value;
        self.stats.scalable_roots += u64::from(mode == TTM_SCALABLE);
        if self.config.flush_on_srtp {
            self.caches.flush_contexts(ContextScope::Global);
            self.caches.flush_pasids(PasidScope::Global);
            self.caches.flush_pages(IotlbScope::Global);
        } else {
            self.due.context_cache = true;
            self.due.pasid_cache = mode == TTM_SCALABLE;
            self.due.iotlb = true;
        }
        Ok(())
    }

    fn set_interrupt_table(&mut self) -> Result<(), &'static str> {
        if !self.config.interrupt_remapping {
            return Err("GCMD.SIRTP: ECAP.IR is clear");
        }
        let value = self.regs.irta;
        if value & self.beyond_host_width() != 0 {
            return Err("IRTA: the table lies within the host address width");
        }
        let bytes = 16u64 << (bits(value, irta::SIZE.0, irta::SIZE.1) + 1);
        if !(value & !0xfff).is_multiple_of(bytes.max(4096)) {
            return Err("IRTA: a table larger than 4 KiB is aligned to its size");
        }
        self.regs.table = value;
        if self.config.flush_on_sirtp {
            self.caches.flush_interrupts(None);
        } else {
            self.due.interrupt_entry_cache = true;
        }
        Ok(())
    }

    fn check_translation(&mut self, on: bool) -> Result<(), &'static str> {
        if on && !self.status(global::SRTP) {
            return Err("GCMD.TE: set the root table pointer first");
        }
        if on && (self.due.context_cache || self.due.pasid_cache || self.due.iotlb) {
            let rule = "GCMD.SRTP: invalidate the context cache, in scalable mode the PASID cache, then the IOTLB, globally (went on with old entries)";
            self.violation(regs::GCMD, u64::from(global::TE), rule);
        }
        Ok(())
    }

    fn check_interrupt_remapping(&mut self, on: bool) -> Result<(), &'static str> {
        if !self.config.interrupt_remapping {
            return Err("GCMD.IRE: ECAP.IR is clear");
        }
        if on && !self.status(global::SIRTP) {
            return Err("GCMD.IRE: set the interrupt-remapping table pointer first");
        }
        if on && !self.status(global::QIE) {
            return Err("GCMD.IRE: enable queued invalidation first");
        }
        if on && self.due.interrupt_entry_cache {
            let rule = "GCMD.SIRTP: invalidate the interrupt entry cache globally (went on with old entries)";
            self.violation(regs::GCMD, u64::from(global::IRE), rule);
        }
        Ok(())
    }

    fn check_queue(&mut self, on: bool) -> Result<(), &'static str> {
        if !self.config.queued_invalidation {
            return Err("GCMD.QIE: ECAP.QI is clear");
        }
        if !on {
            if self.queue.head != self.queue.tail {
                return Err("GCMD.QIE: the queue is empty when it is disabled");
            }
            self.queue.head = 0;
            return Ok(());
        }
        if self.queue.tail != 0 {
            return Err("GCMD.QIE: IQT is zero when the queue is enabled");
        }
        if self.queue.address & self.beyond_host_width() != 0 {
            return Err("IQA: the queue lies within the host address width");
        }
        Ok(())
    }
}
