//! What an interrupt message store is asked for, key by key; the README has the table. Here a guest uses each end to end, on the emulated
//! machine; the parts' own tests lie beside the code under the same names.

use imsvisor_boot::event::Pairs;
use imsvisor_boot::machine::bochs::{DSAS, GENEROUS};
use imsvisor_tests::scenario::{Boot, Plan, Scenario};

/// Two guests of the kind that tries features, each on a processor, with what a module's command line says beside the command line.
fn two(plan: &mut Plan, guests: [(&str, &str); 2]) -> anyhow::Result<()> {
    plan.config.cpus = 2;
    guests.iter().try_for_each(|(string, line)| plan.guest("features", &format!("{string} cmdline=\"{line}\"")))
}

/// A word that a guest reports.
fn word<'b>(boot: &'b Boot, guest: &str, key: &str) -> &'b str {
    boot.guest(guest).result.as_ref().and_then(|result| result.get(key)).unwrap_or_default()
}

static SLOTS: Scenario = Scenario::new("slots in every way, and a storm", |plan| {
    // It takes all slots of a store, and tells of 4,096.
    plan.plugin(&[GENEROUS]);
    let slots = ("slots cpus=2 device=dsa exits=marks", "case=slots");
    two(plan, [slots, ("storm device=dsa storm=50", "case=storm")])?;
    // The storm is its guest's own work: while another guest has the processor, nothing comes.
    plan.config.cpus = 3;
    Ok(())
});

#[test]
fn feature_alloc_any_time_slots_come_and_go_while_another_one_fires() {
    assert_eq!(SLOTS.run().verified("slots", "taken"), 256);
}

#[test]
fn feature_alloc_group_a_group_is_freed_and_no_other_one() {
    assert_eq!(SLOTS.run().verified("slots", "group"), 7);
}

#[test]
fn feature_grant_fewer_as_many_as_there_are_or_none() {
    assert_eq!(SLOTS.run().verified("slots", "granted"), 4096);
}

#[test]
fn feature_affinity_moves_an_interrupt_to_another_processor_and_leaves_the_store_as_it_is() {
    assert_eq!(SLOTS.run().verified("slots", "moved"), 16);
}

#[test]
fn feature_store_array_is_written_by_the_guest_and_trapped() {
    let boot = SLOTS.run();
    assert_eq!(boot.verified("slots", "written"), 16);
    assert!(boot.guest("slots").interrupts.number("trapped_writes") >= Some(16 * 20));
}

#[test]
fn feature_pending_what_comes_to_a_masked_slot_waits_and_comes_once() {
    assert_eq!(SLOTS.run().verified("slots", "pending"), 4);
}

#[test]
fn feature_cookie_comes_back_in_a_query() {
    // The guest compares it; in fault records, the victim does.
    SLOTS.run().verified("slots", "errors");
    THIEF.run().verified("victim", "told");
}

static PASIDS: Scenario = Scenario::new("users with PASIDs", |plan| {
    plan.guest("features", "pasid device=dsa pasids=100-1ff cmdline=\"case=pasid\"")
});

#[test]
fn feature_user_notify_a_completion_comes_to_the_user_whose_pasid_the_slot_has_and_to_no_other() {
    let boot = PASIDS.run();
    assert_eq!((boot.verified("pasid", "notified"), boot.verified("pasid", "refused")), (3, 6));
    // Users work with PASIDs on their way to memory; one that is not the guest's leads nowhere, and is told of.
    assert_eq!(boot.verified("pasid", "unheard"), 1);
    let faults = boot.events("fault");
    let told = faults.iter().map(|fault| [fault.get("kind"), fault.get("pasid"), fault.get("guest")]);
    assert_eq!(told.collect::<Vec<_>>(), [["dma", "0x200", "0"].map(Some)]);
}

#[test]
fn feature_aux_pasid_the_device_has_the_one_that_was_set_whatever_the_guest_writes() {
    PASIDS.run().verified("pasid", "errors");
}

#[test]
fn feature_aux_pasid_one_that_the_guest_does_not_own_is_refused_and_a_forged_one_replaced() {
    SLOTS.run().verified("slots", "errors");
}

/// The exits so far of a guest's, as told after its marks.
fn exits_at_marks(boot: &Boot) -> Vec<(u64, u64)> {
    let of_guest = |event: &&Pairs| event.get("guest") == Some("0");
    let count = |event: &Pairs, key| event.number(key).unwrap_or(0);
    let events = boot.events("exits").into_iter().filter(of_guest);
    events.map(|event| (count(event, "ept-violation"), count(event, "vmcall"))).collect()
}

#[test]
fn feature_mask_flush_a_read_back_costs_no_exit() {
    let boot = SLOTS.run();
    boot.verified("slots", "errors");
    let [begin, end, ..] = exits_at_marks(&boot)[..] else { panic!("the marks are missing") };
    assert!(begin.0 > 0, "writes to the store do exit");
    assert_eq!(begin, end, "200 reads of a control dword");
}

#[test]
fn feature_storm_a_slot_that_rages_is_masked_and_told_of_and_the_others_do_not_notice() {
    let boot = SLOTS.run();
    let (storm, came) = (boot.verified("storm", "storm"), boot.verified("storm", "came"));
    assert!(came < storm / 4, "{came} of {storm}");
    let told = boot.events("storm");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].get("guest"), told[0].get("slot"), told[0].get("cookie")), (Some("1"), Some("0"), Some("0x1")));
}

static PAST: Scenario = Scenario::new("a storm past the slots", |plan| {
    plan.guest("features", "past device=dsa storm=50 cmdline=\"case=storm-by-dma\"")
});

#[test]
fn feature_storm_messages_that_a_device_writes_by_dma_are_stopped_at_the_entry() {
    let boot = PAST.run();
    let (sent, came) = (boot.verified("past", "sent"), boot.verified("past", "came"));
    assert!(came < sent / 4, "{came} of {sent}");
    let told = boot.events("storm");
    assert_eq!(told.iter().map(|storm| storm.get("slot")).collect::<Vec<_>>(), [Some("0")]);
    boot.assert_all_came_back();
}

static MANY: Scenario = Scenario::new("4,096 slots, and MSI-X beside a store", |plan| {
    plan.plugin(&[GENEROUS]);
    let many = ("many device=dsa", "case=many slots=4096");
    two(plan, [("coexist cpus=2 device=dsa", "case=coexist"), many])
});

#[test]
fn feature_beyond_2048_a_guest_has_4096_slots_that_live_at_one_time_and_each_fires() {
    let boot = MANY.run();
    for key in ["live", "fired", "freed"] {
        assert_eq!(boot.verified("many", key), 4096, "{key}");
    }
    assert!(boot.remap_number("high_water") >= 4096, "{}", boot.remap);
}

static MOST: Scenario = Scenario::new("16,128 slots", |plan| {
    plan.plugin(&[GENEROUS, "most-slots"]);
    plan.guest("features", "most device=dsa cmdline=\"case=many slots=16128\"")
});

#[test]
fn feature_beyond_2048_a_guest_has_all_the_16128_slots_that_a_device_can_say_it_has() {
    let boot = MOST.run();
    for key in ["live", "fired", "freed"] {
        assert_eq!(boot.verified("most", key), 16_128, "{key}");
    }
}

#[test]
fn feature_coexist_msix_and_a_store_are_in_use_at_once_from_two_processors() {
    let boot = MANY.run();
    for key in ["first", "second"] {
        assert_eq!(boot.verified("coexist", key), 100, "{key}");
    }
}

/// Vectors of a virtual processor but for exceptions, its timer and spurious interrupts.
const VECTORS: u64 = 222;

/// Two guests that want all vectors, on one processor.
fn two_with_all_vectors(plan: &mut Plan) -> anyhow::Result<()> {
    ["one", "other"]
        .iter()
        .try_for_each(|name| plan.guest("features", &format!("{name} device=dsa cmdline=\"case=vectors\"")))
}

static ALL_VECTORS: Scenario = Scenario::new("two guests with all vectors on a processor", two_with_all_vectors);

#[test]
fn guests_that_share_a_processor_have_all_vectors_each_where_the_unit_can_post() {
    let boot = ALL_VECTORS.run();
    for guest in ["one", "other"] {
        let [fired, masked] = ["fired", "masked"].map(|key| boot.verified(guest, key));
        assert_eq!((fired, masked), (VECTORS, 0), "{guest}");
    }
    boot.assert_all_came_back();
}

static FEW_VECTORS: Scenario = Scenario::new("two guests on a processor, and a unit that cannot post", |plan| {
    plan.plugin(&["no-posting"]);
    two_with_all_vectors(plan)
});

#[test]
fn a_slot_without_a_vector_reads_as_masked_and_is_told_of_where_the_unit_cannot_post() {
    let boot = FEW_VECTORS.run();
    let of = |key| ["one", "other"].map(|guest| boot.verified(guest, key));
    let ([one, other], masked) = (of("fired"), of("masked"));
    assert_eq!(one + other, 192, "the processor's vectors");
    assert_eq!(masked, [one, other].map(|fired| VECTORS - fired));
    assert_eq!(of("told"), masked);
    boot.assert_all_came_back();
}

static HANDLES: Scenario = Scenario::new("interrupt handles that are revoked", |plan| {
    plan.plugin(&[GENEROUS]);
    plan.guest("features", "handles device=dsa cmdline=\"case=handles\"")
});

#[test]
fn feature_ims_index_is_the_devices_handle_and_a_revoked_one_is_refused_and_told_of() {
    let boot = HANDLES.run();
    assert_eq!(boot.verified("handles", "indexes"), 8);
    assert_eq!(boot.verified("handles", "revoked"), 8);
}

static SLOW: Scenario = Scenario::new("a store behind a command interface", |plan| {
    plan.plugin(&[GENEROUS, "slow-store"]);
    two(plan, [("slots cpus=2 device=dsa exits=marks", "case=slots"), ("many device=dsa", "case=many slots=1024")])
});

#[test]
fn feature_bus_lock_a_slow_store_works_as_any_other_and_a_batch_costs_a_command_a_slot() {
    let boot = SLOW.run();
    assert_eq!(boot.verified("slots", "taken"), 256);
    assert_eq!(boot.verified("many", "fired"), 1024);
    let commands = boot.outcome().counter("dsa.store_commands");
    // Each of the 4,096 slots of both stores is masked when the guest is made. Those of the second guest are mapped by a command each,
    // masked and read back when they are freed; and the first guest has some hundred slots at work. Dword by dword it would be
    // three commands more for each that is mapped.
    let expected = 2 * 4096 + 1024 * 3;
    assert!((expected..expected + 2000).contains(&commands), "{commands} commands");
}

static QUEUE: Scenario = Scenario::new("a store in the guest's memory", |plan| {
    plan.plugin(&[GENEROUS]);
    plan.guest("features", "queue device=dsa cmdline=\"case=queue\"")
});

static NOT_ISOLATED: Scenario = Scenario::new("a store in memory for a virtual function", |plan| {
    plan.guest("features", "one device=vdsa cmdline=case=not-isolated")?;
    plan.guest("features", "other device=vdsa cmdline=case=not-isolated")
});

#[test]
fn feature_store_queue_is_refused_to_a_guest_that_shares_the_requester_id() {
    let boot = NOT_ISOLATED.run();
    assert_eq!((boot.verified("one", "refused"), boot.verified("other", "refused")), (1, 1));
}

#[test]
fn feature_store_queue_messages_in_memory_fire_move_pend_and_lead_nowhere_when_they_are_freed() {
    let boot = QUEUE.run();
    assert_eq!((boot.verified("queue", "fired"), boot.verified("queue", "freed")), (16, 16));
    // Each slot's message that was freed and sent all the same was refused by the unit, and told of.
    let refused = boot.events("fault").into_iter().filter(|fault| fault.get("reason") == Some("0x22"));
    assert_eq!((refused.count(), boot.outcome().counter("vtd.interrupt_faults")), (16, 16));
}

static OPAQUE: Scenario = Scenario::new("two guests that do the same", |plan| {
    // Devices of one unit, which gives them different entries.
    plan.plugin(&["four-dsas"]);
    two(plan, [("first device=dsa", "case=opaque"), ("second device=dsa", "case=opaque")])
});

#[test]
fn feature_opaque_two_guests_that_do_the_same_read_the_same_of_a_machine_that_gives_them_different_things() {
    let boot = OPAQUE.run();
    assert_eq!(boot.verified("first", "seen"), boot.verified("second", "seen"));
    // Entries of both were there at one time, so they had different ones.
    assert!(boot.remap_number("high_water") > 200, "{}", boot.remap);
}

static THIEF: Scenario = Scenario::new("a device that uses another one's handles", |plan| {
    // Of one unit: another one has another table.
    plan.plugin(&["four-dsas"]);
    let [victim, thief] =
        [("victim", DSAS[0]), ("thief", DSAS[2])].map(|(name, place)| format!("{name} device={place}"));
    two(plan, [(&victim, "case=victim"), (&thief, "case=thief")])
});

#[test]
fn feature_source_id_another_devices_use_of_an_entry_is_refused_by_the_unit() {
    let boot = THIEF.run();
    assert_eq!(boot.verified("victim", "stolen"), 0);
    assert!(boot.outcome().counter("vtd.interrupt_faults") >= 8);
    let told = boot.events("fault");
    let foreign = told.iter().filter(|fault| fault.get("reason") == Some("0x26") && fault.get("guest") == Some("0"));
    assert!(foreign.count() >= 8, "{told:?}");
}

#[test]
fn feature_fault_log_a_guest_reads_the_faults_of_its_own_slots_and_no_others() {
    let boot = THIEF.run();
    assert_eq!(boot.verified("victim", "told"), 8);
    assert_eq!(boot.verified("thief", "told"), 0);
}

static POLICY: [Scenario; 2] = [
    Scenario::new("a platform that forbids", |plan| {
        let calls = ("calls device=dsa ims=forbidden", "case=policy");
        two(plan, [calls, ("none device=dsa ims=forbidden hypercalls=off", "case=policy")])
    }),
    Scenario::new("a platform that allows", |plan| {
        let unaware = ("unaware device=dsa hypercalls=off", "case=policy");
        two(plan, [("allowed device=dsa", "case=policy"), unaware])
    }),
];

#[test]
fn feature_policy_three_way_the_domain_if_there_is_one_else_msix() {
    /// Entries of the device's MSI-X table.
    const MSIX: u64 = 9;
    let [forbids, allows] = POLICY.each_ref().map(Scenario::run);
    for (boot, guest, way, fired) in [
        (&forbids, "calls", "hypercall", 16),
        (&forbids, "none", "forbidden", MSIX),
        (&allows, "allowed", "hypercall", 16),
        (&allows, "unaware", "virtualised", MSIX),
    ] {
        assert_eq!(boot.verified(guest, "fired"), fired, "{guest}: by its way");
        assert_eq!(word(boot, guest, "way"), way, "{guest}");
    }
}

#[test]
fn feature_platform_disable_stands_in_cpuid_and_in_an_acpi_table() {
    let [forbids, allows] = POLICY.each_ref().map(Scenario::run);
    for (boot, guest, cpuid, acpi) in
        [(&forbids, "calls", 1, 1), (&forbids, "none", 0, 1), (&allows, "allowed", 0, 0), (&allows, "unaware", 0, 0)]
    {
        let seen = ["cpuid", "acpi"].map(|key| boot.verified(guest, key));
        assert_eq!(seen, [cpuid, acpi], "{guest}");
    }
}

#[test]
fn feature_hidden_when_unaware_a_device_shows_no_store_to_who_does_not_enable_the_interface() {
    let [forbids, allows] = POLICY.each_ref().map(Scenario::run);
    for (boot, guest) in [(&forbids, "none"), (&allows, "unaware")] {
        assert_eq!((boot.verified(guest, "hidden"), boot.verified(guest, "shown")), (1, 0), "{guest}");
    }
}

#[test]
fn feature_discover_dvsec_a_device_says_that_it_has_a_store_when_the_interface_is_enabled() {
    let [forbids, allows] = POLICY.each_ref().map(Scenario::run);
    for (boot, guest) in [(&forbids, "calls"), (&allows, "allowed")] {
        assert_eq!((boot.verified(guest, "hidden"), boot.verified(guest, "shown")), (1, 1), "{guest}");
    }
}

#[test]
fn feature_discover_cpuid_the_domain_is_found_where_it_is_offered_and_only_there() {
    let [forbids, allows] = POLICY.each_ref().map(Scenario::run);
    let ways = [(&forbids, "calls"), (&forbids, "none"), (&allows, "allowed"), (&allows, "unaware")];
    assert_eq!(ways.map(|(boot, guest)| word(boot, guest, "way") == "hypercall"), [true, false, true, false]);
}
