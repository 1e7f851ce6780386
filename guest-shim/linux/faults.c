// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Faults of slots, as the hypervisor records them. No interrupt tells of a
 * record, so work reads the records from time to time, while a device has a
 * domain.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/io.h>
#include <linux/module.h>
#include <linux/ratelimit.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "internal.h"

/* Calls of one look. There may be more records, which wait for the next look. */
#define ROUNDS_MAX	8

static unsigned int fault_poll_ms = 2000;
module_param(fault_poll_ms, uint, 0444);
MODULE_PARM_DESC(fault_poll_ms, "Milliseconds between looks for faults; 0: none (default: 2000)");

static void read_and_log_faults(struct work_struct *work);
static DECLARE_DELAYED_WORK(fault_work, read_and_log_faults);

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

/* The device's domain, or NULL; imsvisor_ims_list_lock is held. */
static struct imsvisor_ims *find_device(u16 device)
{
	struct imsvisor_ims *ims;

	list_for_each_entry(ims, &imsvisor_ims_list, node) {
		if (pci_dev_id(ims->pdev) == device)
			return ims;
	}
	return NULL;
}

static void report(const struct imsvisor_fault_record *record)
{
	bool foreign = record->flags & IMSVISOR_FAULT_FLAG_FOREIGN;
	bool msix = record->store == IMSVISOR_FAULT_STORE_MSIX;
	struct imsvisor_ims *ims = find_device(record->device);

	if (!ims) {
		pr_err_ratelimited("device %#x, %s %u: %s, reason %#x, %u more lost\n",
				   record->device, msix ? "MSI-X entry" : "slot",
				   record->slot, what_of(record->kind),
				   record->reason, record->lost);
		return;
	}
	if (__ratelimit(&ims->ratelimit))
		pci_err(ims->pdev,
			"%s %u (cookie %#llx): %s, reason %#x%s, %u more lost\n",
			msix ? "MSI-X entry" : "slot", record->slot,
			record->cookie, what_of(record->kind), record->reason,
			foreign ? ", sent by another function" : "", record->lost);
	if (record->kind == IMSVISOR_FAULT_STORM &&
	    record->store == IMSVISOR_FAULT_STORE_ARRAY)
		imsvisor_slot_note_storm(ims, record->slot);
}

/* imsvisor_ims_list_lock is held. */
static void note_lost(void)
{
	struct imsvisor_ims *ims;

	list_for_each_entry(ims, &imsvisor_ims_list, node)
		imsvisor_slots_note_lost(ims);
}

static void read_faults(struct imsvisor_fault_record *records)
{
	unsigned int rounds;
	bool lost = false;
	long n, nr;

	for (rounds = 0; rounds < ROUNDS_MAX; rounds++) {
		nr = imsvisor_call(IMSVISOR_CALL_READ_FAULTS, virt_to_phys(records),
				   IMSVISOR_FAULTS_MAX, 0, 0);
		if (nr < 0 || nr > IMSVISOR_FAULTS_MAX) {
			pr_err_ratelimited("faults cannot be read: %ld\n", nr);
			break;
		}
		for (n = 0; n < nr; n++) {
			report(&records[n]);
			lost |= records[n].lost;
		}
		if (nr < IMSVISOR_FAULTS_MAX)
			break;
		cond_resched();
	}
	if (lost)
		note_lost();
}

static void poll_again(void)
{
	queue_delayed_work(system_power_efficient_wq, &fault_work,
			   msecs_to_jiffies(fault_poll_ms));
}

static void read_and_log_faults(struct work_struct *work)
{
	struct imsvisor_fault_record *records = (void *)__get_free_page(GFP_KERNEL);

	mutex_lock(&imsvisor_ims_list_lock);
	if (records)
		read_faults(records);
	if (!list_empty(&imsvisor_ims_list))
		poll_again();
	mutex_unlock(&imsvisor_ims_list_lock);
	free_page((unsigned long)records);
}

static bool is_polled(void)
{
	return imsvisor_active_ops() == &imsvisor_hypercall_ops && fault_poll_ms &&
	       imsvisor_domain.features & IMSVISOR_FEATURE_FAULT_LOG;
}

/**
 * imsvisor_faults_add - Looks for a device's faults from now on
 * @ims:	the device's store
 */
void imsvisor_faults_add(struct imsvisor_ims *ims)
{
	mutex_lock(&imsvisor_ims_list_lock);
	list_add(&ims->node, &imsvisor_ims_list);
	if (is_polled())
		poll_again();
	mutex_unlock(&imsvisor_ims_list_lock);
}

/**
 * imsvisor_faults_del - Ends what imsvisor_faults_add() began
 * @ims:	the device's store
 */
void imsvisor_faults_del(struct imsvisor_ims *ims)
{
	mutex_lock(&imsvisor_ims_list_lock);
	list_del(&ims->node);
	mutex_unlock(&imsvisor_ims_list_lock);
	/* The work may hold the device until it ends. It goes on for others. */
	cancel_delayed_work_sync(&fault_work);
	mutex_lock(&imsvisor_ims_list_lock);
	if (!list_empty(&imsvisor_ims_list) && is_polled())
		poll_again();
	mutex_unlock(&imsvisor_ims_list_lock);
}
