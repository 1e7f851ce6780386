// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Slots natively: on bare metal the store is written here, with the messages
 * of the device's own MSI domain.
 *
 * A slot is masked before its message changes and unmasked last. Each change
 * ends with a read, which flushes the writes to the device.
 */
#include <linux/bitmap.h>
#include <linux/io.h>
#include <linux/msi.h>
#include <linux/slab.h>

#include <asm/irqdomain.h>

#include "internal.h"

/* The dwords of a slot. */
enum {
	SLOT_ADDRESS_LO,
	SLOT_ADDRESS_HI,
	SLOT_DATA,
	SLOT_CONTROL,
	SLOT_DWORDS,
};

static void __iomem *dword(struct imsvisor_slot *slot, unsigned int which)
{
	unsigned int at = imsvisor_index(slot->handle) * SLOT_DWORDS + which;

	return slot->ims->store.slots + at * sizeof(u32);
}

static void write_control(struct imsvisor_slot *slot, bool masked)
{
	u32 control = slot->pasid | (masked ? IMSVISOR_SLOT_CONTROL_MASK : 0);

	iowrite32(control, dword(slot, SLOT_CONTROL));
	ioread32(dword(slot, SLOT_CONTROL));
}

/* Writes slot->msg; the slot is masked. */
static void write_message(struct imsvisor_slot *slot)
{
	iowrite32(slot->msg.address_lo, dword(slot, SLOT_ADDRESS_LO));
	iowrite32(slot->msg.address_hi, dword(slot, SLOT_ADDRESS_HI));
	iowrite32(slot->msg.data, dword(slot, SLOT_DATA));
	ioread32(dword(slot, SLOT_DATA));
}

/* Takes the message that the domains above compose. */
static void compose_message(struct imsvisor_slot *slot, struct irq_data *data)
{
	while ((data = data->parent_data)) {
		if (data->chip && data->chip->irq_compose_msi_msg) {
			data->chip->irq_compose_msi_msg(data, &slot->msg);
			break;
		}
	}
}

/* Masks all slots: nobody knows their messages. */
static void mask_all(struct imsvisor_ims *ims)
{
	void __iomem *control = ims->store.slots + SLOT_CONTROL * sizeof(u32);
	unsigned int n;

	for (n = 0; n < ims->nr_slots; n++)
		iowrite32(IMSVISOR_SLOT_CONTROL_MASK,
			  control + n * SLOT_DWORDS * sizeof(u32));
	ioread32(control);
}

static int native_open(struct imsvisor_ims *ims)
{
	unsigned int nr = min(ims->store.nr_slots,
			      1U << IMSVISOR_HANDLE_GENERATION_SHIFT);

	if (!ims->store.slots || !nr)
		return -ENODEV;
	ims->taken = bitmap_zalloc(nr, GFP_KERNEL);
	ims->desc = kzalloc(sizeof(*ims->desc), GFP_KERNEL);
	if (!ims->taken || !ims->desc)
		return -ENOMEM;
	ims->desc->dev = &ims->pdev->dev;
	ims->nr_slots = nr;
	mask_all(ims);
	return nr;
}

static void native_close(struct imsvisor_ims *ims)
{
	if (ims->nr_slots)
		mask_all(ims);
	bitmap_free(ims->taken);
	kfree(ims->desc);
}

/*
 * A parent of another kind, for example below an Intel VMD, wants more than an
 * irq_alloc_info. The vector domain changes the message with the target. A
 * device may take the two at different times, so the irq moves in its interrupt.
 */
static struct irq_domain *native_parent(struct imsvisor_ims *ims)
{
	struct irq_domain *parent = dev_get_msi_domain(&ims->pdev->dev);

	if (!parent)
		return NULL;
	ims->deferred = parent == x86_vector_domain;
	if (!ims->deferred && parent->parent != x86_vector_domain)
		return NULL;
	return parent;
}

/* A remapping unit wants to know whose messages these are. */
static void native_msi_prepare(struct imsvisor_ims *ims, struct irq_alloc_info *info)
{
	info->type = X86_IRQ_ALLOC_TYPE_PCI_MSIX;
	info->desc = ims->desc;
}

static int native_alloc(struct imsvisor_ims *ims, u32 group, u32 min, u32 max)
{
	unsigned int nr = 0, slot = 0;

	while (nr < max) {
		slot = find_next_zero_bit(ims->taken, ims->nr_slots, slot);
		if (slot >= ims->nr_slots)
			break;
		set_bit(slot, ims->taken);
		ims->handles[nr++] = slot;
	}
	if (nr >= min)
		return nr;
	while (nr)
		clear_bit(ims->handles[--nr], ims->taken);
	return -ENOSPC;
}

static void native_free(struct imsvisor_ims *ims, unsigned int nr)
{
	while (nr)
		clear_bit(ims->handles[--nr], ims->taken);
}

static void native_restore_slot(struct imsvisor_slot *slot)
{
	write_control(slot, true);
	write_message(slot);
	write_control(slot, slot->device_masked);
}

static int native_map(struct imsvisor_slot *slot, struct irq_data *data)
{
	compose_message(slot, data);
	write_control(slot, true);
	write_message(slot);
	write_control(slot, false);
	return 0;
}

static int native_unmap(struct imsvisor_slot *slot)
{
	write_control(slot, true);
	return 0;
}

static int native_mask(struct imsvisor_slot *slot, bool masked)
{
	write_control(slot, masked);
	return 0;
}

/*
 * Without a remapping unit the message changes. It is written while the slot
 * is masked: a message that would come meanwhile waits in the device.
 */
static int native_set_affinity(struct imsvisor_slot *slot, struct irq_data *data)
{
	compose_message(slot, data);
	native_restore_slot(slot);
	return 0;
}

static int native_set_pasid(struct imsvisor_slot *slot, u32 pasid)
{
	slot->pasid = 0;
	if (pasid & IMSVISOR_PASID_VALID)
		slot->pasid = (pasid & ~IMSVISOR_PASID_VALID) <<
			      IMSVISOR_SLOT_CONTROL_PASID_SHIFT |
			      IMSVISOR_SLOT_CONTROL_PASID_ENABLE;
	write_control(slot, slot->device_masked);
	return 0;
}

const struct imsvisor_ims_ops imsvisor_native_ops = {
	.open = native_open,
	.close = native_close,
	.parent = native_parent,
	.msi_prepare = native_msi_prepare,
	.alloc = native_alloc,
	.free = native_free,
	.map = native_map,
	.unmap = native_unmap,
	.mask = native_mask,
	.set_affinity = native_set_affinity,
	.set_pasid = native_set_pasid,
	.restore = mask_all,
	.restore_slot = native_restore_slot,
};
