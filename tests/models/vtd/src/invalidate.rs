//! Invalidation of the DMA caches, and its register-based form (VT-d 6.5.1): CCMD, IVA and IOTLB.

use crate::Unit;
use crate::cache::{ContextScope, IotlbScope, PasidScope};
use crate::spec::regs::{self, ccmd, global, iotlb};
use crate::spec::{bit, bits, descriptor as desc, mask};
use crate::unit::queue::ignored_functions;

impl Unit {
    pub(crate) fn flush_contexts(&mut self, scope: ContextScope) {
        self.stats.context_flushes += 1;
        if scope == ContextScope::Global {
            self.due.context_cache = false;
        }
        if self.scalable() && matches!(scope, ContextScope::Domain(_)) {
            let rule = "in scalable mode the context cache knows no domains (VT-d 6.5.2.1): nothing was dropped";
            self.violation(0, 0, rule);
        }
        self.caches.flush_contexts(scope);
    }

    pub(crate) fn flush_pasids(&mut self, scope: PasidScope) {
        self.stats.pasid_flushes += 1;
        // Only after the context cache: an old context entry could bring old directories back.
        if scope == PasidScope::Global && !self.due.context_cache {
            self.due.pasid_cache = false;
        }
        self.caches.flush_pasids(scope);
    }

    pub(crate) fn flush_pages(&mut self, scope: IotlbScope) {
        self.stats.iotlb_flushes += 1;
        // Only after the context and PASID caches: an old entry could bring old pages back.
        if scope == IotlbScope::Global && !self.due.context_cache && !self.due.pasid_cache {
            self.due.iotlb = false;
        }
        self.caches.flush_pages(scope);
    }

    /// The pages of a page-selective invalidation: 2^`address_mask` pages around bits 63:12 of `address`.
    pub(crate) fn page_scope(
        &self,
        domain: u16,
        address: u64,
        address_mask: u32,
        leaves_only: bool,
    ) -> Option<IotlbScope> {
        if address_mask > self.config.max_address_mask || address_mask > 51 {
            return None;
        }
        let within = mask(11 + address_mask, 0);
        Some(IotlbScope::Pages { domain, first: address & !within, last: address | within, leaves_only })
    }

    /// CCMD with ICC set: invalidates, clears ICC, and says in CAIG what was done (0: nothing).
    pub(crate) fn invalidate_contexts_by_register(&mut self) {
        let value = self.regs.ccmd;
        if !bit(value, ccmd::ICC) || self.hung {
            return;
        }
        let granularity = bits(value, ccmd::CIRG.0, ccmd::CIRG.1);
        let domain = bits(value, ccmd::DID.0, ccmd::DID.1) as u16;
        let source_id = bits(value, ccmd::SID.0, ccmd::SID.1) as u16;
        let ignored = ignored_functions(bits(value, ccmd::FM.0, ccmd::FM.1));
        let scope = match granularity {
            1 => Some(ContextScope::Global),
            2 => Some(ContextScope::Domain(domain)),
            3 => Some(ContextScope::Device(domain, source_id, ignored)),
            _ => None,
        };
        let allowed = self.register_based_allowed(regs::CCMD, value, ccmd::RESERVED);
        let done = scope.filter(|_| allowed);
        if let Some(scope) = done {
            self.flush_contexts(scope);
        }
        let actual = done.map_or(0, |_| granularity) << ccmd::CAIG_SHIFT;
        self.regs.ccmd = value & !(1 << ccmd::ICC | 3 << ccmd::CAIG_SHIFT) | actual;
    }

    /// IOTLB with IVT set: invalidates, clears IVT, and says in IAIG what was done (0: nothing).
    pub(crate) fn invalidate_pages_by_register(&mut self) {
        let value = self.regs.iotlb;
        if !bit(value, iotlb::IVT) || self.hung {
            return;
        }
        let granularity = bits(value, iotlb::IIRG.0, iotlb::IIRG.1);
        let domain = bits(value, iotlb::DID.0, iotlb::DID.1) as u16;
        let scope = match granularity {
            1 => Some(IotlbScope::Global),
            2 => Some(IotlbScope::Domain(domain)),
            3 => self.page_scope_of_iva(domain),
            _ => None,
        };
        let allowed = self.register_based_allowed(regs::IOTLB, value, iotlb::RESERVED);
        let done = scope.filter(|_| allowed);
        if let Some(scope) = done {
            self.flush_pages(scope);
        }
        let actual = done.map_or(0, |_| granularity) << iotlb::IAIG_SHIFT;
        self.regs.iotlb = value & !(1 << iotlb::IVT | 3 << iotlb::IAIG_SHIFT) | actual;
    }

    fn page_scope_of_iva(&self, domain: u16) -> Option<IotlbScope> {
        let value = self.regs.iva;
        let address_mask = bits(value, desc::iotlb::AM.0, desc::iotlb::AM.1) as u32;
        let leaves_only = bit(value, desc::iotlb::IH);
        let scope = self.page_scope(domain, value, address_mask, leaves_only);
        scope.filter(|_| value & iotlb::IVA_RESERVED == 0)
    }

    fn register_based_allowed(&mut self, offset: u64, value: u64, reserved: u64) -> bool {
        if self.status(global::QIE) {
            let rule = "no register-based invalidation while the queue is enabled (VT-d 6.5.2)";
            self.violation(offset, value, rule);
            return false;
        }
        if value & reserved != 0 {
            self.violation(offset, value, "reserved bits of a register are zero");
            return false;
        }
        true
    }
}
