// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Finds imsvisor's hypercall domain, enables it, and chooses how message stores
 * are reached.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/module.h>
#include <linux/spinlock.h>

#include "compat.h"
#include "internal.h"

struct imsvisor_domain imsvisor_domain __ro_after_init;
static const struct imsvisor_ims_ops *active_ops __ro_after_init;

/* The devices that have an irq domain. */
DEFINE_MUTEX(imsvisor_ims_list_lock);
LIST_HEAD(imsvisor_ims_list);

#ifdef IMSVISOR_FAIL_CALLS
/* A build for tests can have a call fail. */
static unsigned int fail_call;
module_param(fail_call, uint, 0644);
MODULE_PARM_DESC(fail_call, "A call that fails, by its number");

static unsigned int fail_in;
module_param(fail_in, uint, 0644);
MODULE_PARM_DESC(fail_in, "Which of these calls fails, counted from 1; 0: none");

static unsigned int fail_more;
module_param(fail_more, uint, 0644);
MODULE_PARM_DESC(fail_more, "How many of these calls fail after it");

static DEFINE_RAW_SPINLOCK(fail_lock);

static bool must_fail(u32 call)
{
	unsigned long flags;
	bool fails = false;

	raw_spin_lock_irqsave(&fail_lock, flags);
	if (fail_in && call == fail_call) {
		fails = !--fail_in;
		if (fails && fail_more) {
			fail_more--;
			fail_in = 1;
		}
	}
	raw_spin_unlock_irqrestore(&fail_lock, flags);
	return fails;
}
#else
static bool must_fail(u32 call)
{
	return false;
}
#endif

/**
 * imsvisor_active_ops - The operations on slots that the policy allows
 *
 * Return: the operations, or NULL if drivers have to use MSI-X.
 */
const struct imsvisor_ims_ops *imsvisor_active_ops(void)
{
	return active_ops;
}

/**
 * imsvisor_call - Makes a hypercall
 * @call:	IMSVISOR_CALL_...
 * @rbx:	first argument; arguments that a call does not use are 0
 * @rcx:	second argument
 * @rdx:	third argument
 * @rsi:	fourth argument
 *
 * Return: the result, or minus an IMSVISOR_STATUS_...
 */
long imsvisor_call(u32 call, u64 rbx, u64 rcx, u64 rdx, u64 rsi)
{
	long rax = (u64)imsvisor_domain.call_base + call;

	if (must_fail(call))
		return -(long)IMSVISOR_STATUS_HARDWARE_ERROR;
	asm volatile("vmcall"
		     : "+a" (rax)
		     : "b" (rbx), "c" (rcx), "d" (rdx), "S" (rsi)
		     : "memory");
	return rax;
}

/**
 * imsvisor_errno - The errno for a call's result
 * @status:	what imsvisor_call() returned
 *
 * Return: 0 for a result that is no status.
 */
int imsvisor_errno(long status)
{
	if (status >= 0)
		return 0;
	switch (-status) {
	case IMSVISOR_STATUS_NO_SUCH_DEVICE:
		return -ENODEV;
	case IMSVISOR_STATUS_NO_FREE_SLOT:
	case IMSVISOR_STATUS_NO_FREE_ENTRY:
	case IMSVISOR_STATUS_NO_FREE_VECTOR:
		return -ENOSPC;
	case IMSVISOR_STATUS_EXISTS:
		return -EEXIST;
	case IMSVISOR_STATUS_FORBIDDEN:
	case IMSVISOR_STATUS_NOT_PRIVILEGED:
	case IMSVISOR_STATUS_BAD_PASID:
		return -EPERM;
	case IMSVISOR_STATUS_UNSUPPORTED:
	case IMSVISOR_STATUS_UNKNOWN_CALL:
	case IMSVISOR_STATUS_NOT_ENABLED:
		return -EOPNOTSUPP;
	case IMSVISOR_STATUS_HARDWARE_ERROR:
		return -EIO;
	default:
		return -EINVAL;
	}
}

/* Reads the domain at a base, if there is one. */
static bool __init domain_at(u32 base)
{
	u32 highest, ebx, ecx, edx, version, features;

	cpuid(base + IMSVISOR_CPUID_LEAF_SIGNATURE, &highest, &ebx, &ecx, &edx);
	if (ebx != IMSVISOR_CPUID_SIGNATURE_EBX ||
	    ecx != IMSVISOR_CPUID_SIGNATURE_ECX ||
	    edx != IMSVISOR_CPUID_SIGNATURE_EDX ||
	    highest < base + IMSVISOR_CPUID_LEAF_LIMITS)
		return false;
	cpuid(base + IMSVISOR_CPUID_LEAF_VERSION, &version, &ebx, &ecx, &edx);
	if (version >> 16 != IMSVISOR_VERSION_MAJOR) {
		pr_warn("a domain of version %u is not known\n", version >> 16);
		return false;
	}
	imsvisor_domain.base = base;
	imsvisor_domain.version = version;
	imsvisor_domain.call_base = ebx;
	cpuid(base + IMSVISOR_CPUID_LEAF_FEATURES, &features, &ebx, &ecx, &edx);
	imsvisor_domain.features = features;
	cpuid(base + IMSVISOR_CPUID_LEAF_LIMITS, &imsvisor_domain.max_slots,
	      &ebx, &imsvisor_domain.groups, &edx);
	return true;
}

/*
 * The domain may stand behind the signature of another hypervisor that Linux
 * knows, so all bases are looked at.
 */
static bool __init find_domain(void)
{
	u32 base;

	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return false;
	for (base = IMSVISOR_CPUID_FIRST_BASE; base <= IMSVISOR_CPUID_LAST_BASE;
	     base += IMSVISOR_CPUID_BASE_STEP) {
		if (domain_at(base))
			return true;
	}
	return false;
}

/* Tells the hypervisor that this guest knows message stores. */
static int __init enable_domain(void)
{
	const u32 needed = IMSVISOR_FEATURE_ARRAY_STORE |
			   IMSVISOR_FEATURE_ENABLE | IMSVISOR_FEATURE_RETARGET |
			   IMSVISOR_FEATURE_FEWER_GRANT |
			   IMSVISOR_FEATURE_GROUP;
	long minor;

	if ((imsvisor_domain.features & needed) != needed) {
		pr_warn("the domain has features %#x, %#x are needed\n",
			imsvisor_domain.features, needed);
		return -EOPNOTSUPP;
	}
	minor = imsvisor_call(IMSVISOR_CALL_ENABLE,
			      IMSVISOR_VERSION_MAJOR << 16 |
			      IMSVISOR_VERSION_MINOR, 0, 0, 0);
	if (minor < 0) {
		pr_warn("the domain cannot be enabled: status %ld\n", -minor);
		return imsvisor_errno(minor);
	}
	imsvisor_domain.version = IMSVISOR_VERSION_MAJOR << 16 | minor;
	return 0;
}

static void __init choose_ops(void)
{
	bool found = find_domain();
	const char *why;

	if (found && enable_domain())
		found = false;
	switch (imsvisor_decide(found, &why)) {
	case IMSVISOR_HYPERCALL:
		active_ops = &imsvisor_hypercall_ops;
		pr_info("message stores by hypercall: domain %u.%u at CPUID %#x, features %#x\n",
			imsvisor_domain.version >> 16,
			imsvisor_domain.version & 0xffff,
			imsvisor_domain.base, imsvisor_domain.features);
		break;
	case IMSVISOR_NATIVE:
		active_ops = &imsvisor_native_ops;
		pr_info("message stores natively: %s\n", why);
		break;
	case IMSVISOR_REFUSED:
		active_ops = NULL;
		pr_info("no message stores: %s\n", why);
		break;
	}
}

static int __init imsvisor_init(void)
{
	int rc = imsvisor_irq_init();

	if (rc)
		return rc;
	choose_ops();
	if (active_ops == &imsvisor_hypercall_ops) {
		imsvisor_power_init();
		imsvisor_manage_init();
		imsvisor_stop_init();
	}
	return 0;
}

static void __exit imsvisor_exit(void)
{
	imsvisor_stop_exit();
	imsvisor_manage_exit();
	imsvisor_power_exit();
	imsvisor_irq_exit();
}

module_init(imsvisor_init);
module_exit(imsvisor_exit);

MODULE_DESCRIPTION("Interrupt message stores through imsvisor's hypercall domain");
MODULE_AUTHOR("The imsvisor project");
MODULE_LICENSE("Dual MIT/GPL");
