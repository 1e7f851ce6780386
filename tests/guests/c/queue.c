/*
 * A freestanding guest in C with a store in its own memory: it takes slots by way of the guest shim's C functions, has each fire, sends it
 * elsewhere, has an interrupt wait behind the mask, and gives it back.
 */

#include "dsa.h"
#include "imsvisor.h"
#include "machine.h"

/* Our model's registers of work queue 0's store: address, slots, look again. */
enum { QUEUE_ADDRESS = 0x7000, QUEUE_SLOTS = QUEUE_ADDRESS + 8, QUEUE_LOOK = QUEUE_ADDRESS + 12 };

/* Slots that are tried: each has two vectors. */
enum { SLOTS = VECTORS / 2 };

static uint8_t page[4096] __attribute__((aligned(4096)));
static uint8_t memory[4096] __attribute__((aligned(4096)));
static ImsQueue queue;

/* Whether slot number `n` does what it has to. */
static bool fires(uint32_t n)
{
    uint32_t slot, apic_id = (uint32_t)rdmsr(X2APIC_ID), first = n, second = SLOTS + n;
    ImsRequest request = {.apic_id = apic_id, .vector = (uint8_t)(FIRST_VECTOR + first), .unmask = true, .cookie = n};
    check(ims_queue_alloc(&queue, 0, &slot), "alloc");
    check(ims_queue_map(&queue, slot, &request), "map");
    raise(ims_index(slot));
    bool right = comes(first, 1);
    check(ims_queue_set_affinity(&queue, slot, apic_id, (uint8_t)(FIRST_VECTOR + second)), "affinity");
    raise(ims_index(slot));
    right = right && comes(second, 1);
    check(ims_queue_mask(&queue, slot), "mask");
    raise(ims_index(slot));
    right = right && came[second] == 1;
    int32_t waits = ims_queue_unmask(&queue, slot);
    check(waits, "unmask");
    right = right && waits == 1;
    registers[QUEUE_LOOK / 4] = ims_index(slot);
    right = right && comes(second, 2);
    check(ims_queue_free(&queue, slot), "free");
    return right && ims_queue_alloc(&queue, 0, &slot) == 0 && ims_queue_free(&queue, slot) == 0;
}

void c_main(void)
{
    ImsInterface interface;
    take_interrupts();
    check(ims_discover(&interface), "discovery");
    check(ims_enable(&interface), "enabling");
    int32_t device = ims_device(&interface, 0);
    check(device, "a device");
    start_device((uint32_t)device);
    check(ims_open_queue(&queue, &interface, (uint16_t)device, page, (uint64_t)page, memory, SLOTS), "opening");
    registers[QUEUE_ADDRESS / 4] = (uint32_t)(uint64_t)memory;
    registers[QUEUE_ADDRESS / 4 + 1] = (uint32_t)((uint64_t)memory >> 32);
    registers[QUEUE_SLOTS / 4] = SLOTS;
    uint32_t fired = 0;
    for (uint32_t n = 0; n < SLOTS; n++)
        fired += fires(n);
    ImsQueue again;
    if (ims_open_queue(&again, &interface, (uint16_t)device, page, (uint64_t)page, memory, SLOTS) != -IMS_EXISTS)
        check(-IMS_EXISTS, "opening twice");
    say("@result slots=");
    say_number(SLOTS);
    say(" slots_fired=");
    say_number(fired);
    say(" errors=");
    say_number(SLOTS - fired);
    say("\n");
    end(fired == SLOTS ? 0 : 1);
}
