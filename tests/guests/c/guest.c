/*
 * A freestanding guest in C: it finds the hypercall domain, starts its DSA, takes interrupts of the message store by way of the guest
 * shim's C functions, has the device raise each, and gives them back. It ends with the line that the tests look at.
 */

#include "imsvisor.h"

/* The machine. */

static inline void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static inline void out32(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

enum { X2APIC_ID = 0x802, X2APIC_EOI = 0x80b, X2APIC_SVR = 0x80f, SPURIOUS = 0xff };

/* The console: COM1, a 16550. */

enum { UART_THR = 0x3f8, UART_LSR = UART_THR + 5, UART_LSR_THRE = 1 << 5 };

/* The port that ends a guest, with its exit code. */
enum { EXIT = 0xf4 };

static void put(char c)
{
    while (!(in8(UART_LSR) & UART_LSR_THRE)) {
    }
    out8(UART_THR, (uint8_t)c);
}

static void say(const char *text)
{
    while (*text)
        put(*text++);
}

static void say_number(uint32_t number)
{
    if (number >= 10)
        say_number(number / 10);
    put((char)('0' + number % 10));
}

static _Noreturn void end(uint8_t code)
{
    for (;;)
        out8(EXIT, code);
}

static void check(int32_t result, const char *what)
{
    if (result >= 0)
        return;
    say("c: ");
    say(what);
    say(" failed with ");
    say_number((uint32_t)-result);
    say("\n");
    end(1);
}

/* Interrupts: a gate for each vector that is used, all of which count. */

enum { FIRST_VECTOR = 0x40, VECTORS = 16 };

static volatile uint32_t came[VECTORS];

struct frame;

#define HANDLER(n)                                                                                                     \
    __attribute__((interrupt)) static void handler_##n(struct frame *frame)                                            \
    {                                                                                                                  \
        (void)frame;                                                                                                   \
        came[n]++;                                                                                                     \
        wrmsr(X2APIC_EOI, 0);                                                                                          \
    }

HANDLER(0) HANDLER(1) HANDLER(2) HANDLER(3) HANDLER(4) HANDLER(5) HANDLER(6) HANDLER(7)
HANDLER(8) HANDLER(9) HANDLER(10) HANDLER(11) HANDLER(12) HANDLER(13) HANDLER(14) HANDLER(15)

static uint64_t table[256][2] __attribute__((aligned(16)));

static void gate(uint8_t vector, void (*handler)(struct frame *))
{
    uint64_t at = (uint64_t)handler;
    /* SDM volume 3, 7.14.1: present interrupt gate, code segment 0x10. */
    table[vector][0] = (at & 0xffff) | 0x10ull << 16 | 0x8e00ull << 32 | (at & 0xffff0000) << 32;
    table[vector][1] = at >> 32;
}

static void take_interrupts(void)
{
    static void (*const handlers[VECTORS])(struct frame *) = {
        handler_0, handler_1, handler_2,  handler_3,  handler_4,  handler_5,  handler_6,  handler_7,
        handler_8, handler_9, handler_10, handler_11, handler_12, handler_13, handler_14, handler_15,
    };
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } pointer = {sizeof table - 1, (uint64_t)table};
    for (int n = 0; n < VECTORS; n++)
        gate((uint8_t)(FIRST_VECTOR + n), handlers[n]);
    __asm__ volatile("lidt %0" : : "m"(pointer));
    wrmsr(X2APIC_SVR, 0x100 | SPURIOUS);
    __asm__ volatile("sti");
}

/* PCI configuration space, by ports. */

enum { PCI_ADDRESS = 0xcf8, PCI_DATA = 0xcfc };
enum { PCI_COMMAND = 4, PCI_COMMAND_MEMORY = 2, PCI_COMMAND_MASTER = 4, PCI_BAR0 = 0x10, PCI_BAR2 = 0x18 };

static uint32_t config_read(uint32_t function, uint32_t offset)
{
    out32(PCI_ADDRESS, 1u << 31 | function << 8 | offset);
    return in32(PCI_DATA);
}

static void config_write(uint32_t function, uint32_t offset, uint32_t value)
{
    out32(PCI_ADDRESS, 1u << 31 | function << 8 | offset);
    out32(PCI_DATA, value);
}

static uint64_t bar(uint32_t function, uint32_t offset)
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

static uint32_t command(uint32_t number, uint32_t operand)
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
static uint16_t handle_of(uint32_t slot)
{
    bool has_handles = registers[GENCAP / 4] & GENCAP_CMDCAP;
    return (uint16_t)(has_handles ? command(REQUEST_INT_HANDLE, HANDLE_IMS | slot) : slot);
}

static void start_device(uint32_t function)
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
static void raise(uint16_t handle)
{
    record.words[0] = 0;
    const uint64_t descriptor[8] = {0x1cull << 32, (uint64_t)&record, 0, 0, (uint64_t)handle << 32, 0, 0, 0};
    /* MOVDIR64B (%rsi), %rax: a portal takes one write of 64 bytes. */
    __asm__ volatile(".byte 0x66, 0x0f, 0x38, 0xf8, 0x06" : : "a"(portal), "S"(descriptor), "m"(descriptor) : "memory");
    while (!(record.words[0] & 0xff)) {
    }
}

static bool comes(uint32_t n, uint32_t count)
{
    for (uint32_t tries = 0; tries < 1000000 && came[n] != count; tries++)
        __asm__ volatile("pause");
    return came[n] == count;
}

/* The interrupts. */

static uint8_t page[4096] __attribute__((aligned(4096)));

static uint32_t run(void)
{
    ImsInterface interface;
    ImsDomain domain;
    ImsFacts facts = {.cpuid_hypervisor = ims_cpuid_hypervisor()};
    check(ims_discover(&interface), "discovery");
    if (ims_decide(ims_on_bare_metal(&facts), false, &interface) != IMS_HYPERCALL)
        check(-IMS_UNSUPPORTED, "the policy");
    check(ims_enable(&interface), "enabling");
    int32_t device = ims_device(&interface, 0);
    check(device, "a device");
    start_device((uint32_t)device);
    check(ims_open_hypercall(&domain, &interface, (uint16_t)device, page, (uint64_t)page), "opening");

    uint32_t handles[VECTORS], fired = 0, apic_id = (uint32_t)rdmsr(X2APIC_ID);
    for (uint32_t n = 0; n < VECTORS; n++) {
        ImsRequest request = {.apic_id = apic_id, .vector = (uint8_t)(FIRST_VECTOR + n), .unmask = true, .cookie = n};
        check(ims_alloc(&domain, 1, &handles[n]), "alloc");
        check(ims_map(&domain, handles[n], &request), "map");
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
    if (ims_free(&domain, handles[0]) != -IMS_STALE_HANDLE)
        check(-IMS_STALE_HANDLE, "freeing twice");
    if (ims_free_group(&domain, 1) != VECTORS - 1)
        check(-IMS_STALE_HANDLE, "freeing the rest");
    return fired;
}

void c_main(void)
{
    take_interrupts();
    uint32_t fired = run();
    say("@result slots=");
    say_number(VECTORS);
    say(" slots_fired=");
    say_number(fired);
    say(" errors=");
    say_number(VECTORS - fired);
    say("\n");
    end(fired == VECTORS ? 0 : 1);
}

/* The first instructions, as Linux's 64-bit boot protocol leaves the machine: a stack, and segments that interrupts can use. */
__asm__(".pushsection .text._start, \"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        "    cli\n"
        "    cld\n"
        "    lea stack_top(%rip), %rsp\n"
        "    lgdt gdt_pointer(%rip)\n"
        "    pushq $0x10\n"
        "    lea 1f(%rip), %rax\n"
        "    pushq %rax\n"
        "    lretq\n"
        "1:  mov $0x18, %eax\n"
        "    mov %eax, %ds\n"
        "    mov %eax, %es\n"
        "    mov %eax, %ss\n"
        "    xor %ebp, %ebp\n"
        "    call c_main\n"
        "    ud2\n"
        ".popsection\n"
        ".pushsection .rodata\n"
        ".balign 8\n"
        "gdt: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff\n"
        "gdt_pointer: .word 31\n"
        "    .quad gdt\n"
        ".popsection\n"
        ".pushsection .bss\n"
        ".balign 16\n"
        "    .skip 65536\n"
        "stack_top:\n"
        ".popsection\n");
