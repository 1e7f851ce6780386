// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Slots by hypercall. The hypervisor keeps the store: nothing here touches it.
 */
#include <linux/bits.h>
#include <linux/io.h>
#include <linux/slab.h>
#include <linux/smp.h>

#include <asm/irqdomain.h>

#include "internal.h"

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

static int hypercall_open(struct imsvisor_ims *ims)
{
	struct imsvisor_device_info *info;
	int rc;

	if (pci_domain_nr(ims->pdev->bus))
		return -ENODEV;
	rc = query(ims, &info);
	return rc ?: info->slots;
}

/* All slots have been given back, unless something went wrong. */
static void hypercall_close(struct imsvisor_ims *ims)
{
	struct imsvisor_device_info *info;

	if (ims->domain && !query(ims, &info) && info->free != info->slots)
		pci_err(ims->pdev, "%u of %u slots are not free\n",
			info->slots - info->free, info->slots);
}

static struct irq_domain *hypercall_parent(struct imsvisor_ims *ims)
{
	return x86_vector_domain;
}

static void hypercall_prepare(struct imsvisor_ims *ims, struct irq_alloc_info *info)
{
}

static int hypercall_alloc(struct imsvisor_ims *ims, u32 group, u32 min, u32 max)
{
	long status = imsvisor_call(IMSVISOR_CALL_ALLOC_MANY, device_of(ims),
				    virt_to_phys(ims->handles),
				    (u64)max << 32 | min, group);

	return status < 0 ? imsvisor_errno(status) : status;
}

static void hypercall_free(struct imsvisor_ims *ims, unsigned int nr)
{
	long status = imsvisor_call(IMSVISOR_CALL_FREE_MANY, device_of(ims),
				    virt_to_phys(ims->handles), nr, 0);

	if (status != nr)
		pci_err(ims->pdev, "of %u slots, some cannot be freed: %ld\n",
			nr, status);
}

static long on_slot(u32 call, struct imsvisor_slot *slot, u64 rdx)
{
	return imsvisor_call(call, device_of(slot->ims), slot->handle, rdx, 0);
}

/*
 * One call writes the entry of the remapping table and the slot, and unmasks
 * it. A device that raises an interrupt before the irq is started finds it
 * disabled, which genirq handles as for any irq that is disabled lazily.
 */
static int hypercall_map(struct imsvisor_slot *slot, struct irq_data *data)
{
	u64 target = imsvisor_target(data);
	long status;

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

static int hypercall_retarget(struct imsvisor_slot *slot, struct irq_data *data)
{
	u64 target = imsvisor_target(data);
	long status;

	if (target == slot->target)
		return 0;
	status = on_slot(IMSVISOR_CALL_SET_AFFINITY, slot, target);
	if (status < 0)
		return imsvisor_errno(status);
	slot->target = target;
	return 0;
}

static int hypercall_set_pasid(struct imsvisor_slot *slot, u32 pasid)
{
	return imsvisor_errno(on_slot(IMSVISOR_CALL_SET_AUX, slot, pasid));
}

const struct imsvisor_way imsvisor_hypercall_way = {
	.open = hypercall_open,
	.close = hypercall_close,
	.parent = hypercall_parent,
	.prepare = hypercall_prepare,
	.alloc = hypercall_alloc,
	.free = hypercall_free,
	.map = hypercall_map,
	.unmap = hypercall_unmap,
	.mask = hypercall_mask,
	.retarget = hypercall_retarget,
	.set_pasid = hypercall_set_pasid,
};
