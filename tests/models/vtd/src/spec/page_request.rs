//! The descriptor of a page request in its queue (VT-d 7.4.1): 32 bytes, of which the upper half is private data, 0 here.

/// Bytes of a descriptor.
pub(crate) const SIZE: u64 = 32;

/// Word 0: a page request.
pub(crate) const TYPE: u64 = 1;
/// Word 0: the request has a PASID.
pub(crate) const PP: u64 = 1 << 8;
pub(crate) const RID_SHIFT: u32 = 16;
pub(crate) const PASID_SHIFT: u32 = 32;

/// Word 1: read access, and write access, is asked for.
pub(crate) const READ: u64 = 1 << 0;
pub(crate) const WRITE: u64 = 1 << 1;
/// Word 1: the last request of its group.
pub(crate) const LPIG: u64 = 1 << 2;
pub(crate) const PRGI_SHIFT: u32 = 3;
/// Word 1: the page.
pub(crate) const ADDRESS: u64 = super::mask(63, 12);
