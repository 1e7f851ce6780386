//! The header, and the functions on the native way.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use guest_shim::hcall_abi::{Call, GuestState, LifeCall, Status, acpi};

use crate::decide::*;
use crate::domain::*;
use crate::query;

/// What a domain that programs its store itself is opened with.
pub(crate) struct Native {
    pub(crate) memory: Vec<[u32; 4]>,
    states: Vec<ImsSlotState>,
    domain: Box<ImsDomain>,
}

impl Native {
    pub(crate) fn new(slots: usize) -> Self {
        let states = vec![ImsSlotState { opaque: [0; 6] }; slots];
        Self { memory: vec![[0, 0, 0, 1]; slots], states, domain: Box::new(ImsDomain { opaque: [0; 16] }) }
    }

    pub(crate) fn open(&mut self) -> *mut ImsDomain {
        let (store, slots) = (self.memory.as_mut_ptr().cast(), self.memory.len());
        let domain: *mut ImsDomain = &mut *self.domain;
        // SAFETY: everything is ours, and the test keeps it until the end.
        let opened = unsafe { ims_open_native(domain, store, slots as u32, self.states.as_mut_ptr(), slots) };
        assert_eq!(opened, 0);
        domain
    }
}

const ALIGNED: &str = "\n#define IMS_ALIGNED(n) __attribute__((aligned(n)))\n";

/// The status codes, as C has them.
fn statuses() -> String {
    let constant = |status: &Status| {
        let name: String = format!("{status:?}")
            .char_indices()
            .flat_map(|(at, c)| {
                let gap = (at != 0 && c.is_ascii_uppercase()).then_some('_');
                gap.into_iter().chain([c.to_ascii_uppercase()])
            })
            .collect();
        format!("#define IMS_{name} {} /* {status} */\n", status.code())
    };
    format!(
        "\n/* Why a call failed: minus one of these is returned. */\n{}",
        Status::ALL.iter().map(constant).collect::<String>()
    )
}

#[test]
fn feature_c_abi_the_header_is_what_the_library_has() {
    // At run time: the checkout may have been copied together with what was built in it.
    let here = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).to_owned();
    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        include_guard: Some("IMSVISOR_H".into()),
        cpp_compat: true,
        documentation_style: cbindgen::DocumentationStyle::C99,
        header: Some("/* The guest shim for C. Written by cbindgen: see guest-shim/c/src/lib.rs. */".into()),
        // What freestanding C has.
        no_includes: true,
        sys_includes: ["stdbool.h", "stddef.h", "stdint.h"].map(String::from).into(),
        after_includes: Some(format!("{ALIGNED}{}", statuses())),
        layout: cbindgen::LayoutConfig { aligned_n: Some("IMS_ALIGNED".into()), ..Default::default() },
        usize_is_size_t: true,
        line_length: 120,
        ..cbindgen::Config::default()
    };
    let bindings = cbindgen::Builder::new().with_config(config).with_src(here.join("src/lib.rs")).generate();
    let mut written = Vec::new();
    bindings.expect("the header can be written").write(&mut written);
    let (header, written) = (here.join("include/imsvisor.h"), String::from_utf8(written).unwrap());
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&header, &written).unwrap();
    }
    let kept = std::fs::read_to_string(&header).unwrap_or_default();
    assert!(kept == written, "out of date: UPDATE_HEADER=1 cargo test -p guest-shim-c writes it anew");
}

/// The function that makes a call of guests' lives.
fn life_function(call: LifeCall) -> &'static str {
    match call {
        LifeCall::SetStopRequest => "ims_set_stop_request",
        LifeCall::QueryGuest => "ims_query_guest",
        LifeCall::StartGuest => "ims_start_guest",
        LifeCall::StopGuest => "ims_stop_guest",
        LifeCall::RestartGuest => "ims_restart_guest",
        LifeCall::ReadCounters => "ims_guest_counters",
    }
}

#[test]
fn every_call_of_guests_lives_has_a_function_and_every_state_its_number() {
    let header = include_str!("../include/imsvisor.h");
    for call in LifeCall::ALL {
        assert!(header.contains(&format!(" {}(", life_function(call))), "{call:?}");
    }
    use crate::manage::*;
    let numbers = [IMS_GUEST_STOPPED, IMS_GUEST_STARTING, IMS_GUEST_RUNNING, IMS_GUEST_STOPPING, IMS_GUEST_FAILED];
    assert_eq!(GuestState::ALL.map(|state| state as u16), numbers);
}

/// The function that makes a call: a new call needs one.
fn function(call: Call) -> &'static str {
    match call {
        Call::Nop => "ims_nop",
        Call::Discover => "ims_device",
        Call::QueryDevice => "ims_query_device",
        Call::Alloc => "ims_alloc",
        Call::Free => "ims_free",
        Call::Map => "ims_map_many",
        Call::Unmap => "ims_unmap",
        Call::Mask => "ims_mask",
        Call::Unmask => "ims_unmask",
        Call::SetAffinity => "ims_set_affinity",
        Call::Enable => "ims_enable",
        Call::AllocMany => "ims_alloc_many",
        Call::FreeMany => "ims_free_many",
        Call::FreeGroup => "ims_free_group",
        Call::SetAux => "ims_set_pasid",
        Call::QuerySlot => "ims_query_slot",
        Call::ReadFaults => "ims_read_faults",
        Call::OpenQueue => "ims_open_queue",
        Call::SetPvEoi => "ims_set_pv_eoi",
    }
}

#[test]
fn feature_c_abi_each_call_has_a_function_in_the_header() {
    let header = include_str!("../include/imsvisor.h");
    for call in Call::ALL {
        let declared = format!("int32_t {}(", function(call));
        assert!(header.contains(&declared), "{call:?}: {declared}");
    }
}

#[test]
fn only_its_own_table_with_the_flag_forbids() {
    let mut table = [0; acpi::LENGTH];
    table[..4].copy_from_slice(&acpi::SIGNATURE);
    // SAFETY: the table is ours.
    let forbids = |table: &[u8]| unsafe { ims_table_forbids(table.as_ptr(), table.len()) };
    assert!(!forbids(&table));
    table[acpi::FLAGS] = acpi::FLAG_IMS_FORBIDDEN as u8;
    assert!(forbids(&table) && !forbids(&table[..acpi::LENGTH - 1]));
    table[0] = b'X';
    assert!(!forbids(&table));
    // SAFETY: null is nothing.
    assert!(!unsafe { ims_table_forbids(core::ptr::null(), 0) });
}

#[test]
fn a_native_domain_works_through_the_c_functions() {
    let mut memory = [[0u32, 0, 0, 1]; 4];
    let mut states = [ImsSlotState { opaque: [0; 6] }; 4];
    let mut domain = ImsDomain { opaque: [0; 16] };
    let mut handle = 0;
    // SAFETY: everything is ours, and lives until the end.
    unsafe {
        let store = (&raw mut memory).cast();
        assert_eq!(ims_open_native(&mut domain, store, 4, states.as_mut_ptr(), 4), 0);
        assert_eq!(ims_alloc(&mut domain, 0, &mut handle), 0);
        let request = ImsRequest { apic_id: 2, vector: 0x41, unmask: true, cookie: 9 };
        assert_eq!(ims_map(&mut domain, handle, &request), 0);
        assert_eq!(memory[0], [0xfee0_2000, 0, 0x41, 0]);
        let mut info = query::ImsSlotInfo::default();
        assert_eq!(query::ims_query_slot(&mut domain, handle, &mut info), 0);
        assert_eq!((info.mapped, info.apic_id, info.vector, info.pasid), (true, 2, 0x41, -1));
        assert_eq!(ims_mask(&mut domain, handle), 0);
        assert_eq!(ims_set_affinity(&mut domain, handle, 3, 0x42), 0);
        assert_eq!(ims_set_pasid(&mut domain, handle, 0x10_0000), -(Status::InvalidArgument.code() as i32));
        assert_eq!(memory[0], [0xfee0_3000, 0, 0x42, 1]);
        assert_eq!(ims_free(&mut domain, handle), 0);
        assert_eq!(ims_free(&mut domain, handle), -(Status::StaleHandle.code() as i32));
        assert_eq!(ims_map(&mut domain, 0, &request), -(Status::InvalidArgument.code() as i32));
    }
    assert_eq!(memory[0], [0, 0, 0, 1]);
}

#[test]
fn the_policys_answers_have_their_numbers() {
    let interface = ImsInterface { base: 0x4000_0100, ..ImsInterface::default() };
    // SAFETY: null, or ours.
    let decide = |bare, forbidden, interface| unsafe { ims_decide(bare, forbidden, interface) };
    let none = core::ptr::null();
    assert_eq!(decide(true, false, none), IMS_NATIVE);
    assert_eq!(decide(true, true, &raw const interface), IMS_HYPERCALL);
    assert_eq!(decide(true, true, none), IMS_REFUSED_FORBIDDEN);
    assert_eq!(decide(false, false, none), IMS_REFUSED_VIRTUALISED);
}

/// What the two headers both name, in the words of each, without their prefixes.
const IN_BOTH: [(&str, &str); 8] = [
    ("STORE_ARRAY", "STORE_KIND_ARRAY"),
    ("STORE_QUEUE", "STORE_KIND_QUEUE"),
    ("FAULT_REMAPPING", "FAULT_REMAPPING"),
    ("FAULT_STORM", "FAULT_STORM"),
    ("FAULT_REFUSED", "FAULT_REFUSED"),
    ("FAULT_STORE_MSIX", "FAULT_STORE_MSIX"),
    ("FAULT_STORE_ARRAY", "FAULT_STORE_ARRAY"),
    ("FAULT_STORE_QUEUE", "FAULT_STORE_QUEUE"),
];

#[test]
fn feature_c_abi_a_c_compiler_takes_both_headers_and_their_numbers_agree() {
    let mut program = String::from("#include \"imsvisor.h\"\n#include \"imsvisor_abi.h\"\n");
    let own_statuses = statuses();
    let names = own_statuses.lines().filter_map(|line| line.strip_prefix("#define IMS_")?.split(' ').next());
    let names = names.map(|name| (name.to_owned(), format!("STATUS_{name}")));
    let others = IN_BOTH.map(|(ours, raw)| (ours.to_owned(), raw.to_owned()));
    for (ours, raw) in names.chain(others) {
        program += &format!("_Static_assert(IMS_{ours} == IMSVISOR_{raw}, \"{ours}\");\n");
    }
    let here = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).to_owned();
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]);
    for headers in ["include", "../../hcall-abi/include"] {
        compiler.arg("-I").arg(here.join(headers));
    }
    let compiler = compiler.args(["-x", "c", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut started) = compiler.spawn() else {
        eprintln!("left out: there is no C compiler");
        return;
    };
    started.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
    let output = started.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
