//! Message stores in Debian's Linux, by the modules of `guest-shim/linux`. One boot with four guests: 3,000 interrupts on 16 virtual
//! processors; one that may not use stores and does with MSI-X; one in which calls fail and the modules are loaded again, and which manages
//! guests; and one that it stops and starts. Another boot without the hypervisor, where Linux has the store for itself.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use imsvisor_boot::machine::bochs::{GENEROUS, GENEROUS_DSAS};
use imsvisor_boot::native::Native;
use imsvisor_boot::paths::workspace;
use imsvisor_boot::report::Guest;
use imsvisor_tests::bench::{self, Once};
use imsvisor_tests::scenario::{self, Boot, Plan, Scenario};

/// Interrupts of the largest guest.
const MANY: u64 = 3000;
/// The one PASID that it owns. Its entry is in the table that each function has, so no table is added, which the unit would keep.
const PASID: u64 = 0x20;

static STORES: Scenario = Scenario::new("four Linuxes with modules for message stores", |plan| {
    plan.plugin(&[GENEROUS, "four-dsas"]);
    plan.config.memory_mib = 2048;
    let words = format!("tsc=reliable ims={MANY} fires=1 moves=1 masks=64 pasid={PASID} churns=8");
    let pasids = format!("pasids={PASID:x}-{PASID:x}");
    guest(plan, &format!("name=many mem=576M cpus=16 {pasids} device={}", GENEROUS_DSAS[0]), &words)?;
    let forbidden = "mem=288M ims=forbidden hypercalls=off";
    guest(plan, &format!("name=forbidden {forbidden} device={}", GENEROUS_DSAS[1]), "ims=3000 fires=4 churns=0")?;
    let fail = |call: &str, nth: u32, step: &str| format!("{}:{nth}:{step}", number_of(call));
    let fails = [
        fail("ALLOC_MANY", 1, "alloc"),
        fail("MAP", 10, "alloc"),
        // The call that is repeated for it fails once more.
        fail("SET_AFFINITY", 3, "move:1"),
        fail("MASK", 4, "mask"),
        fail("UNMASK", 2, "mask"),
        fail("UNMAP", 3, "free"),
        fail("FREE_MANY", 1, "free"),
    ];
    let ctl = "list,wait:stopped:running,stop:stopped:--grace=60000,wait:stopped:stopped,counters:stopped,start:stopped,\
               wait:stopped:running,stop:stopped:--force,wait:stopped:stopped,list";
    // Linux complains of an object of ours that is written beyond its end, freed twice, or left when the module goes.
    let words = format!(
        "slub_debug=FZPU,imsvisor_slot ims=150 fires=1 moves=2 plugs=2 burst=200 reloads=2 fails={} ctl={ctl}",
        fails.join(",")
    );
    guest(plan, &format!("name=failing manage=on storm=5 mem=288M cpus=2 device={}", GENEROUS_DSAS[2]), &words)?;
    let function = format!("mem=288M device=vdsa:{}", GENEROUS_DSAS[3]);
    guest(plan, &format!("name=stopped {function}"), "copies=0 core=yes end=wait")?;
    // The limit is for two Linuxes.
    plan.config.limit *= 2;
    Ok(())
});

/// Interrupts of the Linux that has a store for itself.
const OWN: u64 = 128;
/// What came of its boot.
static NATIVE: Once<Option<(Native, String)>> = Once::new();

/// A call's number, as the header has it that the modules are built with.
fn number_of(call: &str) -> u32 {
    let header = std::fs::read_to_string(workspace().unwrap().join("hcall-abi/include/imsvisor_abi.h")).unwrap();
    let opening = format!("#define IMSVISOR_CALL_{call} ");
    let number = header.lines().find_map(|line| line.strip_prefix(&opening)?.strip_suffix('u'));
    number.unwrap_or_else(|| panic!("no call {call}")).parse().unwrap()
}

fn guest(plan: &mut Plan, options: &str, words: &str) -> Result<()> {
    plan.linux(&format!("linux {options}"), words)
}

/// What came of the boot; nothing where Linux cannot be had.
fn stores() -> Option<Boot> {
    bench::linux().unwrap_or_else(|error| panic!("{error:#}"))?;
    let boot = STORES.run();
    boot.assert_hypervisor_lived();
    Some(boot)
}

/// A figure of the hypervisor's about a guest's interrupts.
fn counted(guest: &Guest, key: &str) -> u64 {
    guest.interrupts.number(key).unwrap_or_else(|| panic!("{}: no {key}", guest.name))
}

/// A word of what the driver tells.
fn told<'b>(boot: &'b Boot, name: &str, key: &str) -> Option<&'b str> {
    boot.guest(name).result.as_ref().and_then(|result| result.get(key))
}

fn assert_right(boot: &Boot, name: &str) {
    boot.assert_guest_right(name);
    let right = ["errors", "timeouts", "broken", "silent", "warned"].map(|key| boot.reported(name, key));
    assert_eq!(right, [0; 5], "{name}");
    assert_eq!(boot.reported(name, "verified"), boot.reported(name, "descriptors"), "{name}");
    // The driver's own count, that of /proc/interrupts, and the hypervisor's.
    assert_eq!(boot.reported(name, "listed"), boot.reported(name, "then"), "{name}");
    assert_eq!(counted(boot.guest(name), "delivered"), boot.reported(name, "handled"), "{name}");
}

#[test]
fn linux_has_three_thousand_interrupts_of_a_message_store_and_each_fires_and_moves() {
    let Some(boot) = stores() else { return };
    assert_right(&boot, "many");
    assert_eq!(told(&boot, "many", "by"), Some("ims"));
    let reported = ["lines", "moved", "unmoved", "spread"].map(|key| boot.reported("many", key));
    assert_eq!(reported, [MANY, MANY, 0, MANY]);
    assert!(boot.reported("many", "churned") >= 8, "some were freed and others allocated");
}

#[test]
fn feature_aux_pasid_a_slot_for_a_pasid_is_not_for_work_without_and_others_pasids_are_refused() {
    let Some(boot) = stores() else { return };
    assert_eq!((boot.reported("many", "refused"), boot.reported("many", "broken")), (1, 0));
}

#[test]
fn every_interrupt_of_a_message_store_is_accounted_for() {
    let Some(boot) = stores() else { return };
    let way = boot.interrupts();
    assert_eq!((way.raised, way.unseen()), (way.remapped, 0), "{way:?}");
    boot.assert_all_came_back();
    boot.assert_zero(&["vtd.violations", "vtd.dma_faults", "vtd.interrupt_faults", "vtd.blocked"]);
}

/// Few calls for many slots; one to activate, one to move, two to end (mask, unmap); none for an interrupt.
#[test]
fn calls_are_as_many_as_the_documentation_says() {
    let Some(boot) = stores() else { return };
    let [allocated, moved, masked] = ["allocated", "moved", "masked"].map(|key| boot.reported("many", key));
    let by_irq = 3 * allocated + moved + 2 * masked;
    let calls = boot.guest("many").exits.get("vmcall").copied().unwrap_or_default();
    let others = calls.checked_sub(by_irq).unwrap_or_else(|| panic!("{calls} calls, {by_irq} were expected"));
    // Enable, QueryDevice, AllocMany and FreeMany of all, those of each churn, and looks for faults.
    assert!(others < 2 + 2 + 6 + 2 * 8 + 40, "{others} of {calls} calls are for none of the {allocated} interrupts");
}

#[test]
fn feature_policy_three_way_linux_does_with_msi_x_where_stores_are_forbidden() {
    let Some(boot) = stores() else { return };
    assert_right(&boot, "forbidden");
    assert_eq!(told(&boot, "forbidden", "by"), Some("msix"));
    assert!(boot.reported("forbidden", "lines") > 8);
}

#[test]
fn a_call_that_fails_takes_nothing_away_and_modules_can_be_loaded_again() {
    let Some(boot) = stores() else { return };
    assert_right(&boot, "failing");
    // A failed allocation and a failed request are seen by the driver's caller. All other calls are repeated until they succeed.
    assert_eq!(["failed", "unmoved"].map(|key| boot.reported("failing", key)), [2, 0]);
    assert_eq!(boot.reported("failing", "again"), 2 * 150);
    let console = boot.outcome().console();
    assert!(!console.contains("are not free"), "slots were not given back");
    assert!(!console.contains("WARNING:") && !console.contains("BUG"), "Linux complains");
}

#[test]
fn an_interrupt_that_is_masked_because_it_comes_too_fast_is_in_linuxs_log() {
    let Some(boot) = stores() else { return };
    let told = boot.events("storm");
    let slot = told.first().and_then(|storm| storm.get("slot")).unwrap_or_else(|| panic!("no storm"));
    let console = boot.outcome().console();
    let line = console.lines().find(|line| line.contains("it was masked because it fired too fast"));
    assert!(line.is_some_and(|line| line.contains(&format!(": slot {slot} (cookie 0x"))), "{line:?}");
}

#[test]
fn a_linux_that_manages_stops_and_starts_another_one_which_ends_in_order() {
    let Some(boot) = stores() else { return };
    assert_eq!(["commands", "undone"].map(|key| boot.reported("failing", key)), [10, 0]);
    let console = boot.outcome().console();
    assert!(console.contains("stopped running cpus=1 memory=288 weight=256 starts=1"), "the first list");
    assert!(console.contains("stopped stopped cpus=1 memory=288 weight=256 starts=2"), "the second list");
    // The first time it powered itself off, the second time it was ended.
    let ends: Vec<_> = boot.events("guest-end").into_iter().filter(|end| end.get("name") == Some("stopped")).collect();
    assert_eq!(ends.iter().map(|end| end.get("reason").unwrap_or_default()).collect::<Vec<_>>(), ["exit", "stopped"]);
}

#[test]
fn on_bare_metal_linux_writes_the_store_itself_and_its_own_unit_remaps() {
    let boot = || {
        let words = ["intel_iommu=on", &format!("ims={OWN}"), "fires=1", "moves=2", "loglevel=4"].map(str::to_owned);
        let outcome = scenario::boot_linux("a message store of its own", &[], &words)?;
        let native = |outcome| (Native::new(&outcome), outcome.console());
        anyhow::Ok(outcome.map(native))
    };
    let Some((native, console)) = NATIVE.get(boot).unwrap_or_else(|error| panic!("{error:#}")) else { return };
    assert_eq!(native.failures(), Vec::<String>::new(), "{console}");
    let reported = |key| native.reported(key).unwrap_or_else(|| panic!("no {key}: {console}"));
    let figures = ["lines", "spread", "moved", "silent", "errors", "broken", "warned"].map(reported);
    assert_eq!(figures, [OWN, OWN, 2 * OWN, 0, 0, 0, 0], "{console}");
    assert_eq!(native.counter("dsa.messages"), reported("handled"));
}

#[test]
fn the_modules_are_built_without_a_warning() {
    if bench::linux().unwrap_or_else(|error| panic!("{error:#}")).is_none() {
        return;
    }
    let said = imsvisor_boot::linux::warnings(bench::paths().unwrap()).unwrap();
    assert_eq!(said, "", "W=1");
}

#[test]
fn the_kernel_s_own_script_reads_the_modules_documentation() {
    if bench::linux().unwrap_or_else(|error| panic!("{error:#}")).is_none() {
        return;
    }
    let script = imsvisor_boot::linux::kernel_doc(bench::paths().unwrap()).unwrap();
    let sources = sources().into_iter().map(|(path, _)| path);
    let output = Command::new("perl").arg(script).args(["-none", "-Werror"]).args(sources).output();
    let Ok(output) = output else { return eprintln!("there is no perl, so kernel-doc is not run") };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// Of what checkpatch looks at, what can be said by one line.
#[test]
fn the_modules_are_written_as_the_kernel_wants_it() {
    for (path, text) in sources() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let opening = match name.as_str() {
            // Programs of users include it.
            "imsvisor_ioctl.h" => "/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */\n",
            _ if name.ends_with(".c") => "// SPDX-License-Identifier: GPL-2.0 OR MIT\n",
            _ => "/* SPDX-License-Identifier: GPL-2.0 OR MIT */\n",
        };
        assert!(text.starts_with(opening) && text.ends_with('\n') && !text.ends_with("\n\n"), "{name}");
        assert!(text.is_ascii(), "{name}");
        for (n, line) in text.lines().enumerate() {
            if let Some(wrong) = wrong_with(line) {
                panic!("{name}:{}: {wrong}: {line}", n + 1);
            }
        }
        let exported = text.matches("EXPORT_SYMBOL_GPL(").count();
        assert!(text.matches("\n/**\n").count() >= exported, "{name}: what is exported has kernel-doc");
    }
}

/// The sources in C, with their texts; not what a build has left.
fn sources() -> Vec<(PathBuf, String)> {
    let folder = workspace().unwrap().join("guest-shim/linux");
    let files = [folder.clone(), folder.join("tools")].map(|folder| std::fs::read_dir(folder).unwrap());
    let paths = files.into_iter().flatten().flatten().map(|entry| entry.path());
    let is_source = |path: &PathBuf| {
        let name = path.to_string_lossy();
        name.ends_with(".h") || name.ends_with(".c") && !name.ends_with(".mod.c")
    };
    let text = |path: PathBuf| (path.clone(), std::fs::read_to_string(&path).unwrap());
    let sources: Vec<_> = paths.filter(is_source).map(text).collect();
    assert!(sources.len() > 12, "{} files", sources.len());
    sources
}

fn wrong_with(line: &str) -> Option<&'static str> {
    let width = line.chars().map(|c| if c == '\t' { 8 } else { 1 }).sum::<usize>();
    let code = line.trim_start();
    let wrong = [
        (line.ends_with([' ', '\t']), "blanks at the end"),
        // A text that people look for stays whole.
        (width > 100 && !code.starts_with('"'), "more than 100 columns"),
        (line.starts_with("        "), "blanks in a tab's place"),
        (line.contains(" \t"), "a blank before a tab"),
        (code.starts_with("//") && !code.starts_with("// SPDX"), "a comment of C++"),
        (["if(", "for(", "while(", "switch("].iter().any(|word| code.starts_with(word)), "no blank behind a keyword"),
    ];
    wrong.iter().find_map(|(is, what)| is.then_some(*what))
}

#[test]
fn the_look_at_the_kernel_s_style_sees_what_it_looks_for() {
    for line in ["\tx = 1; ", "        x = 1;", "\tif(x)", "\t// no", " \tx", &format!("\t{}", "x".repeat(93))] {
        assert!(wrong_with(line).is_some(), "{line}");
    }
    for line in ["", "\tif (x)", "\t\t   aligned", "// SPDX-License-Identifier: MIT", " * text"] {
        assert!(wrong_with(line).is_none(), "{line}");
    }
}
