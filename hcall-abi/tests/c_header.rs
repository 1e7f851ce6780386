//! Writes the C header of the interface, `include/imsvisor_abi.h`, from the crate's own constants and encoders, and says when the header
//! is out of date: `UPDATE_HEADER=1 cargo test -p hcall-abi` writes it anew.
//!
//! No number is written a second time: a field's offset is the first byte that the field changes in a structure that the crate encodes,
//! and the words about calls, statuses and features are the crate's documentation.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use hcall_abi::call::{FAULTS_MAX, HANDLES_MAX, PV_EOI_ENABLE, PV_EOI_PENDING, QUEUE_SLOTS_MAX};
use hcall_abi::cpuid::{self, Features};
use hcall_abi::info::Mapping;
use hcall_abi::{
    Call, DeviceId, DeviceInfo, FaultKind, FaultRecord, FaultStore, GuestCounters, GuestInfo, GuestState, ItemLayout,
    LifeCall, MapReply, MapRequest, MessagePair, Pasid, SlotHandle, SlotInfo, SlotState, Status, StoreId, StoreKind,
    Target, VERSION_MAJOR, VERSION_MINOR, acpi, manage, slot,
};

const TOP: &str = "\
/*
 * The interface between imsvisor and its guests, as it is on the wire: for guests that do not use the shim (imsvisor.h). Written by
 * hcall-abi/tests/c_header.rs. What the numbers mean, and in which order calls are made, is in hcall-abi's documentation.
 *
 * A call is VMCALL from 64-bit code at CPL 0: RAX = call base + IMSVISOR_CALL_…, arguments in RBX, RCX, RDX and RSI; those that the call does
 * not use are 0. RAX comes back as the result, or as minus IMSVISOR_STATUS_…. All structures are little-endian; reserved fields are 0.
 */

#ifndef IMSVISOR_ABI_H
#define IMSVISOR_ABI_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#endif
";

/// A field of a structure: its C type, its name, and where it lies.
struct Field {
    kind: &'static str,
    name: &'static str,
    offset: usize,
}

impl Field {
    fn size(&self) -> usize {
        match self.kind {
            "uint8_t" => 1,
            "uint16_t" => 2,
            "uint32_t" | "int32_t" => 4,
            "uint64_t" => 8,
            "char[16]" => 16,
            kind => panic!("{kind} has no size here"),
        }
    }
}

/// The structures' names.
const STRUCTURES: [&str; 7] =
    ["map_request", "map_reply", "device_info", "slot_info", "fault_record", "guest_info", "guest_counters"];

/// A structure in memory.
struct Structure {
    name: &'static str,
    about: &'static str,
    size: usize,
    fields: Vec<Field>,
}

impl Structure {
    /// Its fields are the bytes that differ from `base` in each of `probes`.
    fn new(
        name: &'static str,
        about: &'static str,
        base: &[u8],
        probes: &[(&'static str, &'static str, &[u8])],
    ) -> Self {
        let field = |&(kind, name, bytes): &(&'static str, &'static str, &[u8])| {
            let differ = |n: &usize| bytes[*n] != base[*n];
            let offset = (0..base.len()).find(differ).unwrap_or_else(|| panic!("{name} changes nothing"));
            let last = (0..base.len()).rfind(differ).unwrap_or(offset);
            let field = Field { kind, name, offset };
            assert!(last < offset + field.size(), "{name} is longer than {kind}");
            field
        };
        let mut fields: Vec<_> = probes.iter().map(field).collect();
        fields.sort_by_key(|field| field.offset);
        Self { name, about, size: base.len(), fields }
    }

    /// The definition in C; what no field has is reserved.
    fn text(&self) -> String {
        let mut text = format!("\n/* {}: {} bytes. */\nstruct imsvisor_{} {{\n", self.about, self.size, self.name);
        let (mut at, mut gaps) = (0, 0);
        for field in &self.fields {
            reserve(&mut text, field.offset.checked_sub(at).expect("fields do not overlap"), &mut gaps);
            let (kind, length) = field.kind.split_once('[').unwrap_or((field.kind, ""));
            let bracket = if length.is_empty() { "" } else { "[" };
            let _ = writeln!(text, "    {kind} {}{bracket}{length}; /* {} */", field.name, field.offset);
            at = field.offset + field.size();
        }
        reserve(&mut text, self.size - at, &mut gaps);
        text + "};\n"
    }
}

fn reserve(text: &mut String, bytes: usize, gaps: &mut u32) {
    if bytes != 0 {
        let _ = writeln!(text, "    uint8_t reserved{gaps}[{bytes}];");
        *gaps += 1;
    }
}

/// The bytes of a request for a structure, one field at a time: those that are not zero are its size and its version.
fn size_and_version(request: [u8; 64]) -> [[u8; 64]; 2] {
    let set: Vec<usize> = (0..64).filter(|n| request[*n] != 0).collect();
    let [size, version] = set[..] else { panic!("{set:?} are not two fields") };
    [size, version].map(|at| {
        let mut bytes = [0; 64];
        bytes[at] = request[at];
        bytes
    })
}

fn handle() -> SlotHandle {
    SlotHandle::from_bits(0x0101_0101).unwrap()
}

fn pasid() -> Option<Pasid> {
    Pasid::new(0x1_0101)
}

const PAIR: MessagePair = MessagePair { address: 0x0101_0101_0101_0101, data: 0x0101_0101 };

fn map_request() -> Structure {
    let base = MapRequest { handle: handle(), target: Target { apic_id: 0, vector: 0 }, unmask: false, cookie: 0 };
    let handle = MapRequest { handle: SlotHandle::from_bits(0x0202_0202).unwrap(), ..base };
    let target = |apic_id, vector| MapRequest { target: Target { apic_id, vector }, ..base }.to_bytes();
    let probes: [(_, _, &[u8]); 5] = [
        ("uint32_t", "handle", &handle.to_bytes()),
        ("uint16_t", "apic_id", &target(0x0101, 0)),
        ("uint8_t", "vector", &target(0, 1)),
        ("uint8_t", "flags", &MapRequest { unmask: true, ..base }.to_bytes()),
        ("uint64_t", "cookie", &MapRequest { cookie: PAIR.address, ..base }.to_bytes()),
    ];
    Structure::new("map_request", "An item of IMSVISOR_CALL_MAP", &base.to_bytes(), &probes)
}

fn map_reply() -> Structure {
    let reply = |address, data| MapReply(Ok(MessagePair { address, data })).to_bytes();
    let probes: [(_, _, &[u8]); 3] = [
        ("uint64_t", "address", &reply(PAIR.address, 0)),
        ("uint32_t", "data", &reply(0, PAIR.data)),
        ("int32_t", "status", &MapReply(Err(Status::InvalidArgument)).to_bytes()),
    ];
    Structure::new("map_reply", "The answer to an item of IMSVISOR_CALL_MAP, in its place", &reply(0, 0), &probes)
}

fn device_info() -> Structure {
    let info = DeviceInfo {
        kind: StoreKind::Array,
        slots: 0,
        free: 0,
        bar: 0,
        offset: 0,
        device: DeviceId(0),
        pasids: Pasid::new(0).zip(Pasid::new(0)),
    };
    let base = info.to_bytes();
    // Everything but size and version, which are the same in all of them.
    let [size, version] = size_and_version(DeviceInfo::request()).map(|field| xor(&base, &field));
    let kind = DeviceInfo { kind: StoreKind::Queue, ..info }.to_bytes();
    let word = PAIR.data;
    let probes: [(_, _, &[u8]); 10] = [
        ("uint32_t", "size", &size),
        ("uint16_t", "version", &version),
        ("uint16_t", "kind", &kind),
        ("uint32_t", "slots", &DeviceInfo { slots: word, ..info }.to_bytes()),
        ("uint32_t", "free", &DeviceInfo { free: word, ..info }.to_bytes()),
        ("uint32_t", "bar", &DeviceInfo { bar: word, ..info }.to_bytes()),
        ("uint32_t", "offset", &DeviceInfo { offset: word, ..info }.to_bytes()),
        ("uint32_t", "device", &DeviceInfo { device: DeviceId(0x0101), ..info }.to_bytes()),
        ("uint32_t", "first_pasid", &DeviceInfo { pasids: pasid().zip(Pasid::new(0)), ..info }.to_bytes()),
        ("uint32_t", "last_pasid", &DeviceInfo { pasids: Pasid::new(0).zip(pasid()), ..info }.to_bytes()),
    ];
    Structure::new("device_info", "What IMSVISOR_CALL_QUERY_DEVICE fills in", &base, &probes)
}

fn slot_bytes(info: SlotInfo, target: (u32, u8), cookie: u64, pair: MessagePair) -> [u8; 64] {
    let target = Target { apic_id: target.0, vector: target.1 };
    SlotInfo { mapping: Some(Mapping { target, cookie, pair }), ..info }.to_bytes()
}

const SLOT: SlotInfo = SlotInfo { mapping: None, masked: false, pending: false, limited: false, group: 0, pasid: None };

fn slot_info() -> Structure {
    let none = MessagePair { address: 0, data: 0 };
    let base = slot_bytes(SLOT, (0, 0), 0, none);
    let [size, version] = size_and_version(SlotInfo::request()).map(|field| xor(&base, &field));
    let with = |info| slot_bytes(info, (0, 0), 0, none);
    let probes: [(_, _, &[u8]); 10] = [
        ("uint32_t", "size", &size),
        ("uint16_t", "version", &version),
        ("uint16_t", "state", &SLOT.to_bytes()),
        ("uint16_t", "flags", &with(SlotInfo { masked: true, ..SLOT })),
        ("uint16_t", "group", &with(SlotInfo { group: 0x0101, ..SLOT })),
        ("uint32_t", "pasid", &with(SlotInfo { pasid: pasid(), ..SLOT })),
        ("uint64_t", "target", &slot_bytes(SLOT, (PAIR.data, 1), 0, none)),
        ("uint64_t", "cookie", &slot_bytes(SLOT, (0, 0), PAIR.address, none)),
        ("uint64_t", "address", &slot_bytes(SLOT, (0, 0), 0, MessagePair { data: 0, ..PAIR })),
        ("uint32_t", "data", &slot_bytes(SLOT, (0, 0), 0, MessagePair { address: 0, ..PAIR })),
    ];
    Structure::new("slot_info", "What IMSVISOR_CALL_QUERY_SLOT fills in", &base, &probes)
}

const FAULT: FaultRecord = FaultRecord {
    cookie: 0,
    device: DeviceId(0),
    slot: 0,
    store: FaultStore::Msix,
    kind: FaultKind::Remapping(0),
    foreign: false,
    lost: 0,
};

fn fault_record() -> Structure {
    let probes: [(_, _, &[u8]); 8] = [
        ("uint64_t", "cookie", &FaultRecord { cookie: PAIR.address, ..FAULT }.to_bytes()),
        ("uint16_t", "device", &FaultRecord { device: DeviceId(0x0101), ..FAULT }.to_bytes()),
        ("uint16_t", "slot", &FaultRecord { slot: 0x0101, ..FAULT }.to_bytes()),
        ("uint8_t", "store", &FaultRecord { store: FaultStore::Array, ..FAULT }.to_bytes()),
        ("uint8_t", "kind", &FaultRecord { kind: FaultKind::Storm, ..FAULT }.to_bytes()),
        ("uint8_t", "reason", &FaultRecord { kind: FaultKind::Remapping(1), ..FAULT }.to_bytes()),
        ("uint8_t", "flags", &FaultRecord { foreign: true, ..FAULT }.to_bytes()),
        ("uint32_t", "lost", &FaultRecord { lost: PAIR.data, ..FAULT }.to_bytes()),
    ];
    Structure::new("fault_record", "A record of IMSVISOR_CALL_READ_FAULTS", &FAULT.to_bytes(), &probes)
}

fn guest_info() -> Structure {
    let info = GuestInfo {
        guests: 0,
        state: GuestState::Stopped,
        is_own: false,
        name: [0; manage::NAME_MAX],
        vcpus: 0,
        memory_mib: 0,
        weight: 0,
        starts: 0,
    };
    let base = info.to_bytes();
    let [size, version] = size_and_version(GuestInfo::request()).map(|field| xor(&base, &field));
    let word = PAIR.data;
    let probes: [(_, _, &[u8]); 10] = [
        ("uint32_t", "size", &size),
        ("uint16_t", "version", &version),
        ("uint16_t", "state", &GuestInfo { state: GuestState::Running, ..info }.to_bytes()),
        ("uint16_t", "guests", &GuestInfo { guests: 0x0101, ..info }.to_bytes()),
        ("uint16_t", "flags", &GuestInfo { is_own: true, ..info }.to_bytes()),
        ("char[16]", "name", &GuestInfo { name: [1; manage::NAME_MAX], ..info }.to_bytes()),
        ("uint32_t", "vcpus", &GuestInfo { vcpus: word, ..info }.to_bytes()),
        ("uint32_t", "memory_mib", &GuestInfo { memory_mib: word, ..info }.to_bytes()),
        ("uint32_t", "weight", &GuestInfo { weight: word, ..info }.to_bytes()),
        ("uint64_t", "starts", &GuestInfo { starts: PAIR.address, ..info }.to_bytes()),
    ];
    Structure::new("guest_info", "What IMSVISOR_CALL_QUERY_GUEST fills in", &base, &probes)
}

fn guest_counters() -> Structure {
    let counters = GuestCounters::default();
    let base = counters.to_bytes();
    let [size, version] = size_and_version(GuestCounters::request()).map(|field| xor(&base, &field));
    let long = PAIR.address;
    let probes: [(_, _, &[u8]); 7] = [
        ("uint32_t", "size", &size),
        ("uint16_t", "version", &version),
        ("uint64_t", "building", &GuestCounters { building: long, ..counters }.to_bytes()),
        ("uint64_t", "charged", &GuestCounters { charged: long, ..counters }.to_bytes()),
        ("uint64_t", "interrupting", &GuestCounters { interrupting: long, ..counters }.to_bytes()),
        ("uint64_t", "exits", &GuestCounters { exits: long, ..counters }.to_bytes()),
        ("uint64_t", "interrupts", &GuestCounters { interrupts: long, ..counters }.to_bytes()),
    ];
    Structure::new("guest_counters", "What IMSVISOR_CALL_READ_COUNTERS fills in", &base, &probes)
}

fn structures() -> [Structure; 7] {
    [map_request(), map_reply(), device_info(), slot_info(), fault_record(), guest_info(), guest_counters()]
}

fn xor<const N: usize>(left: &[u8; N], right: &[u8; N]) -> [u8; N] {
    core::array::from_fn(|n| left[n] ^ right[n])
}

/// The bits in which these differ, which lie in one byte.
fn bits<const N: usize>(without: &[u8; N], with: &[u8; N]) -> u64 {
    let changed = xor(without, with);
    let mut set = changed.iter().filter(|byte| **byte != 0);
    let (bits, None) = (*set.next().expect("it changes something"), set.next()) else { panic!("more than one byte") };
    bits.into()
}

/// `QueryDevice` as `QUERY_DEVICE`.
fn upper(name: &str) -> String {
    let gap = |at: usize, c: char| (at != 0 && c.is_ascii_uppercase()).then_some('_');
    name.char_indices().flat_map(|(at, c)| gap(at, c).into_iter().chain([c.to_ascii_uppercase()])).collect()
}

/// The documentation in `source` of the item whose line begins with `item`, without links.
fn documentation(source: &str, item: &str) -> String {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.starts_with(item)).unwrap_or_else(|| panic!("there is no {item}"));
    let first = lines[..at].iter().rposition(|line| !line.starts_with("///")).map_or(0, |before| before + 1);
    let text = lines[first..at].iter().map(|line| line.trim_start_matches("///").trim());
    let text: Vec<&str> = text.filter(|line| !line.is_empty() && !line.contains("`]: ")).collect();
    assert!(!text.is_empty(), "{item} has no documentation");
    plain(&text.join(" "))
}

/// What a link leads to, as the header names it.
fn c_name(words: &str) -> String {
    let name = words.trim_matches('`');
    let name = name.strip_prefix("LifeCall::").or(name.strip_prefix("Call::")).unwrap_or(name);
    let is_structure = |structure: &&&str| upper(name).eq_ignore_ascii_case(structure);
    let is_life_call = || LifeCall::ALL.iter().any(|call| format!("{call:?}") == name);
    if Call::ALL.iter().any(|call| format!("{call:?}") == name) || is_life_call() {
        format!("IMSVISOR_CALL_{}", upper(name))
    } else if Status::ALL.iter().any(|status| format!("{status:?}") == name) {
        format!("IMSVISOR_STATUS_{}", upper(name))
    } else if let Some(structure) = STRUCTURES.iter().find(is_structure) {
        format!("struct imsvisor_{structure}")
    } else if name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
        format!("IMSVISOR_{name}")
    } else {
        name.to_owned()
    }
}

/// Markdown's links and marks taken out.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        plain += before;
        let Some((words, after)) = link.split_once(']') else { panic!("a link is not closed: {text}") };
        plain += &c_name(words);
        rest = after.strip_prefix('(').and_then(|target| target.split_once(')')).map_or(after, |(_, after)| after);
    }
    (plain + rest).replace(['`', '*'], "")
}

/// A comment, broken into lines.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("/*")];
    for word in text.split_whitespace() {
        if lines[lines.len() - 1].chars().count() + word.chars().count() > 134 {
            lines.push(String::from("  "));
        }
        let line = lines.last_mut().expect("there is one");
        *line += " ";
        *line += word;
    }
    lines.join("\n") + " */\n"
}

/// The names with their values, below a heading.
fn constants(about: &str, prefix: &str, values: &[(&str, u64)]) -> String {
    let mut text = format!("\n{}", comment(about));
    for (name, value) in values {
        let value = if *value < 4096 && prefix != "FEATURE_" { value.to_string() } else { format!("{value:#x}") };
        let suffix = if value.len() > 10 { "ull" } else { "u" };
        let _ = writeln!(text, "#define IMSVISOR_{prefix}{name} {value}{suffix}");
    }
    text
}

fn discovery() -> String {
    let [ebx, ecx, edx] = cpuid::signature_registers().map(u64::from);
    let bases = [
        ("FIRST_BASE", cpuid::FIRST_BASE.into()),
        ("LAST_BASE", cpuid::LAST_BASE.into()),
        ("BASE_STEP", cpuid::BASE_STEP.into()),
        ("SIGNATURE_EBX", ebx),
        ("SIGNATURE_ECX", ecx),
        ("SIGNATURE_EDX", edx),
    ];
    let leaf = |name: &'static str, leaf: u32| {
        let about = documentation(include_str!("../src/cpuid.rs"), &format!("pub const LEAF_{name}:"));
        constants(&about, "CPUID_LEAF_", &[(name, leaf.into())])
    };
    let versions = [("MAJOR", VERSION_MAJOR.into()), ("MINOR", VERSION_MINOR.into())];
    let mut text = constants("The version that this header has.", "VERSION_", &versions);
    text += &constants("CPUID: where a scan for the signature begins, ends and how it steps.", "CPUID_", &bases);
    text += &leaf("SIGNATURE", cpuid::LEAF_SIGNATURE);
    text += &leaf("VERSION", cpuid::LEAF_VERSION);
    text += &leaf("FEATURES", cpuid::LEAF_FEATURES);
    text += &leaf("LIMITS", cpuid::LEAF_LIMITS);
    for (name, Features(bit)) in Features::ALL {
        let about = documentation(include_str!("../src/cpuid.rs"), &format!("{name} ="));
        text += &constants(&about, "FEATURE_", &[(name, u64::from(*bit))]);
    }
    let signature = u32::from_le_bytes(acpi::SIGNATURE).into();
    let table = [("SIGNATURE", signature), ("FLAGS", acpi::FLAGS as u64), ("LENGTH", acpi::LENGTH as u64)];
    text +=
        &constants("The ACPI table: its signature as a dword, the offset of its flags, its length.", "ACPI_", &table);
    let about = "Flag: stores must not be used but through this interface.";
    text + &constants(about, "ACPI_FLAG_", &[("IMS_FORBIDDEN", acpi::FLAG_IMS_FORBIDDEN.into())])
}

fn calls() -> String {
    let mut text = String::new();
    for call in Call::ALL {
        let name = format!("{call:?}");
        let about = documentation(include_str!("../src/call.rs"), &format!("{name} ="));
        text += &constants(&about, "CALL_", &[(&upper(&name), call.number(0))]);
    }
    for call in LifeCall::ALL {
        let name = format!("{call:?}");
        let about = documentation(include_str!("../src/manage.rs"), &format!("{name} ="));
        text += &constants(&about, "CALL_", &[(&upper(&name), call.number(0))]);
    }
    let about = "StopGuest and RestartGuest: the most milliseconds that a guest gets to stop.";
    text += &constants(about, "", &[("GRACE_MAX", manage::GRACE_MAX)]);
    let limits = [("QUEUE_SLOTS_MAX", QUEUE_SLOTS_MAX), ("HANDLES_MAX", HANDLES_MAX), ("FAULTS_MAX", FAULTS_MAX)];
    text += &constants("The most slots of a queue store; handles and fault records of one call.", "", &limits);
    let eoi = [("ENABLE", PV_EOI_ENABLE), ("PENDING", PV_EOI_PENDING.into())];
    text + &constants("SetPvEoi: the bit beside the address; the bit in the 4 bytes.", "PV_EOI_", &eoi)
}

fn statuses() -> String {
    let mut text = String::new();
    for status in Status::ALL {
        let name = format!("{status:?}");
        let about = documentation(include_str!("../src/status.rs"), &format!("{name} ="));
        text += &constants(&about, "STATUS_", &[(&upper(&name), status.code())]);
    }
    text
}

fn values() -> String {
    let queue = StoreId::queue(DeviceId(0)).to_register();
    let mut text = constants("A device's queue store: this bit with the device ID.", "STORE_", &[("QUEUE", queue)]);
    let valid = Pasid::to_register(Pasid::new(0)).into();
    text += &constants("There is a PASID, in bits 19:0; 0 stands for none.", "PASID_", &[("VALID", valid)]);
    let shift = Target { apic_id: 1, vector: 0 }.to_register().trailing_zeros().into();
    let about = "A target: vector 7:0, and the x2APIC ID of the processor from this bit on.";
    text += &constants(about, "TARGET_", &[("APIC_ID_SHIFT", shift)]);
    let generation = SlotHandle::from_bits(!0).unwrap().index().count_ones().into();
    let about = "A handle: the slot's index in the bits below this one, the generation from here on.";
    text += &constants(about, "HANDLE_", &[("GENERATION_SHIFT", generation)]);
    text += &constants("Map: RSI.", "ITEM_", &[("LAYOUT", ItemLayout::V1.0)]);
    let flags = [("UNMASK", MapRequest::FLAG_UNMASK.into())];
    text += &constants("A map request's flag: the slot is unmasked when it is mapped.", "MAP_FLAG_", &flags);
    let versions = [
        ("DEVICE_INFO", DeviceInfo::VERSION.into()),
        ("SLOT_INFO", SlotInfo::VERSION.into()),
        ("GUEST_INFO", manage::VERSION.into()),
        ("GUEST_COUNTERS", manage::VERSION.into()),
    ];
    text += &constants("The version that the guest puts into a structure, with its size.", "LAYOUT_", &versions);
    let kinds = [("ARRAY", StoreKind::Array as u64), ("QUEUE", StoreKind::Queue as u64)];
    text += &constants("Where a device keeps its messages: device memory, system memory.", "STORE_KIND_", &kinds);
    let states = [("ALLOCATED", SlotState::Allocated as u64), ("MAPPED", SlotState::Mapped as u64)];
    text += &constants("What a slot is in: it has no target, it has one.", "SLOT_STATE_", &states);
    for state in GuestState::ALL {
        let name = format!("{state:?}");
        let about = documentation(include_str!("../src/manage.rs"), &format!("{name} ="));
        text += &constants(&about, "GUEST_STATE_", &[(&upper(&name), state as u64)]);
    }
    let info = |own| GuestInfo { is_own: own, ..GuestInfo::from_bytes(&GuestInfo::request()).unwrap() }.to_bytes();
    let about = "A guest's flag: it is the guest that asks.";
    text += &constants(about, "GUEST_FLAG_", &[("OWN", bits(&info(false), &info(true)))]);
    let flag = |info: SlotInfo| bits(&SLOT.to_bytes(), &info.to_bytes());
    let flags = [
        ("MASKED", flag(SlotInfo { masked: true, ..SLOT })),
        ("PENDING", flag(SlotInfo { pending: true, ..SLOT })),
        ("LIMITED", flag(SlotInfo { limited: true, ..SLOT })),
    ];
    let about =
        "A slot's flags: no message is sent; a message waits; it was masked because it fired faster than its limit.";
    text += &constants(about, "SLOT_FLAG_", &flags);
    let control = [
        ("MASK", slot::CONTROL_MASK.into()),
        ("PENDING", slot::CONTROL_PENDING.into()),
        ("PASID_ENABLE", slot::CONTROL_PASID_ENABLE.into()),
        ("PASID_SHIFT", slot::CONTROL_PASID_SHIFT.into()),
    ];
    let about =
        "The control dword of a slot in a store: masked; a message waits; bits 31:12 have a PASID; where it begins.";
    text + &constants(about, "SLOT_CONTROL_", &control)
}

fn faults() -> String {
    let stores =
        [("MSIX", FaultStore::Msix as u64), ("ARRAY", FaultStore::Array as u64), ("QUEUE", FaultStore::Queue as u64)];
    let mut text = constants("Which store a fault's slot is in.", "FAULT_STORE_", &stores);
    // A record whose kind is all that is not zero, beside one that has none.
    let at = fault_record().fields.iter().find(|field| field.name == "kind").expect("it has a kind").offset;
    let kind = |kind| u64::from(FaultRecord { kind, ..FAULT }.to_bytes()[at]);
    let kinds = [
        ("REMAPPING", kind(FaultKind::Remapping(0))),
        ("STORM", kind(FaultKind::Storm)),
        ("REFUSED", kind(FaultKind::Refused(Status::NoFreeVector))),
    ];
    let about = "A fault's kind: the unit refused a message (reason: its code); storm; a write could not be carried out (reason: status).";
    text += &constants(about, "FAULT_", &kinds);
    let foreign = bits(&FAULT.to_bytes(), &FaultRecord { foreign: true, ..FAULT }.to_bytes());
    let about = "A fault's flag: the message came from another function than the slot's.";
    text + &constants(about, "FAULT_FLAG_", &[("FOREIGN", foreign)])
}

fn header() -> String {
    let structures = structures().iter().map(Structure::text).collect::<String>();
    let parts = [discovery(), calls(), statuses(), values(), faults(), structures];
    format!("{TOP}{}\n#endif /* IMSVISOR_ABI_H */\n", parts.concat())
}

/// At run time: the checkout may have been copied together with what was built in it.
fn file() -> PathBuf {
    Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("include/imsvisor_abi.h")
}

#[test]
fn the_c_header_is_what_the_crate_says() {
    let written = header();
    if env::var_os("UPDATE_HEADER").is_some() {
        fs::write(file(), &written).unwrap();
    }
    let kept = fs::read_to_string(file()).unwrap_or_default();
    assert!(kept == written, "out of date: UPDATE_HEADER=1 cargo test -p hcall-abi writes it anew");
}

#[test]
fn a_c_compiler_gives_the_structures_their_sizes_and_offsets() {
    let sizes = [
        MapRequest::SIZE,
        MapRequest::SIZE,
        DeviceInfo::SIZE,
        SlotInfo::SIZE,
        FaultRecord::SIZE,
        GuestInfo::SIZE,
        GuestCounters::SIZE,
    ];
    assert_eq!(structures().map(|structure| structure.size), sizes);
    assert_eq!(structures().map(|structure| structure.name), STRUCTURES);
    let mut program = String::from("#include \"imsvisor_abi.h\"\n#include <stddef.h>\n");
    for Structure { name, size, fields, .. } in structures() {
        let _ = writeln!(program, "_Static_assert(sizeof(struct imsvisor_{name}) == {size}, \"{name}\");");
        for Field { name: field, offset, .. } in fields {
            let of = format!("offsetof(struct imsvisor_{name}, {field})");
            let _ = writeln!(program, "_Static_assert({of} == {offset}, \"{name}.{field}\");");
        }
    }
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I"]);
    compiler.arg(file().parent().unwrap()).args(["-x", "c", "-"]);
    let Ok(mut started) = compiler.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
        eprintln!("left out: there is no C compiler");
        return;
    };
    started.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
    let output = started.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
