// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The state of a slot: what genirq wants, what the device has, and how the
 * second follows the first, also after a call that failed.
 *
 * A slot fires only where Linux expects it. After a failed SetAffinity the slot
 * stays masked, because Linux may free the old vector at any time, for example
 * when its processor goes offline. Work repeats what failed.
 */
#include <linux/module.h>

#include "internal.h"

/* The first repair follows a failure after this time, others each second. */
#define REPAIR_FIRST	(HZ / 10)
#define REPAIR_AGAIN	HZ
/* Repairs that fail before an error is logged and others follow seldom. */
#define REPAIRS_MAX	5
#define REPAIR_SELDOM	(60 * HZ)

/* Callbacks of genirq that return nothing log their errors. */
static void warn_failed(struct imsvisor_slot *slot, const char *what, int rc)
{
	if (rc)
		dev_err_ratelimited(&slot->ims->pdev->dev,
				    "slot %u cannot be %s: %d\n",
				    imsvisor_index(slot->handle), what, rc);
}

static void queue_repair(struct imsvisor_ims *ims, unsigned long delay)
{
	WRITE_ONCE(ims->repairs, 0);
	queue_delayed_work(system_power_efficient_wq, &ims->repair, delay);
}

/* Brings the mask of the device to what is wanted; slot->lock is held. */
static int apply_mask(struct imsvisor_slot *slot)
{
	bool masked = slot->masked || slot->stale || slot->limited;
	int rc;

	if (!slot->mapped || (!slot->unsure && slot->device_masked == masked))
		return 0;
	rc = slot->ims->ops->mask(slot, masked);
	slot->unsure = rc;
	if (!rc)
		slot->device_masked = masked;
	warn_failed(slot, masked ? "masked" : "unmasked", rc);
	return rc;
}

/**
 * imsvisor_slot_set_masked - Masks or unmasks a slot
 * @slot:	the slot
 * @masked:	what genirq wants
 *
 * A slot without a target is masked. If the call fails, it is repeated later.
 */
void imsvisor_slot_set_masked(struct imsvisor_slot *slot, bool masked)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&slot->lock, flags);
	slot->masked = masked;
	if (apply_mask(slot))
		queue_repair(slot->ims, REPAIR_FIRST);
	raw_spin_unlock_irqrestore(&slot->lock, flags);
}

/* Takes the result of a change of the target; slot->lock is held. */
static void take_affinity(struct imsvisor_slot *slot, int rc)
{
	slot->stale = rc;
	/* The hypervisor masks a slot whose entry it cannot flush. */
	slot->unsure |= rc;
	warn_failed(slot, "moved", rc);
}

/**
 * imsvisor_slot_set_affinity - Sends a slot's interrupts elsewhere
 * @slot:	the slot
 * @data:	its irq_data; the domains above have chosen the target
 *
 * The target of Linux has changed already, and cannot be changed back. If the
 * call fails, the slot is masked until a repeated call has succeeded.
 */
void imsvisor_slot_set_affinity(struct imsvisor_slot *slot, struct irq_data *data)
{
	unsigned long flags;
	int rc;

	raw_spin_lock_irqsave(&slot->lock, flags);
	if (slot->mapped) {
		rc = slot->ims->ops->set_affinity(slot, data);
		take_affinity(slot, rc);
		if (apply_mask(slot) || rc)
			queue_repair(slot->ims, REPAIR_FIRST);
	}
	raw_spin_unlock_irqrestore(&slot->lock, flags);
}

/**
 * imsvisor_slot_activate - Gives a slot the target of its irq
 * @slot:	the slot
 * @data:	its irq_data
 *
 * A slot is mapped and unmasked by one call. A slot that could not be unmapped
 * when it was deactivated has its target changed, and is unmasked by genirq.
 *
 * Return: 0 or an errno.
 */
int imsvisor_slot_activate(struct imsvisor_slot *slot, struct irq_data *data)
{
	const struct imsvisor_ims_ops *ops = slot->ims->ops;
	unsigned long flags;
	int rc;

	raw_spin_lock_irqsave(&slot->lock, flags);
	if (slot->mapped) {
		rc = ops->set_affinity(slot, data);
		take_affinity(slot, rc);
	} else {
		rc = ops->map(slot, data);
		if (!rc) {
			slot->mapped = true;
			slot->masked = false;
			slot->device_masked = false;
		}
	}
	raw_spin_unlock_irqrestore(&slot->lock, flags);
	return rc;
}

/**
 * imsvisor_slot_deactivate - Takes a slot's target away
 * @slot:	the slot
 *
 * Linux frees the vector behind this. A slot that cannot be unmapped stays
 * masked, and keeps an entry that leads to a vector that is free.
 */
void imsvisor_slot_deactivate(struct imsvisor_slot *slot)
{
	unsigned long flags;
	int rc;

	raw_spin_lock_irqsave(&slot->lock, flags);
	slot->masked = true;
	slot->stale = false;
	slot->limited = false;
	if (slot->mapped) {
		rc = slot->ims->ops->unmap(slot);
		warn_failed(slot, "unmapped", rc);
		if (!rc) {
			slot->mapped = false;
			slot->device_masked = true;
			slot->unsure = false;
		} else if (apply_mask(slot)) {
			queue_repair(slot->ims, REPAIR_FIRST);
		}
		slot->target = 0;
	}
	raw_spin_unlock_irqrestore(&slot->lock, flags);
}

/**
 * imsvisor_slot_note_storm - Takes notice that the hypervisor has masked a slot
 * @ims:	the device's store
 * @index:	the slot, which fired too fast
 *
 * The slot is unmasked after a second. If it fires too fast again, the
 * hypervisor masks it again.
 */
void imsvisor_slot_note_storm(struct imsvisor_ims *ims, unsigned int index)
{
	struct imsvisor_slot *slot;
	struct irq_data *data;
	unsigned long flags;

	mutex_lock(&ims->lock);
	data = irq_domain_get_irq_data(ims->domain,
				       irq_find_mapping(ims->domain, index));
	if (data) {
		slot = irq_data_get_irq_chip_data(data);
		raw_spin_lock_irqsave(&slot->lock, flags);
		slot->limited = slot->mapped;
		slot->unsure |= slot->mapped;
		raw_spin_unlock_irqrestore(&slot->lock, flags);
		queue_repair(ims, REPAIR_AGAIN);
	}
	mutex_unlock(&ims->lock);
}

/**
 * imsvisor_slots_note_lost - Takes notice that records of faults were lost
 * @ims:	the device's store
 *
 * Any of them may have said that the hypervisor has masked a slot. So the mask
 * of each slot is set anew.
 */
void imsvisor_slots_note_lost(struct imsvisor_ims *ims)
{
	struct imsvisor_slot *slot;
	unsigned long flags;

	mutex_lock(&ims->lock);
	list_for_each_entry(slot, &ims->irqs, node) {
		raw_spin_lock_irqsave(&slot->lock, flags);
		slot->unsure |= slot->mapped;
		raw_spin_unlock_irqrestore(&slot->lock, flags);
	}
	queue_repair(ims, REPAIR_AGAIN);
	mutex_unlock(&ims->lock);
}

/* Repeats the calls for a slot that have failed; returns the errno of the last. */
static int repair(struct imsvisor_slot *slot)
{
	unsigned long flags;
	int rc = 0;

	raw_spin_lock_irqsave(&slot->lock, flags);
	slot->limited = false;
	if (slot->mapped && slot->stale) {
		rc = slot->ims->ops->retry_affinity(slot);
		take_affinity(slot, rc);
	}
	rc = apply_mask(slot) ?: rc;
	raw_spin_unlock_irqrestore(&slot->lock, flags);
	return rc;
}

/**
 * imsvisor_slots_repair - Repeats the calls for a device's slots that failed
 * @work:	the device's work
 */
void imsvisor_slots_repair(struct work_struct *work)
{
	struct imsvisor_ims *ims = container_of(to_delayed_work(work),
						struct imsvisor_ims, repair);
	unsigned int wrong = 0, repairs;
	struct imsvisor_slot *slot;

	mutex_lock(&ims->lock);
	list_for_each_entry(slot, &ims->irqs, node) {
		wrong += !!repair(slot);
		cond_resched();
	}
	mutex_unlock(&ims->lock);
	if (!wrong)
		return;
	repairs = READ_ONCE(ims->repairs) + 1;
	WRITE_ONCE(ims->repairs, repairs);
	if (repairs == REPAIRS_MAX)
		pci_err(ims->pdev, "%u slots cannot be repaired for now\n", wrong);
	/*
	 * Nobody else may try: the vector domain refuses to move an irq again
	 * before it has fired, and a slot that could not be moved does not fire.
	 */
	queue_delayed_work(system_power_efficient_wq, &ims->repair,
			   repairs < REPAIRS_MAX ? REPAIR_AGAIN : REPAIR_SELDOM);
}
