// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A user's program that copies memory by a DSA, with the addresses of its own process (shared virtual addressing). It needs no library.
//
//   svacopy DEVICE COPIES
//
// Each copy is one of four kinds in turn: both pages are there; the destination was never touched; the source was never touched;
// and the destination was never touched, and the descriptor does not wait for it, so that the device has to report a page fault there.
// What the device does in the first three is verified byte by byte. The last line says what came of it.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

enum { PAGE = 4096, SYS_WRITE = 1, SYS_OPEN = 2, SYS_MMAP = 9, SYS_YIELD = 24, SYS_MADVISE = 28, SYS_EXIT = 60 };
enum { READ_WRITE = 2, PROT_READ_WRITE = 3, SHARED = 1, PRIVATE_ANONYMOUS = 0x22, NO_HUGE_PAGES = 15 };
// The descriptor's flags and operation, and the record's status (linux/idxd.h).
enum { BLOCK_ON_FAULT = 2, RECORD_ADDRESS_VALID = 4, REQUEST_RECORD = 8, MEMMOVE = 3 };
enum { SUCCESS = 1, WRITE_FAULT = 0x83 };
enum { MOST_COPIES = 4096, MOST_LOOKS = 200000 };

struct descriptor {
	u32 pasid;
	u32 flags; // and the operation in bits 31:24
	u64 record, source, destination;
	u32 size, handle;
	u64 more[3];
} __attribute__((aligned(64)));

struct record {
	volatile u8 status;
	u8 result, unused[2];
	u32 bytes;
	u64 fault;
	u64 more[2];
} __attribute__((aligned(32)));

static struct record record;
static volatile u8 *portal;
static u64 verified, faulted, errors, timeouts;

static long call(long number, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register u64 r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static void say(const char *text)
{
	u64 length = 0;

	while (text[length])
		length++;
	call(SYS_WRITE, 1, (u64)text, length, 0, 0, 0);
}

static void say_number(const char *key, u64 value)
{
	char digits[24];
	int at = sizeof(digits) - 1;

	digits[at] = 0;
	do
		digits[--at] = '0' + value % 10;
	while (value /= 10);
	say(key);
	say(&digits[at]);
}

static void finish(int code)
{
	call(SYS_EXIT, code, 0, 0, 0, 0, 0);
	__builtin_unreachable();
}

static void fail(const char *why)
{
	say("user_errors=1 user_failed=");
	say(why);
	say("\n");
	finish(1);
}

// Fresh memory: no page of it is there until it is touched.
static u8 *fresh(u64 bytes)
{
	long at = call(SYS_MMAP, 0, bytes, PROT_READ_WRITE, PRIVATE_ANONYMOUS, -1UL, 0);

	if (at < 0 || call(SYS_MADVISE, at, bytes, NO_HUGE_PAGES, 0, 0, 0) < 0)
		fail("memory");
	return (u8 *)at;
}

// The byte of a copy's pattern at an offset.
static u8 pattern(u64 copy, u64 offset)
{
	return copy * 7 + offset * 13 + offset / 251 + 1;
}

// Submits a copy, and waits for its record; 0 if none came.
static u8 move(const u8 *source, u8 *destination, u32 size, u32 flags)
{
	struct descriptor descriptor = {
		.flags = MEMMOVE << 24 | RECORD_ADDRESS_VALID | REQUEST_RECORD | flags,
		.record = (u64)&record,
		.source = (u64)source,
		.destination = (u64)destination,
		.size = size,
	};

	record.status = 0;
	__asm__ volatile("movdir64b %0, %1" : : "m"(descriptor), "r"(portal) : "memory");
	for (u64 looks = 0; looks < MOST_LOOKS && !record.status; looks++)
		call(SYS_YIELD, 0, 0, 0, 0, 0, 0);
	__asm__ volatile("" : : : "memory");
	return record.status;
}

// One copy of almost a page, at an odd place in it.
static void copy(u64 n, u8 *source, u8 *destination)
{
	u64 kind = n % 4, offset = n % 61, size = PAGE - 64;
	u8 status;

	for (u64 at = 0; kind != 2 && at < size; at++)
		source[offset + at] = pattern(n, at);
	for (u64 at = 0; kind % 2 == 0 && at < size; at++)
		destination[offset + at] = 0xff;
	status = move(source + offset, destination + offset, size, kind == 3 ? 0 : BLOCK_ON_FAULT);
	if (!status) {
		timeouts++;
		return;
	}
	if (kind == 3) {
		if (status == WRITE_FAULT && record.fault == (u64)(destination + offset) && !record.bytes)
			faulted++;
		else
			errors++;
		return;
	}
	for (u64 at = 0; status == SUCCESS && at < size; at++) {
		if (destination[offset + at] != (kind == 2 ? 0 : pattern(n, at)))
			status = 0;
	}
	if (status == SUCCESS)
		verified++;
	else
		errors++;
}

static u64 number(const char *text)
{
	u64 value = 0;

	for (; *text >= '0' && *text <= '9' && value <= MOST_COPIES; text++)
		value = value * 10 + *text - '0';
	return value;
}

static void __attribute__((used)) start(u64 *stack)
{
	const char **arguments = (const char **)(stack + 1);
	u64 copies;
	long file, at;
	u8 *memory;

	if (stack[0] != 3 || !(copies = number(arguments[2])) || copies > MOST_COPIES)
		fail("arguments");
	file = call(SYS_OPEN, (u64)arguments[1], READ_WRITE, 0, 0, 0, 0);
	if (file < 0)
		fail("open");
	at = call(SYS_MMAP, 0, PAGE, PROT_READ_WRITE, SHARED, file, 0);
	if (at < 0)
		fail("portal");
	portal = (volatile u8 *)at;
	memory = fresh(copies * 2 * PAGE);
	for (u64 n = 0; n < copies; n++)
		copy(n, memory + 2 * n * PAGE, memory + (2 * n + 1) * PAGE);
	say_number("user_verified=", verified);
	say_number(" user_faulted=", faulted);
	say_number(" user_errors=", errors);
	say_number(" user_timeouts=", timeouts);
	say("\n");
	finish(errors || timeouts);
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");
