//! Page requests of devices, their queue, and software's responses (VT-d 7.4 to 7.7).

use crate::spec::page_request as layout;
use crate::spec::regs::{self, global, pqa, prs};
use crate::spec::{bit, bits, descriptor as desc, reason};
use crate::unit::event::Kind;
use crate::unit::fault::{Fault, Request};
use crate::{Memory, Requester, Unit};
use std::collections::{BTreeSet, VecDeque};

/// A device asks for a page, in a group of one: PRI's page request message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// Who asks, and for which PASID.
    pub requester: Requester,
    /// The page's address; bits 11:0 do not count.
    pub address: u64,
    /// For a write as well as for reads.
    pub write: bool,
    /// The group's index, 9 bits; the response has it.
    pub group: u16,
}

/// The answer on its way to the device: PRI's page request group response message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageResponse {
    /// Whom it is for.
    pub requester: Requester,
    /// The request's group.
    pub group: u16,
    /// 0 success, 1 invalid request, 15 failure.
    pub code: u8,
}

impl PageResponse {
    const SUCCESS: u8 = 0;
    const INVALID: u8 = 1;
    const FAILURE: u8 = 15;
}

/// The queue's registers, and what is on its way.
#[derive(Debug, Default)]
pub(crate) struct PageRequests {
    head: u64,
    tail: u64,
    address: u64,
    status: u32,
    /// Requests in the queue that no response has come for: requester, PASID, group.
    outstanding: BTreeSet<(u16, Option<u32>, u16)>,
    responses: VecDeque<PageResponse>,
}

impl PageRequests {
    pub(crate) fn read(&self, base: u64) -> u64 {
        match base {
            regs::PQH => self.head,
            regs::PQT => self.tail,
            _ => self.address,
        }
    }

    pub(crate) fn status(&self) -> u32 {
        self.status
    }

    /// Bytes of the queue.
    fn size(&self) -> u64 {
        4096 << bits(self.address, pqa::SIZE.0, pqa::SIZE.1)
    }

    fn next_tail(&self) -> u64 {
        (self.tail + layout::SIZE) % self.size()
    }

    /// The place for one more: one stays free, because head and tail together mean an empty queue.
    fn place(&self) -> Option<u64> {
        let room = self.address & !0xfff != 0 && self.next_tail() != self.head;
        room.then_some((self.address & !0xfff) + self.tail)
    }
}

impl Unit {
    /// A device's page request. It goes into the queue, and software is told; or it is answered at once where it cannot: when the queue
    /// is full, by a success, so that the device asks again (VT-d 7.4.1).
    pub fn page_request(&mut self, request: PageRequest, mem: &mut dyn Memory) {
        let PageRequest { requester, group, .. } = request;
        let code = match self.page_requests_allowed(requester, mem) {
            Ok(()) => self.queue_page_request(request, mem),
            Err(fault) => {
                let kind = Request::Dma { address: request.address, read: !request.write, pasid: requester.pasid };
                self.report(fault, requester.source_id, kind);
                Some(PageResponse::INVALID)
            }
        };
        let response = code.map(|code| PageResponse { requester, group, code });
        self.page_requests.responses.extend(response);
    }

    /// The next response for a device.
    pub fn take_page_response(&mut self) -> Option<PageResponse> {
        self.page_requests.responses.pop_front()
    }

    fn page_requests_allowed(&mut self, requester: Requester, mem: &mut dyn Memory) -> Result<(), Fault> {
        if !self.config.has_page_requests() || !self.status(global::TE) || !self.scalable() {
            return Err(Fault::new(reason::SM_PASID_IN_LEGACY_MODE));
        }
        let context = self.scalable_context(requester.source_id, mem)?;
        let fault = |reason| Err(Fault::with_fpd(reason, context.fault_processing_disabled()));
        match (context.page_requests_enabled(), requester.pasid.is_some() && !context.pasid_enabled()) {
            (false, _) => fault(reason::SM_PAGE_REQUESTS_DISABLED),
            (true, true) => fault(reason::SM_PASID_DISABLED),
            (true, false) => Ok(()),
        }
    }

    /// Puts a request into the queue; otherwise the code of the answer to it.
    fn queue_page_request(&mut self, request: PageRequest, mem: &mut dyn Memory) -> Option<u8> {
        let PageRequest { requester: Requester { source_id, pasid }, address, write, group } = request;
        let place = self.page_requests.place().filter(|_| self.page_requests.status & prs::PRO == 0);
        let Some(place) = place else {
            self.stats.page_requests_lost += 1;
            self.raise_page_request_status(prs::PRO);
            return Some(PageResponse::SUCCESS);
        };
        let pasid_bits = pasid.map_or(0, |pasid| layout::PP | u64::from(pasid) << layout::PASID_SHIFT);
        let first = layout::TYPE | u64::from(source_id) << layout::RID_SHIFT | pasid_bits;
        let rights = layout::READ | if write { layout::WRITE } else { 0 };
        let second = address & layout::ADDRESS | u64::from(group & 0x1ff) << layout::PRGI_SHIFT | layout::LPIG | rights;
        let words = [first, second, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        if !mem.write(place, &bytes) {
            self.violation(regs::PQA, place, "the page request queue is memory (VT-d 7.4.1)");
            return Some(PageResponse::FAILURE);
        }
        self.page_requests.outstanding.insert((source_id, pasid, group & 0x1ff));
        self.page_requests.tail = self.page_requests.next_tail();
        self.stats.page_requests += 1;
        self.raise_page_request_status(prs::PPR);
        None
    }

    /// One more condition while one is pending is no new event (VT-d 7.6).
    fn raise_page_request_status(&mut self, bit: u32) {
        let before = self.page_requests.status;
        self.page_requests.status |= bit;
        if before == 0 {
            self.raise_event(Kind::PageRequest);
        }
    }

    /// A write of PRS: 1 clears.
    pub(crate) fn write_page_request_status(&mut self, value: u32) {
        let status = &mut self.page_requests.status;
        *status &= !(value & (prs::PPR | prs::PRO));
        if *status == 0 {
            self.withdraw_event(Kind::PageRequest);
        }
    }

    /// A write of PQH, PQT or PQA. The head is software's; the others change while no requests are on their way.
    pub(crate) fn write_page_request_queue(&mut self, base: u64, value: u64) {
        if base == regs::PQA {
            return self.write_page_request_address(value);
        }
        if value & !pqa::OFFSET != 0 {
            self.violation(base, value, "reserved bits of a register are zero");
        }
        let value = value & pqa::OFFSET;
        let queue = &self.page_requests;
        if base == regs::PQT {
            if value != 0 && value != queue.tail {
                return self.violation(base, value, "PQT is the unit's but for its reset to 0 (VT-d 7.4.1)");
            }
            self.page_requests.tail = value;
            return;
        }
        let size = queue.size();
        let read = value.wrapping_sub(queue.head) & (size - 1);
        let filled = queue.tail.wrapping_sub(queue.head) & (size - 1);
        // Both to 0 in turn is how a queue is set up.
        if value >= size || read > filled && value != 0 {
            self.violation(base, value, "PQH moves to a request in the queue, or to its end (VT-d 7.4.1)");
        }
        self.page_requests.head = value;
    }

    fn write_page_request_address(&mut self, value: u64) {
        let wrong = value & (pqa::RESERVED | self.beyond_host_width()) != 0;
        if wrong {
            self.violation(regs::PQA, value, "reserved bits of a register are zero");
        }
        let queue = &mut self.page_requests;
        queue.address = if wrong { 0 } else { value };
        if queue.head != queue.tail || queue.tail >= queue.size() {
            self.violation(regs::PQA, value, "PQH and PQT are equal, and in the queue, when it is set up (VT-d 7.4.1)");
        }
    }

    /// A page group response (VT-d 7.7.1).
    pub(crate) fn queued_page_response(&mut self, words: [u64; 2]) -> Result<(), u64> {
        let field = |word: u64, (high, low)| bits(word, high, low);
        let source_id = field(words[0], desc::response::RID) as u16;
        let pasid = bit(words[0], desc::response::PP).then_some(field(words[0], desc::PASID) as u32);
        let group = field(words[1], desc::response::PRGI) as u16;
        let code = field(words[0], desc::response::CODE) as u8;
        if ![PageResponse::SUCCESS, PageResponse::INVALID, PageResponse::FAILURE].contains(&code) {
            return Err(regs::queue_error::RESERVED_FIELD);
        }
        self.stats.page_responses += 1;
        if !self.page_requests.outstanding.remove(&(source_id, pasid, group)) {
            self.violation(0, words[0], "a response answers a request that is outstanding (VT-d 7.7)");
        }
        let requester = Requester { source_id, pasid };
        self.page_requests.responses.push_back(PageResponse { requester, group, code });
        Ok(())
    }
}
