// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The end of the kernel, and hibernation.
 *
 * The hypervisor keeps slots over a kexec, and the next kernel does not know
 * their handles. So they are freed when all devices have been shut down. A
 * crashed kernel frees nothing: hypercall.c does this in the next one.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/notifier.h>
#include <linux/suspend.h>

#include "compat.h"
#include "internal.h"

/* Drivers have shut their devices down. */
static void shutdown(void)
{
	struct imsvisor_ims *ims;

	mutex_lock(&imsvisor_ims_list_lock);
	list_for_each_entry(ims, &imsvisor_ims_list, node)
		ims->ops->shutdown(ims);
	mutex_unlock(&imsvisor_ims_list_lock);
	imsvisor_stop_shutdown();
}

IMSVISOR_SYSCORE(imsvisor_syscore, shutdown);

/* A kernel that wakes from an image would use handles of another boot. */
static int power_changes(struct notifier_block *block, unsigned long action, void *data)
{
	int rc = 0;

	if (action != PM_HIBERNATION_PREPARE)
		return NOTIFY_DONE;
	mutex_lock(&imsvisor_ims_list_lock);
	if (!list_empty(&imsvisor_ims_list)) {
		pr_err("hibernation is refused while message stores are in use\n");
		rc = -EBUSY;
	}
	mutex_unlock(&imsvisor_ims_list_lock);
	return notifier_from_errno(rc);
}

static struct notifier_block power_block = { .notifier_call = power_changes };

static bool is_registered;

/**
 * imsvisor_power_init - Frees slots at the end of the kernel from now on
 */
void __init imsvisor_power_init(void)
{
	int rc = register_pm_notifier(&power_block);

	if (rc)
		pr_warn("hibernation will not be refused: %d\n", rc);
	imsvisor_register_syscore(&imsvisor_syscore);
	is_registered = true;
}

/**
 * imsvisor_power_exit - Undoes imsvisor_power_init(), if it was called
 */
void imsvisor_power_exit(void)
{
	if (!is_registered)
		return;
	imsvisor_unregister_syscore(&imsvisor_syscore);
	unregister_pm_notifier(&power_block);
}
