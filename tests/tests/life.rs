//! The life of guests: started, stopped and restarted by a guest that manages, and by their options, while others run. Everything that a life
//! held must come back, however often.

use imsvisor_boot::event::Pairs;
use imsvisor_boot::machine::bochs::DSAS;
use imsvisor_tests::scenario::{Boot, Plan, Scenario};

const MANAGER: &str = "manage=on mem=18M";

fn manager(plan: &mut Plan, commands: &str) -> anyhow::Result<()> {
    plan.guest("ctl", &format!("ctl {MANAGER} cmdline=\"{commands}\""))
}

static COMMANDS: Scenario = Scenario::new("a manager that starts and stops guests", |plan| {
    manager(
        plan,
        "list; stop a; wait a stopped; list; start a; wait a running; stop deaf --grace=50; wait deaf stopped; \
         start late; wait late running; counters late; stop late; wait late stopped; restart a; stop a; wait a stopped; list",
    )?;
    plan.guest("tenant", "a mem=18M")?;
    plan.guest("tenant", "deaf mem=18M cmdline=deaf=yes")?;
    plan.guest("tenant", "late mem=18M cpus=3 autostart=off")
});

/// Lines that the manager wrote that begin like this.
fn said<'a>(boot: &'a Boot, begin: &str) -> Vec<&'a str> {
    let begin = format!("[ctl] {begin}");
    boot.outcome().lines.iter().map(|seen| seen.raw.as_str()).filter(|line| line.starts_with(&begin)).collect()
}

/// The reasons for which a guest's lives have ended.
fn ends(boot: &Boot, name: &str) -> Vec<String> {
    let own = |pairs: &&&Pairs| pairs.get("name") == Some(name);
    let ends = boot.events("guest-end");
    ends.iter().filter(own).filter_map(|pairs| pairs.get("reason")).map(String::from).collect()
}

#[test]
fn a_manager_lists_starts_stops_and_restarts_guests() {
    let boot = COMMANDS.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.done.as_deref(), Some("ok"));
    assert_eq!(boot.verified("ctl", "restarts"), 0);
    assert_eq!(said(&boot, "0 ctl running vcpus=1 memory=18M weight=256 starts=1 *").len(), 3);
    assert_eq!(said(&boot, "1 a stopped").len(), 2);
    assert_eq!(
        said(&boot, "3 late stopped vcpus=3 memory=18M weight=256 starts=0").len(),
        2,
        "it is not started by itself"
    );
    assert_eq!(said(&boot, "late at=").len(), 1);
    assert_eq!(ends(&boot, "deaf"), ["stopped"], "it is ended when its time is over");
    assert_eq!(ends(&boot, "late"), ["exit"], "it was asked");
    assert_eq!(ends(&boot, "a")[0], "exit");
    boot.assert_all_came_back();
}

#[test]
fn a_guest_that_does_not_manage_has_no_such_calls() {
    // The guest tries to start another one, and counts anything but the answer to an unknown call as an error.
    let boot = COMMANDS.run();
    for name in ["a", "late"] {
        assert_eq!(boot.reported(name, "errors"), 0, "{name}");
    }
}

/// Two guests of which the machine's memory holds only one at a time.
static CROWDED: Scenario = Scenario::new("a guest whose memory another one has", |plan| {
    manager(
        plan,
        "wait a running; stop a; wait a stopped; start b; wait b running; start a; list; restart b --force; \
         wait a running; list; stop a; wait a stopped; wait b running; stop b; wait b stopped",
    )?;
    plan.guest("tenant", "a mem=400M")?;
    plan.guest("tenant", "b mem=400M autostart=off")
});

#[test]
fn a_guest_whose_memory_another_one_has_is_made_when_that_comes_back() {
    let boot = CROWDED.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.done.as_deref(), Some("ok"));
    assert_eq!(boot.verified("ctl", "restarts"), 0);
    // Who waits has it before who is restarted.
    assert_eq!(said(&boot, "1 a starting vcpus=1").len(), 1);
    assert_eq!(said(&boot, "2 b starting vcpus=1").len(), 1);
    assert_eq!((ends(&boot, "a").len(), ends(&boot, "b").len()), (2, 2));
    assert_eq!([boot.refusal_of("a"), boot.refusal_of("b")], [None; 2]);
    let words = "it is made when others have released that much";
    let told = boot.outcome().lines.iter().filter(|seen| seen.raw.contains(words));
    assert_eq!(told.count(), 2, "each of them is told of once");
    boot.assert_all_came_back();
}

static POLICIES: Scenario = Scenario::new("guests that are restarted by their options", |plan| {
    plan.guest("tenant", "never mem=18M cmdline=\"rounds=1 code=0\"")?;
    plan.guest("tenant", "failing mem=18M restart=on-failure cmdline=\"rounds=1 code=3\"")?;
    plan.guest("tenant", "good mem=18M restart=on-failure cmdline=rounds=1")?;
    plan.guest("tenant", "always mem=18M restart=always cmdline=rounds=1")
});

#[test]
fn guests_are_restarted_as_their_options_say_and_not_without_end() {
    let boot = POLICIES.run();
    boot.assert_hypervisor_lived();
    let lives = |name| boot.guest(name).lives;
    assert_eq!([lives("never"), lives("good")], [1, 1]);
    // Ten short lives.
    assert_eq!([lives("failing"), lives("always")], [10, 10]);
    assert_eq!(boot.done.as_deref(), Some("failed"), "the last life of one has failed");
    boot.assert_all_came_back();
}

/// A guest with much memory and a device of its own is restarted again and again on the processor of one that never sleeps.
static BESIDE: Scenario = Scenario::new("a guest beside one that is restarted", |plan| {
    plan.config.cpus = 2;
    manager(
        plan,
        "counters busy; repeat 8 restart v --force; counters busy; stop v --force; stop busy; wait v stopped; \
         wait busy stopped",
    )?;
    plan.guest("vfunc", "v mem=256M device=vdsa pin=1 cmdline=case=tenant")?;
    plan.guest("tenant", "busy mem=18M pin=1 cmdline=busy=yes")
});

/// The most ticks that a guest that can run waits for its turn: `sched::run_queue::LATENCY`.
const LATENCY: u64 = 4_000_000;

#[test]
fn making_and_releasing_a_guest_takes_its_own_time_and_none_of_others() {
    let boot = BESIDE.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.done.as_deref(), Some("ok"));
    assert_eq!(boot.verified("ctl", "restarts"), 8);
    let lines = said(&boot, "busy at=");
    let figure = |line: &str, key: &str| {
        let word = line.split(' ').find_map(|word| word.strip_prefix(key)).expect("the manager's figures");
        word.parse::<u64>().expect("a number")
    };
    let [elapsed, charged] = ["at=", "charged="].map(|key| figure(lines[1], key) - figure(lines[0], key));
    assert!(charged * 100 >= elapsed * 45, "half of the processor is its: {charged} of {elapsed} ticks");
    let gap = boot.reported("busy", "gap");
    assert!(gap <= LATENCY, "it did not run for {gap} ticks");
    boot.assert_all_came_back();
}

/// How often a tenant is restarted: a thousand times in the test that is left out unless it is asked for.
const RESTARTS: u64 = 40;
const MANY_RESTARTS: u64 = 1_000;

/// Four tenants on two processors, two of them with functions of one DSA, and one with the other DSA as a whole that begins several times.
fn tenants(plan: &mut Plan, restarts: u64) -> anyhow::Result<()> {
    plan.config.cpus = 2;
    let half = restarts / 2;
    manager(
        plan,
        &format!(
            "repeat {half} restart v; repeat {half} restart v --force; cycle 2 demo; stop v; stop w; stop a; \
             wait v stopped; wait w stopped; wait a stopped; list"
        ),
    )?;
    for name in ["v", "w"] {
        plan.guest("vfunc", &format!("{name} mem=18M device=vdsa:{} cmdline=case=tenant", DSAS[1]))?;
    }
    plan.guest("demo", "demo mem=64M device=dsa")?;
    plan.guest("tenant", "a mem=18M")
}

static RESTARTED: Scenario =
    Scenario::new("a tenant that is restarted again and again", |plan| tenants(plan, RESTARTS));
static RESTARTED_OFTEN: Scenario = Scenario::new("a tenant that is restarted a thousand times", |plan| {
    plan.config.limit = std::time::Duration::from_secs(2_400);
    tenants(plan, MANY_RESTARTS)
});

fn assert_nothing_is_lost(boot: &Boot, restarts: u64) {
    boot.assert_hypervisor_lived();
    let failures = boot.verdict().failures;
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(boot.verified("ctl", "restarts"), restarts / 2 * 2);
    assert_eq!([boot.guest("v").lives, boot.guest("w").lives, boot.guest("demo").lives], [restarts / 2 * 2 + 1, 1, 3]);
    for name in ["v", "w", "a", "demo"] {
        assert_eq!(boot.reported(name, "errors"), 0, "{name}");
    }
    assert!(boot.reported("w", "rounds") > restarts, "the others work meanwhile");
    let counts = boot.interrupts();
    assert_eq!(counts.raised, counts.remapped);
    boot.assert_all_came_back();
    boot.assert_zero(&["vtd.blocked", "vtd.violations"]);
    boot.assert_devices_quiet(0);
    // Of lives in the same surroundings: between the demo's first life and its second.
    let lines = boot.event_lines();
    let demos: Vec<usize> = (0..lines.len()).filter(|n| lines[*n].contains("name=demo ")).collect();
    let second = demos.iter().filter(|n| lines[**n].contains("guest-start")).nth(1).expect("its second life");
    let first_end = demos.iter().find(|n| lines[**n].contains("guest-released")).expect("its first end");
    let lives = boot.outcome().lines.iter().filter(|seen| lines[*first_end..*second].contains(&seen.raw.as_str()));
    let released: Vec<&Pairs> = lives.filter_map(|seen| seen.line.event("guest-released")).collect();
    let figure = |key: &str| -> Vec<u64> {
        let of_v = released.iter().filter(|pairs| pairs.get("name") == Some("v"));
        of_v.filter_map(|pairs| pairs.number(key)).collect()
    };
    let (free, heap) = (figure("free_kib"), figure("heap"));
    assert!(free.len() as u64 > restarts / 2, "{} lives are left to compare", free.len());
    assert!(free.iter().all(|kib| *kib == free[0]), "memory gets less: {free:?}");
    let (least, most) = (heap.iter().min().unwrap(), heap.iter().max().unwrap());
    assert!(most - least <= HEAP_NOISE, "the heap gets more: {heap:?}");
    let [first, last] = ["first", "last"].map(|key| boot.reported("ctl", key));
    assert!(last <= first * 3 / 2 + 500_000, "the first restarts took {first} ticks, the last {last}");
}

/// Bytes by which the heap differs with what other guests hold at the moment. A leak of 32 bytes in each life exceeds it after 17 lives.
const HEAP_NOISE: u64 = 512;

#[test]
fn a_tenant_that_is_restarted_leaves_nothing_behind_and_others_work() {
    assert_nothing_is_lost(&RESTARTED.run(), RESTARTS);
}

#[test]
#[ignore = "takes minutes: cargo test -p imsvisor-tests --test life -- --ignored"]
fn a_thousand_restarts_leave_nothing_behind_and_the_last_is_as_fast_as_the_first() {
    assert_nothing_is_lost(&RESTARTED_OFTEN.run(), MANY_RESTARTS);
}
