// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Finds imsvisor's hypercall domain, enables it, and says which way to the
 * message stores is open.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/module.h>

#include "compat.h"
#include "internal.h"

struct imsvisor_domain imsvisor_domain;
static const struct imsvisor_way *the_way;

static unsigned int fail_call;
module_param(fail_call, uint, 0644);
MODULE_PARM_DESC(fail_call, "For tests: a call that fails, by its number");

static unsigned int fail_in;
module_param(fail_in, uint, 0644);
MODULE_PARM_DESC(fail_in, "For tests: which of these calls fails, counted from 1; 0: none");

/**
 * imsvisor_way - The way to slots that the policy leaves open
 *
 * Return: the way, or NULL if drivers have to do with MSI-X.
 */
const struct imsvisor_way *imsvisor_way(void)
{
	return the_way;
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

	if (unlikely(fail_in) && call == fail_call && !--fail_in)
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

/* What stands at a base where a domain can be. */
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
			   IMSVISOR_FEATURE_FEWER_GRANT;
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

static void __init choose_way(void)
{
	bool found = find_domain();
	const char *why;

	if (found && enable_domain())
		found = false;
	switch (imsvisor_decide(found, &why)) {
	case IMSVISOR_HYPERCALL:
		the_way = &imsvisor_hypercall_way;
		pr_info("message stores by hypercall: domain %u.%u at CPUID %#x, features %#x\n",
			imsvisor_domain.version >> 16,
			imsvisor_domain.version & 0xffff,
			imsvisor_domain.base, imsvisor_domain.features);
		break;
	case IMSVISOR_NATIVE:
		the_way = &imsvisor_native_way;
		pr_info("message stores natively: %s\n", why);
		break;
	case IMSVISOR_REFUSED:
		the_way = NULL;
		pr_info("no message stores: %s\n", why);
		break;
	}
}

static int __init imsvisor_init(void)
{
	int rc = imsvisor_irq_init();

	if (rc)
		return rc;
	choose_way();
	rc = imsvisor_manage_init();
	if (rc) {
		imsvisor_irq_exit();
		return rc;
	}
	imsvisor_stop_init();
	return 0;
}

static void __exit imsvisor_exit(void)
{
	imsvisor_stop_exit();
	imsvisor_manage_exit();
	imsvisor_irq_exit();
}

module_init(imsvisor_init);
module_exit(imsvisor_exit);

MODULE_DESCRIPTION("Interrupt message stores through imsvisor's hypercall domain");
MODULE_AUTHOR("The imsvisor project");
MODULE_LICENSE("Dual MIT/GPL");
