//! Waits for pages: a descriptor that may block on a fault requests each missing page, by PRI, before it begins.
//!
//! It begins when all of its pages are present, so nothing is done twice.

use crate::descriptor::{Descriptor, Operation, Origin, Seed};
use crate::operation::Completion;
use crate::portal::Submission;
use crate::spec::{flag, status};
use crate::{Dsa, Fault, Upstream};

const PAGE: u64 = 4096;
/// How often one page is asked for: software that says "success" and has no page for it ends up in a page fault.
const MOST_TRIES: u32 = 64;
/// Groups of page requests are numbered by 9 bits.
const GROUPS: u16 = 512;

/// A descriptor that keeps an engine while it waits for a page.
pub(crate) struct Blocked {
    submission: Submission,
    engine_group: usize,
    pasid: u32,
    /// The page that was asked for, and for what; how often in succession.
    page: Page,
    tries: u32,
    /// The page request's group, and the code of the response to it.
    group: u16,
    answer: Option<u8>,
}

/// A page that a descriptor needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Page {
    address: u64,
    write: bool,
}

impl Blocked {
    /// A descriptor that is about to begin on an engine of this group.
    pub(crate) fn new(submission: Submission, engine_group: usize) -> Self {
        Self { submission, engine_group, pasid: 0, page: Page::default(), tries: 0, group: 0, answer: None }
    }

    pub(crate) fn engine_group(&self) -> usize {
        self.engine_group
    }

    pub(crate) fn queue(&self) -> usize {
        self.submission.queue
    }

    pub(crate) fn pasid(&self) -> u32 {
        self.pasid
    }

    pub(crate) fn answered(&self) -> bool {
        self.answer.is_some()
    }
}

/// Addresses that an operation reads or writes.
struct Span {
    address: u64,
    size: u64,
    write: bool,
}

fn spans(operation: Operation) -> Vec<Span> {
    let reads = |address, size: u32| Span { address, size: size.into(), write: false };
    let writes = |address, size: u32| Span { address, size: size.into(), write: true };
    match operation {
        Operation::Nop | Operation::Drain => vec![],
        Operation::Batch { list, count } => vec![reads(list, count * 64)],
        Operation::Move { source, destination, size } => vec![reads(source, size), writes(destination, size)],
        Operation::Fill { destination, size, .. } => vec![writes(destination, size)],
        Operation::Compare { first, second, size, .. } => vec![reads(first, size), reads(second, size)],
        Operation::Crc { source, size, seed: Seed::At(seed), .. } => vec![reads(source, size), reads(seed, 4)],
        Operation::Crc { source, size, .. } => vec![reads(source, size)],
    }
}

impl Span {
    /// The first byte in each page.
    fn pages(&self) -> impl Iterator<Item = Page> + use<> {
        let (address, write) = (self.address, self.write);
        let pages = (address % PAGE + self.size).div_ceil(PAGE);
        let at = move |n: u64| if n == 0 { address } else { (address & !(PAGE - 1)).wrapping_add(n * PAGE) };
        (0..pages).map(move |n| Page { address: at(n), write })
    }
}

impl Dsa {
    /// Has a descriptor wait if it may and a page is missing. `false`: it can begin.
    pub(crate) fn block(
        &mut self,
        mut waiting: Blocked,
        descriptor: &Descriptor,
        origin: &Origin,
        up: &mut dyn Upstream,
    ) -> bool {
        let Some(pasid) = origin.pasid.filter(|_| self.may_ask()) else { return false };
        let Some(page) = self.missing(descriptor, origin, pasid, up) else { return false };
        waiting.tries = if page == waiting.page { waiting.tries + 1 } else { 1 };
        if waiting.tries > MOST_TRIES {
            return false;
        }
        let group = self.next_group;
        self.next_group = (group + 1) % GROUPS;
        self.blocked.push(Blocked { pasid, page, group, answer: None, ..waiting });
        self.stats.page_requests += 1;
        self.space.note_outstanding(true);
        up.page_request(pasid, page.address, page.write, group);
        true
    }

    /// Whether the device may send one more page request.
    fn may_ask(&self) -> bool {
        let on = self.space.bus_master() && self.space.pasid_enabled() && self.space.ats_enabled();
        on && self.blocked.len() < self.space.page_requests_allowed()
    }

    /// The first page that is missing of those that a descriptor needs, or those of its batch.
    fn missing(&self, descriptor: &Descriptor, origin: &Origin, pasid: u32, up: &mut dyn Upstream) -> Option<Page> {
        // What is refused needs none.
        let operation = self.check(descriptor, origin).ok()?;
        let mut missing = |page: &Page| up.translation(pasid, page.address, page.write) == Ok(false);
        if descriptor.has(flag::BOF) {
            let record =
                descriptor.has(flag::CRAV).then(|| Span { address: descriptor.completion(), size: 32, write: true });
            let mut pages = spans(operation).into_iter().chain(record).flat_map(|span| span.pages());
            if let Some(page) = pages.find(|page| missing(page)) {
                return Some(page);
            }
        }
        let Operation::Batch { list, count } = operation else { return None };
        let mut limits = origin.limits;
        limits.in_batch = true;
        (0..count).find_map(|n| {
            let bytes = load(pasid, list.wrapping_add(u64::from(n) * 64), up).ok()?;
            self.missing(&Descriptor::new(&bytes), &Origin { limits, ..*origin }, pasid, up)
        })
    }

    /// Goes on with the descriptors whose pages have come, or never will.
    pub(crate) fn resume(&mut self, up: &mut dyn Upstream) {
        let (answered, waiting) = std::mem::take(&mut self.blocked).into_iter().partition(Blocked::answered);
        self.blocked = waiting;
        let answered: Vec<Blocked> = answered;
        for one in answered {
            let Some((descriptor, origin)) = self.begin(&one.submission) else { continue };
            let (answer, page) = (one.answer, one.page);
            if answer != Some(0) {
                let direction = if page.write { status::WRITE } else { 0 };
                let failed = Completion::new(status::PAGE_FAULT_IR | direction, 0);
                self.end(&descriptor, &origin, Completion { fault: page.address, ..failed }, up);
            } else if !self.block(one, &descriptor, &origin, up) {
                self.run(&descriptor, &origin, up);
            }
        }
        self.space.note_outstanding(!self.blocked.is_empty());
    }

    /// The response to a page request: of this PASID and group, with PRI's code (0: try again; otherwise the page does not come). One that
    /// nobody waits for is noted in PRI's status.
    pub fn page_response(&mut self, pasid: u32, group: u16, code: u8) {
        self.stats.page_responses += 1;
        let waits = |one: &&mut Blocked| one.pasid == pasid && one.group == group && one.answer.is_none();
        let asker = self.blocked.iter_mut().find(waits);
        self.space.note_response(code == 15, asker.is_none());
        if let Some(asker) = asker {
            asker.answer = Some(code);
        }
    }
}

/// A descriptor of a batch; its list does not cross a page within one.
fn load(pasid: u32, address: u64, up: &mut dyn Upstream) -> Result<[u8; 64], Fault> {
    if up.translation(pasid, address, false) != Ok(true) {
        return Err(Fault);
    }
    let mut bytes = [0; 64];
    up.read(Some(pasid), address, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
