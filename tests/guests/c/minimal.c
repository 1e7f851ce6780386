/*
 * A guest in C that uses one interrupt of its DSA's message store: it takes a slot, sends the slot's interrupts to itself, has the device
 * raise one, and gives the slot back.
 */

#include "dsa.h"
#include "imsvisor.h"
#include "machine.h"

static uint8_t page[4096] __attribute__((aligned(4096)));

void c_main(void)
{
    ImsInterface interface;
    ImsDomain domain;
    uint32_t handle;
    take_interrupts();
    check(ims_discover(&interface), "discovery");
    check(ims_enable(&interface), "enabling");
    int32_t device = ims_device(&interface, 0);
    check(device, "a device (device=dsa)");
    start_device((uint32_t)device);
    check(ims_open_hypercall(&domain, &interface, (uint16_t)device, page, (uint64_t)page), "opening");
    check(ims_alloc(&domain, 0, &handle), "alloc");
    ImsRequest request = {.apic_id = (uint32_t)rdmsr(X2APIC_ID), .vector = FIRST_VECTOR, .unmask = true};
    check(ims_map(&domain, handle, &request), "map");
    raise(handle_of(ims_index(handle)));
    bool fired = comes(0, 1);
    check(ims_free(&domain, handle), "free");
    say(fired ? "@result slots=1 slots_fired=1 errors=0\n" : "@result slots=1 slots_fired=0 errors=1\n");
    end(!fired);
}
