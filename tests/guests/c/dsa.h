/*
 * A DSA in a guest in C: it is started with one work queue, and raises interrupts by descriptors that do nothing else.
 */

#ifndef DSA_H
#define DSA_H

#include "machine.h"

/* PCI configuration space, by ports. */

enum { PCI_ADDRESS = 0xcf8, PCI_DATA = 0xcfc };
enum { PCI_COMMAND = 4, PCI_COMMAND_MEMORY = 2, PCI_COMMAND_MASTER = 4, PCI_BAR0 = 0x10, PCI_BAR2 = 0x18 };

static inline uint32_t config_read(uint32_t function, uint32_t offset)
{
    out32(PCI_ADDRESS, 1u << 31 | function << 8 | offset);
    return in32(PCI_DATA);
}

static inline void config_write(uint32_t function, uint32_t offset, uint32_t value)
{
    out32(PCI_ADDRESS, 1u << 31 | function << 8 | offset);
    out32(PCI_DATA, value);
}

static inline uint64_t bar(uint32_t function, uint32_t offset)
{
    uint32_t low = config_read(function, offset);
    uint64_t high = (low & 7) == 4 ? config_read(function, offset + 4) : 0;
    return high << 32 | (low & ~0xfu);
}

/* The device: registers.h and idxd.h of Linux's idxd. */

enum {
    GENCAP = 0x10,
    GENCAP_CMDCAP = 1 << 4,
    TABLE_OFFSETS = 0x60,
    CMD = 0xa0,
    CMDSTS = 0xa8,
    RESET_DEVICE = 5,
    ENABLE_DEVICE = 1,
    ENABLE_WQ = 6,
    REQUEST_INT_HANDLE = 13,
    HANDLE_IMS = 1 << 16,
};

static volatile uint32_t *registers;
static volatile uint64_t *portal;

static inline uint32_t command(uint32_t number, uint32_t operand)
{
    registers[CMD / 4] = number << 20 | operand;
    uint32_t status;
    do
        status = registers[CMDSTS / 4];
    while (status >> 31);
    check(-(int32_t)(status & 0xff), "a command of the device");
    return status >> 8;
}

/* What names a slot in a descriptor: a handle where the device has them, else the slot itself. */
static inline uint16_t handle_of(uint32_t slot)
{
    bool has_handles = registers[GENCAP / 4] & GENCAP_CMDCAP;
    return (uint16_t)(has_handles ? command(REQUEST_INT_HANDLE, HANDLE_IMS | slot) : slot);
}

static inline void start_device(uint32_t function)
{
    uint32_t enabled = (config_read(function, PCI_COMMAND) & 0xffff) | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    config_write(function, PCI_COMMAND, enabled);
    registers = (volatile uint32_t *)bar(function, PCI_BAR0);
    /* The IMS portal of work queue 0. */
    portal = (volatile uint64_t *)(bar(function, PCI_BAR2) + 2 * 4096);
    command(RESET_DEVICE, 0);
    uint32_t offsets = registers[TABLE_OFFSETS / 4];
    volatile uint32_t *group = registers + (offsets & 0xffff) * 0x100 / 4;
    volatile uint32_t *queue = registers + (offsets >> 16) * 0x100 / 4;
    queue[0] = 16;                    /* descriptors */
    queue[2] = 1 | 8 << 4;            /* dedicated, priority 8 */
    queue[3] = 12;                    /* transfers up to 4 KiB */
    group[0] = 1;                     /* work queue 0 */
    group[8] = 1;                     /* engine 0 */
    command(ENABLE_DEVICE, 0);
    command(ENABLE_WQ, 0);
}

static struct {
    volatile uint64_t words[4];
} record __attribute__((aligned(32)));

/* A descriptor that does nothing but complete, with an interrupt. */
static inline void raise(uint16_t handle)
{
    record.words[0] = 0;
    const uint64_t descriptor[8] = {0x1cull << 32, (uint64_t)&record, 0, 0, (uint64_t)handle << 32, 0, 0, 0};
    /* MOVDIR64B (%rsi), %rax: a portal takes one write of 64 bytes. */
    __asm__ volatile(".byte 0x66, 0x0f, 0x38, 0xf8, 0x06" : : "a"(portal), "S"(descriptor), "m"(descriptor) : "memory");
    while (!(record.words[0] & 0xff)) {
    }
}

#endif
