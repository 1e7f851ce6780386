//! What a unit has done so far.

/// Counters since the unit was made. [`Unit::reset`](crate::Unit::reset) keeps them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Interrupt requests that a remapped-format entry delivered.
    pub remapped: u64,
    /// Interrupt requests that a posted-format entry posted.
    pub posted: u64,
    /// Those of them whose vector the descriptor had already: two that its owner sees as one.
    pub posted_merged: u64,
    /// Notification events among them.
    pub notifications: u64,
    /// Interrupt requests passed on in compatibility format.
    pub compatibility: u64,
    /// Interrupt requests refused.
    pub blocked: u64,
    /// Interrupt-remapping faults (recorded or not).
    pub interrupt_faults: u64,
    /// Root tables of scalable mode that were set.
    pub scalable_roots: u64,
    /// Walks of first-stage tables that found a page.
    pub first_stage_walks: u64,
    /// DMA pieces translated (or passed, with translation off).
    pub dma_translated: u64,
    /// DMA pieces refused.
    pub dma_faults: u64,
    /// Faults put into a fault recording register.
    pub faults_recorded: u64,
    /// Faults lost because the recording registers were full.
    pub faults_lost: u64,
    /// Interrupt entry cache invalidations.
    pub iec_flushes: u64,
    /// IOTLB invalidations.
    pub iotlb_flushes: u64,
    /// Context-cache invalidations.
    pub context_flushes: u64,
    /// PASID-cache invalidations.
    pub pasid_flushes: u64,
    /// PASID-based IOTLB invalidations.
    pub pasid_iotlb_flushes: u64,
    /// Device-TLB invalidations.
    pub device_tlb_flushes: u64,
    /// Answers to devices that ask for a translation: with the rights that were asked for.
    pub translations_granted: u64,
    /// The same without them.
    pub translations_denied: u64,
    /// Page requests put into the queue.
    pub page_requests: u64,
    /// Page requests lost because the queue was full.
    pub page_requests_lost: u64,
    /// Page group responses of software's.
    pub page_responses: u64,
    /// Invalidation wait descriptors completed.
    pub waits: u64,
    /// Descriptors taken from the invalidation queue, wrong ones included.
    pub descriptors: u64,
    /// Invalidation queue errors.
    pub queue_errors: u64,
    /// Lookups that any of the caches answered.
    pub cache_hits: u64,
    /// Lookups that had to read memory.
    pub cache_misses: u64,
    /// Messages of the unit's own (fault event, invalidation completion event).
    pub events: u64,
    /// Things that the manual forbids to software; see [`Violation`](crate::Violation).
    pub violations: u64,
}
