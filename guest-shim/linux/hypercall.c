// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Slots by hypercall. The hypervisor keeps the store: nothing here touches it.
 */
#include <linux/bits.h>
#include <linux/io.h>
#include <linux/ratelimit.h>
#include <linux/slab.h>
#include <linux/smp.h>

#include <asm/irqdomain.h>

#include "internal.h"

/* Most groups that the hypervisor is believed to have. */
#define GROUPS_MAX	256U

static u64 device_of(struct imsvisor_ims *ims)
{
	return pci_dev_id(ims->pdev);
}

/**
 * imsvisor_target - Where the vector domain sends an irq
 * @data:	the irq, at any level of the hierarchy
 *
 * The processor is that of the effective affinity. The APIC ID in irq_cfg is
 * a logical one where Linux uses x2APIC clusters.
 *
 * Return: one vector of one processor, as calls have it.
 */
u64 imsvisor_target(struct irq_data *data)
{
	const struct cpumask *mask = irq_data_get_effective_affinity_mask(data);
	u64 apic_id = cpu_physical_id(cpumask_first(mask));

	return apic_id << IMSVISOR_TARGET_APIC_ID_SHIFT | irqd_cfg(data)->vector;
}

/* Asks what the store has, for which there is room in the page of handles. */
static int query(struct imsvisor_ims *ims, struct imsvisor_device_info **info)
{
	long status;

	*info = (void *)ims->handles;
	memset(*info, 0, sizeof(**info));
	(*info)->size = sizeof(**info);
	(*info)->version = IMSVISOR_LAYOUT_DEVICE_INFO;
	status = imsvisor_call(IMSVISOR_CALL_QUERY_DEVICE, device_of(ims),
			       virt_to_phys(*info), 0, 0);
	return imsvisor_errno(status);
}

/* Frees the slots of all groups, by at most a call more than they need. */
static void free_groups(struct imsvisor_ims *ims, unsigned int slots)
{
	unsigned int groups = min(imsvisor_domain.groups, GROUPS_MAX);
	unsigned int group, calls;
	long freed;

	for (group = 0; group < groups; group++) {
		for (calls = 0; calls <= slots / IMSVISOR_HANDLES_MAX; calls++) {
			freed = imsvisor_call(IMSVISOR_CALL_FREE_GROUP,
					      device_of(ims), group, 0, 0);
			if (freed < 0)
				return;
			if (freed < IMSVISOR_HANDLES_MAX)
				break;
		}
	}
}

/* Frees slots that are left over; @info is what the store has. */
static void free_leftovers(struct imsvisor_ims *ims, struct imsvisor_device_info *info)
{
	unsigned int slots = info->slots, taken = slots - info->free;

	free_groups(ims, slots);
	if (query(ims, &info) || info->free != slots)
		pci_err(ims->pdev, "%u of %u slots are not free\n",
			slots - info->free, slots);
	else
		pci_warn(ims->pdev, "%u slots that were left over were freed\n", taken);
}

/* Slots are left over by a kernel that has crashed before this one. */
static int hypercall_open(struct imsvisor_ims *ims)
{
	struct imsvisor_device_info *info;
	unsigned int slots;
	int rc;

	if (pci_domain_nr(ims->pdev->bus))
		return -ENODEV;
	rc = query(ims, &info);
	if (rc)
		return rc;
	slots = info->slots;
	if (!slots || slots > min(imsvisor_domain.max_slots,
				  1U << IMSVISOR_HANDLE_GENERATION_SHIFT)) {
		pci_err(ims->pdev, "the hypervisor says that it has %u slots\n", slots);
		return -EIO;
	}
	if (info->free != slots)
		free_leftovers(ims, info);
	ims->nr_slots = slots;
	return slots;
}

/* All slots have been given back, unless a call has failed. */
static void hypercall_close(struct imsvisor_ims *ims)
{
	struct imsvisor_device_info *info;

	if (ims->domain && !query(ims, &info) && info->free != info->slots)
		free_leftovers(ims, info);
}

static void hypercall_shutdown(struct imsvisor_ims *ims)
{
	free_groups(ims, imsvisor_domain.max_slots);
}

static struct irq_domain *hypercall_parent(struct imsvisor_ims *ims)
{
	return x86_vector_domain;
}

static void hypercall_msi_prepare(struct imsvisor_ims *ims, struct irq_alloc_info *info)
{
}

static int hypercall_alloc(struct imsvisor_ims *ims, u32 group, u32 min, u32 max)
{
	long status = imsvisor_call(IMSVISOR_CALL_ALLOC_MANY, device_of(ims),
				    virt_to_phys(ims->handles),
				    (u64)max << 32 | min, group);

	if (status < 0)
		return imsvisor_errno(status);
	if (status < min || status > max) {
		pci_err(ims->pdev, "%ld slots are no answer to %u to %u\n",
			status, min, max);
		return -EIO;
	}
	return status;
}

/* The hypervisor puts each result, 0 or minus a status, in a handle's place. */
static void hypercall_free(struct imsvisor_ims *ims, unsigned int nr)
{
	const s32 *results = (const s32 *)ims->handles;
	unsigned int n;
	long status;

	memcpy(ims->sent, ims->handles, nr * sizeof(u32));
	status = imsvisor_call(IMSVISOR_CALL_FREE_MANY, device_of(ims),
			       virt_to_phys(ims->handles), nr, 0);
	if (status == nr)
		return;
	if (status < 0) {
		pci_err(ims->pdev, "%u slots cannot be freed: status %ld\n", nr,
			-status);
		return;
	}
	for (n = 0; n < nr; n++) {
		if (results[n] && __ratelimit(&ims->ratelimit))
			pci_err(ims->pdev, "slot %u cannot be freed: status %d\n",
				imsvisor_index(ims->sent[n]), -results[n]);
	}
}

static long on_slot(u32 call, struct imsvisor_slot *slot, u64 rdx)
{
	return imsvisor_call(call, device_of(slot->ims), slot->handle, rdx, 0);
}

/*
 * One call writes the entry of the remapping table and the slot, and unmasks
 * it. A device that raises an interrupt before the irq is started finds it
 * disabled. genirq then notes it as pending, and the slot stays unmasked.
 */
static int hypercall_map(struct imsvisor_slot *slot, struct irq_data *data)
{
	u64 target = imsvisor_target(data);
	long status;

	/* An item has 16 bits for it. */
	if (target >> IMSVISOR_TARGET_APIC_ID_SHIFT > U16_MAX)
		return -ERANGE;
	slot->item = (struct imsvisor_map_request) {
		.handle = slot->handle,
		.apic_id = target >> IMSVISOR_TARGET_APIC_ID_SHIFT,
		.vector = target,
		.flags = IMSVISOR_MAP_FLAG_UNMASK,
		.cookie = slot->cookie,
	};
	status = imsvisor_call(IMSVISOR_CALL_MAP, device_of(slot->ims),
			       virt_to_phys(&slot->item), 1,
			       IMSVISOR_ITEM_LAYOUT);
	if (status >= 0)
		status = slot->reply.status;
	if (status < 0)
		return imsvisor_errno(status);
	slot->target = target;
	return 0;
}

static int hypercall_unmap(struct imsvisor_slot *slot)
{
	return imsvisor_errno(on_slot(IMSVISOR_CALL_UNMAP, slot, 0));
}

static int hypercall_mask(struct imsvisor_slot *slot, bool masked)
{
	u32 call = masked ? IMSVISOR_CALL_MASK : IMSVISOR_CALL_UNMASK;

	return imsvisor_errno(on_slot(call, slot, 0));
}

/* Sends the slot's interrupts to slot->wanted. */
static int hypercall_retry_affinity(struct imsvisor_slot *slot)
{
	long status;

	if (!slot->stale && slot->target == slot->wanted)
		return 0;
	status = on_slot(IMSVISOR_CALL_SET_AFFINITY, slot, slot->wanted);
	if (status < 0)
		return imsvisor_errno(status);
	slot->target = slot->wanted;
	return 0;
}

static int hypercall_set_affinity(struct imsvisor_slot *slot, struct irq_data *data)
{
	slot->wanted = imsvisor_target(data);
	return hypercall_retry_affinity(slot);
}

static int hypercall_set_pasid(struct imsvisor_slot *slot, u32 pasid)
{
	return imsvisor_errno(on_slot(IMSVISOR_CALL_SET_AUX, slot, pasid));
}

const struct imsvisor_ims_ops imsvisor_hypercall_ops = {
	.open = hypercall_open,
	.close = hypercall_close,
	.parent = hypercall_parent,
	.msi_prepare = hypercall_msi_prepare,
	.alloc = hypercall_alloc,
	.free = hypercall_free,
	.map = hypercall_map,
	.unmap = hypercall_unmap,
	.mask = hypercall_mask,
	.set_affinity = hypercall_set_affinity,
	.retry_affinity = hypercall_retry_affinity,
	.set_pasid = hypercall_set_pasid,
	.shutdown = hypercall_shutdown,
};
