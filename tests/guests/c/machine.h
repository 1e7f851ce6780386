/*
 * The machine of a freestanding guest in C: entry, ports, console, interrupts, exit. A guest includes this once, and defines `c_main`.
 */

#ifndef MACHINE_H
#define MACHINE_H

#include <stdbool.h>
#include <stdint.h>

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

static inline void put(char c)
{
    while (!(in8(UART_LSR) & UART_LSR_THRE)) {
    }
    out8(UART_THR, (uint8_t)c);
}

static inline void say(const char *text)
{
    while (*text)
        put(*text++);
}

static inline void say_number(uint32_t number)
{
    if (number >= 10)
        say_number(number / 10);
    put((char)('0' + number % 10));
}

static inline _Noreturn void end(uint8_t code)
{
    for (;;)
        out8(EXIT, code);
}

static inline void check(int32_t result, const char *what)
{
    if (result >= 0)
        return;
    say("error: ");
    say(what);
    say(" failed with ");
    say_number((uint32_t)-result);
    say("\n");
    end(1);
}

/* Interrupts: a gate for each vector that is used, all of which count. */

enum { FIRST_VECTOR = 0x40, VECTORS = 16 };

#ifndef END_INTERRUPT
#define END_INTERRUPT() wrmsr(X2APIC_EOI, 0)
#endif

static volatile uint32_t came[VECTORS];

struct frame;

#define HANDLER(n)                                                                                                     \
    __attribute__((interrupt)) static void handler_##n(struct frame *frame)                                            \
    {                                                                                                                  \
        (void)frame;                                                                                                   \
        came[n]++;                                                                                                     \
        END_INTERRUPT();                                                                                               \
    }

HANDLER(0) HANDLER(1) HANDLER(2) HANDLER(3) HANDLER(4) HANDLER(5) HANDLER(6) HANDLER(7)
HANDLER(8) HANDLER(9) HANDLER(10) HANDLER(11) HANDLER(12) HANDLER(13) HANDLER(14) HANDLER(15)

/* A spurious interrupt gets no EOI (SDM volume 3, 12.9). */
__attribute__((interrupt)) static void spurious(struct frame *frame) { (void)frame; }

static uint64_t table[256][2] __attribute__((aligned(16)));

static inline void gate(uint8_t vector, void (*handler)(struct frame *))
{
    uint64_t at = (uint64_t)handler;
    /* SDM volume 3, 7.14.1: present interrupt gate, code segment 0x10. */
    table[vector][0] = (at & 0xffff) | 0x10ull << 16 | 0x8e00ull << 32 | (at & 0xffff0000) << 32;
    table[vector][1] = at >> 32;
}

static inline void take_interrupts(void)
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
    gate(SPURIOUS, spurious);
    __asm__ volatile("lidt %0" : : "m"(pointer));
    wrmsr(X2APIC_SVR, 0x100 | SPURIOUS);
    __asm__ volatile("sti");
}

static inline bool comes(uint32_t n, uint32_t count)
{
    for (uint32_t tries = 0; tries < 1000000 && came[n] != count; tries++)
        __asm__ volatile("pause");
    return came[n] == count;
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

#endif
