/*
 * A freestanding guest in C: it finds the hypercall domain, starts its DSA, takes interrupts of the message store by way of the guest
 * shim's C functions, one by one and then all at once, has the device raise each, and gives them back. It ends with the line that the
 * tests look at.
 */

#include "imsvisor.h"

#define END_INTERRUPT() end_interrupt()
static void end_interrupt(void);

#include "dsa.h"
#include "machine.h"

static uint8_t domain_page[4096] __attribute__((aligned(4096)));
static uint8_t calls_page[4096] __attribute__((aligned(4096)));

static ImsInterface interface;
static ImsDomain domain;
static int32_t device;
static uint32_t handles[VECTORS];
static ImsRequest requests[VECTORS];

/* Interrupts that ended without a VM exit. */
static uint32_t pv_eoi_word, pv_eois;

static void end_interrupt(void)
{
    if (ims_pv_eoi_end(&pv_eoi_word))
        pv_eois++;
    else
        wrmsr(X2APIC_EOI, 0);
}

/* Ends the guest unless something is as it has to be. */
static void expect(bool right, const char *what) { check(right ? 0 : -IMS_INVALID_ARGUMENT, what); }

static void open(void)
{
    ImsFacts facts = {.cpuid_hypervisor = ims_cpuid_hypervisor()};
    check(ims_discover(&interface), "discovery");
    expect(ims_decide(ims_on_bare_metal(&facts), false, &interface) == IMS_HYPERCALL, "the policy");
    check(ims_enable(&interface), "enabling");
    device = ims_device(&interface, 0);
    check(device, "a device");
    start_device((uint32_t)device);
    check(ims_open_hypercall(&domain, &interface, (uint16_t)device, domain_page, (uint64_t)domain_page), "opening");
    uint32_t apic_id = (uint32_t)rdmsr(X2APIC_ID);
    for (uint32_t n = 0; n < VECTORS; n++) {
        ImsRequest request = {.apic_id = apic_id, .vector = (uint8_t)(FIRST_VECTOR + n), .unmask = true, .cookie = n};
        requests[n] = request;
    }
}

/* The device's store has `taken` slots that are taken, and is where the device says. */
static void expect_taken(uint32_t taken)
{
    ImsDeviceInfo info;
    check(ims_query_device(&interface, (uint16_t)device, calls_page, (uint64_t)calls_page, &info), "a query");
    expect(info.kind == IMS_STORE_ARRAY && info.device == (uint16_t)device, "which store it is");
    expect(info.slots >= VECTORS && info.slots - info.free == taken, "how many slots are taken");
    expect(info.bar == 0 && info.offset != 0, "where the store is");
}

static uint32_t one_by_one(void)
{
    uint32_t fired = 0;
    for (uint32_t n = 0; n < VECTORS; n++) {
        check(ims_alloc(&domain, 1, &handles[n]), "alloc");
        check(ims_map(&domain, handles[n], &requests[n]), "map");
        uint16_t handle = handle_of(ims_index(handles[n]));
        raise(handle);
        bool once = comes(n, 1);
        check(ims_mask(&domain, handles[n]), "mask");
        raise(handle);
        bool masked = came[n] == 1;
        check(ims_unmask(&domain, handles[n]), "unmask");
        fired += once && masked && comes(n, 2);
    }
    check(ims_free(&domain, handles[0]), "free");
    expect(ims_free(&domain, handles[0]) == -IMS_STALE_HANDLE, "freeing twice");
    expect(ims_free_group(&domain, 1) == VECTORS - 1, "freeing the rest");
    return fired;
}

static uint32_t all_at_once(void)
{
    uint32_t fired = 0;
    int32_t results[VECTORS];
    expect_taken(0);
    expect(ims_alloc_many(&domain, 2, VECTORS, VECTORS, handles) == VECTORS, "taking many");
    expect_taken(VECTORS);
    expect(ims_map_many(&domain, handles, requests, VECTORS, results) == VECTORS, "mapping many");
    for (uint32_t n = 0; n < VECTORS; n++) {
        ImsSlotInfo info;
        check(results[n], "one of many");
        check(ims_query_slot(&domain, handles[n], &info), "a slot's query");
        expect(info.mapped && !info.masked && info.group == 2 && info.pasid < 0, "a slot's state");
        expect(info.vector == requests[n].vector && info.cookie == n, "a slot's mapping");
        raise(handle_of(ims_index(handles[n])));
        fired += comes(n, 3);
    }
    expect(ims_free_many(&domain, handles, VECTORS) == VECTORS, "freeing many");
    expect(ims_free_many(&domain, handles, VECTORS) == 0, "freeing many twice");
    expect_taken(0);
    ImsFault faults[4];
    expect(ims_read_faults(&interface, calls_page, (uint64_t)calls_page, faults, 4) == 0, "no faults");
    return fired;
}

static void result(const char *key, uint32_t number)
{
    say(" ");
    say(key);
    say("=");
    say_number(number);
}

void c_main(void)
{
    take_interrupts();
    open();
    uint32_t fired = one_by_one();
    /* Not where the processor keeps the local APIC. */
    int32_t has_pv_eoi = ims_set_pv_eoi(&interface, (uint64_t)&pv_eoi_word);
    expect(has_pv_eoi == 0 || has_pv_eoi == -IMS_UNSUPPORTED, "ending interrupts without exits");
    uint32_t again = all_at_once();
    if (has_pv_eoi == 0)
        check(ims_clear_pv_eoi(&interface), "ending interrupts by exits");
    say("@result");
    result("slots", VECTORS);
    result("slots_fired", fired);
    result("again", again);
    result("pv_eois", pv_eois);
    result("errors", 2 * VECTORS - fired - again);
    say("\n");
    end(fired + again == 2 * VECTORS ? 0 : 1);
}
