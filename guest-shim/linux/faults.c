// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Faults of slots, as the hypervisor records them. No interrupt tells of a
 * record, so somebody looks from time to time, while a device has a domain.
 */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "internal.h"

static unsigned int fault_poll_ms = 2000;
module_param(fault_poll_ms, uint, 0444);
MODULE_PARM_DESC(fault_poll_ms, "Milliseconds between looks for faults; 0: none (default: 2000)");

/* Devices with a domain; the lock is a leaf. */
static DEFINE_MUTEX(all_lock);
static LIST_HEAD(all);

static void poll_faults(struct work_struct *work);
static DECLARE_DELAYED_WORK(poll, poll_faults);

static const char *what_of(u8 kind)
{
	switch (kind) {
	case IMSVISOR_FAULT_REMAPPING:
		return "a message was refused by the remapping unit";
	case IMSVISOR_FAULT_STORM:
		return "it was masked because it fired too fast";
	case IMSVISOR_FAULT_REFUSED:
		return "a write could not be carried out";
	default:
		return "a fault of a kind that is not known";
	}
}

static void report(const struct imsvisor_fault_record *record)
{
	struct imsvisor_ims *ims;

	list_for_each_entry(ims, &all, node) {
		if (pci_dev_id(ims->pdev) != record->device)
			continue;
		dev_err_ratelimited(&ims->pdev->dev,
				    "%s %u (cookie %#llx): %s, reason %#x, %u more lost\n",
				    record->store == IMSVISOR_FAULT_STORE_MSIX ?
				    "MSI-X entry" : "slot", record->slot,
				    record->cookie, what_of(record->kind),
				    record->reason, record->lost);
		return;
	}
}

static void read_faults(struct imsvisor_fault_record *records)
{
	long n, nr;

	do {
		nr = imsvisor_call(IMSVISOR_CALL_READ_FAULTS, virt_to_phys(records),
				   IMSVISOR_FAULTS_MAX, 0, 0);
		for (n = 0; n < nr; n++)
			report(&records[n]);
		cond_resched();
	} while (nr == IMSVISOR_FAULTS_MAX);
}

static void poll_again(void)
{
	queue_delayed_work(system_power_efficient_wq, &poll,
			   msecs_to_jiffies(fault_poll_ms));
}

static void poll_faults(struct work_struct *work)
{
	struct imsvisor_fault_record *records = (void *)__get_free_page(GFP_KERNEL);

	mutex_lock(&all_lock);
	if (records)
		read_faults(records);
	if (!list_empty(&all))
		poll_again();
	mutex_unlock(&all_lock);
	free_page((unsigned long)records);
}

static bool is_polled(void)
{
	return imsvisor_way() == &imsvisor_hypercall_way && fault_poll_ms &&
	       imsvisor_domain.features & IMSVISOR_FEATURE_FAULT_LOG;
}

/**
 * imsvisor_faults_add - Looks for a device's faults from now on
 * @ims:	the device's store
 */
void imsvisor_faults_add(struct imsvisor_ims *ims)
{
	mutex_lock(&all_lock);
	list_add(&ims->node, &all);
	if (is_polled())
		poll_again();
	mutex_unlock(&all_lock);
}

/**
 * imsvisor_faults_del - Ends what imsvisor_faults_add() began
 * @ims:	the device's store
 */
void imsvisor_faults_del(struct imsvisor_ims *ims)
{
	mutex_lock(&all_lock);
	list_del(&ims->node);
	mutex_unlock(&all_lock);
	/* Nobody looks for this device any more, and again for others. */
	cancel_delayed_work_sync(&poll);
	mutex_lock(&all_lock);
	if (!list_empty(&all) && is_polled())
		poll_again();
	mutex_unlock(&all_lock);
}
