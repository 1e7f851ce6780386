// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * imsvisorctl: manages all guests of imsvisor, from a Linux with manage=on.
 *
 *   list				a line for each guest
 *   start NAME				starts a guest
 *   stop NAME				asks it to stop, and ends it after ten seconds
 *   stop NAME --force			ends it at once
 *   stop NAME --grace=MS		gives it so many milliseconds
 *   restart NAME			and --force, --grace: as stop, then starts it
 *   counters NAME			what it has used
 *   wait NAME STATE			waits until it is in a state, a minute at most
 *
 * It needs no library, so that it runs in any initrd:
 *
 *   cc -O2 -static -nostdlib -ffreestanding -I.. -I../../../hcall-abi/include \
 *	-o imsvisorctl imsvisorctl.c
 */
#include <stddef.h>
#include <stdint.h>

#include "imsvisor_ioctl.h"

#define DEVICE		"/dev/imsvisor"
#define DEFAULT_GRACE	10000
#define WAIT_MS		60000
#define LOOK_MS		20

/* System calls of x86-64. */
enum { SYS_WRITE = 1, SYS_OPEN = 2, SYS_IOCTL = 16, SYS_NANOSLEEP = 35, SYS_EXIT = 60 };
enum { READ_WRITE = 2 };
enum { STDOUT = 1, STDERR = 2 };
/* The error for a guest that is not there. */
enum { NO_GUEST = -22 };

static const char * const states[] = {
	[IMSVISOR_GUEST_STATE_STOPPED] = "stopped",
	[IMSVISOR_GUEST_STATE_STARTING] = "starting",
	[IMSVISOR_GUEST_STATE_RUNNING] = "running",
	[IMSVISOR_GUEST_STATE_STOPPING] = "stopping",
	[IMSVISOR_GUEST_STATE_FAILED] = "failed",
};

static long device;

static long call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return result;
}

static size_t length(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

/* What follows @start in @text, or NULL. */
static const char *behind(const char *text, const char *start)
{
	while (*start) {
		if (*text++ != *start++)
			return NULL;
	}
	return text;
}

static void write_to(int where, const char *text)
{
	call(SYS_WRITE, where, (long)text, length(text));
}

static void say(const char *text)
{
	write_to(STDOUT, text);
}

static void say_number(uint64_t value)
{
	char digits[24];
	int at = sizeof(digits) - 1;

	digits[at] = 0;
	do
		digits[--at] = '0' + value % 10;
	while (value /= 10);
	say(&digits[at]);
}

static void say_value(const char *key, uint64_t value)
{
	say(" ");
	say(key);
	say("=");
	say_number(value);
}

static _Noreturn void finish(int code)
{
	call(SYS_EXIT, code, 0, 0);
	__builtin_unreachable();
}

static _Noreturn void fail(const char *what, const char *name)
{
	write_to(STDERR, "imsvisorctl: ");
	write_to(STDERR, what);
	write_to(STDERR, name);
	write_to(STDERR, "\n");
	finish(1);
}

static const char *state_of(const struct imsvisor_guest_info *info)
{
	return info->state < sizeof(states) / sizeof(*states) ? states[info->state] : "unknown";
}

/* Asks about a guest by its number; 0 if there is none. */
static int ask(uint32_t guest, struct imsvisor_guest_info *info)
{
	struct imsvisor_ioc_info asked = { .guest = guest };
	long rc = call(SYS_IOCTL, device, IMSVISOR_IOC_INFO, (long)&asked);

	if (rc == NO_GUEST)
		return 0;
	if (rc < 0)
		fail("cannot ask about guests by ", DEVICE);
	*info = asked.info;
	return 1;
}

static void list(void)
{
	struct imsvisor_guest_info info;
	char name[sizeof(info.name) + 1];
	uint32_t guest;

	for (guest = 0; ask(guest, &info); guest++) {
		__builtin_memcpy(name, info.name, sizeof(info.name));
		name[sizeof(info.name)] = 0;
		say_number(guest);
		say(" ");
		say(name);
		say(" ");
		say(state_of(&info));
		say_value("cpus", info.vcpus);
		say_value("memory", info.memory_mib);
		say_value("weight", info.weight);
		say_value("starts", info.starts);
		say(info.flags & IMSVISOR_GUEST_FLAG_OWN ? " own\n" : "\n");
	}
}

/* The number of the guest with this name. */
static uint32_t find(const char *wanted, struct imsvisor_guest_info *info)
{
	char name[sizeof(info->name) + 1];
	uint32_t guest;

	for (guest = 0; ask(guest, info); guest++) {
		__builtin_memcpy(name, info->name, sizeof(info->name));
		name[sizeof(info->name)] = 0;
		if (same(name, wanted))
			return guest;
	}
	fail("no guest ", wanted);
}

static void counters(const char *name)
{
	struct imsvisor_guest_info info;
	struct imsvisor_ioc_counters asked = { .guest = find(name, &info) };

	if (call(SYS_IOCTL, device, IMSVISOR_IOC_COUNTERS, (long)&asked) < 0)
		fail("no figures of ", name);
	say(name);
	say_value("charged", asked.counters.charged);
	say_value("interrupting", asked.counters.interrupting);
	say_value("building", asked.counters.building);
	say_value("exits", asked.counters.exits);
	say_value("interrupts", asked.counters.interrupts);
	say("\n");
}

/* A number that ends the text and is at most @most. */
static uint32_t number(const char *text, uint32_t most)
{
	uint64_t value = 0;

	if (!*text)
		fail("a number is missing", "");
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			fail("not a number: ", text);
		value = value * 10 + (*text - '0');
		if (value > most)
			fail("too large a number", "");
	}
	return value;
}

static uint32_t grace(const char *option)
{
	const char *given;

	if (!option)
		return DEFAULT_GRACE;
	if (same(option, "--force"))
		return 0;
	given = behind(option, "--grace=");
	if (!given)
		fail("unknown option ", option);
	return number(given, IMSVISOR_GRACE_MAX);
}

static void change(unsigned long request, const char *name, uint32_t grace_ms)
{
	struct imsvisor_guest_info info;
	struct imsvisor_ioc_life asked = { .guest = find(name, &info), .grace_ms = grace_ms };

	if (call(SYS_IOCTL, device, request, (long)&asked) < 0)
		fail("the hypervisor refuses it for ", name);
}

static void wait_for(const char *name, const char *state)
{
	const long pause[2] = { 0, LOOK_MS * 1000000L };
	struct imsvisor_guest_info info;
	int looks;

	for (looks = 0; looks < WAIT_MS / LOOK_MS; looks++) {
		find(name, &info);
		if (same(state_of(&info), state))
			return;
		call(SYS_NANOSLEEP, (long)pause, 0, 0);
	}
	fail("in vain waited for ", name);
}

static _Noreturn void run(int nr, char **words)
{
	const char *command = nr > 1 ? words[1] : "";
	const char *name = nr > 2 ? words[2] : NULL;
	const char *more = nr > 3 ? words[3] : NULL;

	device = call(SYS_OPEN, (long)DEVICE, READ_WRITE, 0);
	if (device < 0)
		fail("cannot open ", DEVICE);
	if (same(command, "list") && !name)
		list();
	else if (same(command, "start") && name && !more)
		change(IMSVISOR_IOC_START, name, 0);
	else if (same(command, "stop") && name)
		change(IMSVISOR_IOC_STOP, name, grace(more));
	else if (same(command, "restart") && name)
		change(IMSVISOR_IOC_RESTART, name, grace(more));
	else if (same(command, "counters") && name && !more)
		counters(name);
	else if (same(command, "wait") && more)
		wait_for(name, more);
	else
		fail("list, start, stop, restart, counters or wait, and a guest's name", "");
	finish(0);
}

/* The stack begins with the number of words and the words. */
_Noreturn void entry(long *stack)
{
	run((int)stack[0], (char **)&stack[1]);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call entry\n");
