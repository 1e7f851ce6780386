// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The irq domain of a device's message store, and the interface for drivers.
 *
 * Natively the parent is the domain of the device's MSIs, so that interrupt
 * remapping has its place; by hypercall it is the vector domain, because the
 * hypervisor does the remapping.
 */
#include <linux/irqdomain.h>
#include <linux/module.h>
#include <linux/ratelimit.h>
#include <linux/slab.h>

#include <asm/irqdomain.h>

#include "compat.h"
#include "imsvisor.h"
#include "internal.h"

static struct kmem_cache *slots;

static struct imsvisor_slot *slot_of(struct irq_data *data)
{
	return irq_data_get_irq_chip_data(data);
}

static void ims_irq_mask(struct irq_data *data)
{
	imsvisor_slot_set_masked(slot_of(data), true);
}

static void ims_irq_unmask(struct irq_data *data)
{
	imsvisor_slot_set_masked(slot_of(data), false);
}

/*
 * The vector domain has chosen a new vector first, and this cannot be undone:
 * so the result is the parent's, whatever comes of the slot. The old vector
 * stays until an interrupt has come by the new one, so none is lost on the way.
 */
static int ims_irq_set_affinity(struct irq_data *data, const struct cpumask *mask,
				bool force)
{
	int rc = irq_chip_set_affinity_parent(data, mask, force);

	if (rc >= 0 && rc != IRQ_SET_MASK_OK_DONE)
		imsvisor_slot_set_affinity(slot_of(data), data);
	return rc;
}

static const struct irq_chip ims_chip = {
	.irq_mask = ims_irq_mask,
	.irq_unmask = ims_irq_unmask,
	.irq_ack = irq_chip_ack_parent,
	.irq_set_affinity = ims_irq_set_affinity,
	.irq_retrigger = irq_chip_retrigger_hierarchy,
	.flags = IRQCHIP_SKIP_SET_WAKE | IRQCHIP_AFFINITY_PRE_STARTUP |
		 IRQCHIP_ONESHOT_SAFE,
};

static int ims_domain_alloc(struct irq_domain *domain, unsigned int virq,
			    unsigned int nr_irqs, void *arg)
{
	struct imsvisor_slot *slot = arg;
	struct imsvisor_ims *ims = domain->host_data;
	struct irq_alloc_info info = {};
	int rc;

	if (nr_irqs != 1)
		return -EINVAL;
	ims->ops->msi_prepare(ims, &info);
	rc = irq_domain_alloc_irqs_parent(domain, virq, nr_irqs, &info);
	if (rc)
		return rc;
	irq_domain_set_info(domain, virq, imsvisor_index(slot->handle),
			    &ims->chip, slot, handle_edge_irq, NULL, "edge");
	imsvisor_set_move(virq, ims->deferred);
	return 0;
}

static int ims_domain_activate(struct irq_domain *domain, struct irq_data *data,
			       bool reserve)
{
	return reserve ? 0 : imsvisor_slot_activate(slot_of(data), data);
}

static void ims_domain_deactivate(struct irq_domain *domain, struct irq_data *data)
{
	imsvisor_slot_deactivate(slot_of(data));
}

static const struct irq_domain_ops ims_domain_ops = {
	.alloc = ims_domain_alloc,
	.free = irq_domain_free_irqs_common,
	.activate = ims_domain_activate,
	.deactivate = ims_domain_deactivate,
};

static void ims_release(struct device *dev, void *res);

static struct imsvisor_ims *ims_of(struct pci_dev *pdev)
{
	struct imsvisor_ims **found = devres_find(&pdev->dev, ims_release, NULL, NULL);

	return found ? *found : NULL;
}

/* Gives an irq its slot; ims->lock is held. */
static struct imsvisor_slot *add_irq(struct imsvisor_ims *ims, u32 handle, u32 group,
				     u64 cookie, const struct irq_affinity_desc *affdesc)
{
	struct imsvisor_slot *slot = kmem_cache_zalloc(slots, GFP_KERNEL);
	int virq;

	if (!slot)
		return ERR_PTR(-ENOMEM);
	slot->ims = ims;
	slot->handle = handle;
	slot->group = group;
	slot->cookie = cookie;
	raw_spin_lock_init(&slot->lock);
	slot->masked = true;
	slot->device_masked = true;
	virq = __irq_domain_alloc_irqs(ims->domain, -1, 1, dev_to_node(&ims->pdev->dev),
				       slot, false, affdesc);
	if (virq <= 0) {
		kmem_cache_free(slots, slot);
		return ERR_PTR(virq ?: -ENOSPC);
	}
	slot->virq = virq;
	list_add_tail(&slot->node, &ims->irqs);
	return slot;
}

/* Takes a slot's irq away; returns the slot's handle. ims->lock is held. */
static u32 remove_irq(struct imsvisor_slot *slot)
{
	u32 handle = slot->handle;

	/* A driver that has not called free_irq(): the device must not fire. */
	if (WARN_ON_ONCE(irq_has_action(slot->virq))) {
		imsvisor_slot_deactivate(slot);
		synchronize_hardirq(slot->virq);
	} else if (slot->mapped) {
		imsvisor_slot_deactivate(slot);
	}
	irq_dispose_mapping(slot->virq);
	list_del(&slot->node);
	kmem_cache_free(slots, slot);
	return handle;
}

/* The slot behind an irq of this device, or NULL. */
static struct imsvisor_slot *slot_at(struct imsvisor_ims *ims, struct msi_map map)
{
	struct irq_data *data = irq_domain_get_irq_data(ims->domain, map.virq);

	return data && data->hwirq == map.index ? slot_of(data) : NULL;
}

/*
 * Allocates @min to @max interrupts, at most as many as a page has handles;
 * ims->lock is held.
 */
static int alloc_some(struct imsvisor_ims *ims, u32 group, u32 min, u32 max,
		      struct msi_map *maps, const u64 *cookies,
		      const struct irq_affinity_desc *affdescs)
{
	struct imsvisor_slot *slot;
	int nr, granted, rc = 0;
	u32 keep;

	granted = ims->ops->alloc(ims, group, min, max);
	if (granted < 0)
		return granted;
	for (nr = 0; nr < granted; nr++) {
		/* The driver may say that its store has fewer slots. */
		if (imsvisor_index(ims->handles[nr]) >= ims->nr_slots) {
			rc = -ERANGE;
			break;
		}
		slot = add_irq(ims, ims->handles[nr], group, cookies ? cookies[nr] : 0,
			       affdescs ? &affdescs[nr] : NULL);
		if (IS_ERR(slot)) {
			rc = PTR_ERR(slot);
			break;
		}
		maps[nr].index = imsvisor_index(slot->handle);
		maps[nr].virq = slot->virq;
	}
	if (nr == granted)
		return nr;
	/* Linux has no irqs for the rest: enough, or nothing. */
	keep = nr >= min ? nr : 0;
	while (nr > keep)
		remove_irq(slot_at(ims, maps[--nr]));
	memmove(ims->handles, ims->handles + keep, (granted - keep) * sizeof(u32));
	ims->ops->free(ims, granted - keep);
	return keep ?: rc;
}

/**
 * imsvisor_ims_alloc_irqs - Allocates interrupts
 * @pdev:	the device
 * @group:	a number of the driver's, by which imsvisor_ims_free_group()
 *		frees them; by hypercall, below the hypervisor's number of
 *		groups
 * @min:	no fewer than these, at least 1
 * @max:	no more than these
 * @maps:	room for @max: the slots' indices and the Linux irqs
 * @cookies:	@max names of the driver's, which come back in records of
 *		faults, or NULL
 * @affdescs:	for each of @max, on which processors it is, and whether that
 *		stays, or NULL
 *
 * The interrupts can be requested by request_irq() like any others. Others of
 * the device may be in use meanwhile. A driver that requests them by
 * devm_request_irq() does so after imsvisor_ims_create(), so that they are
 * freed before the domain.
 *
 * Return: the number of interrupts that were allocated. On an error none is:
 * -ENODEV for a device without a domain; -EINVAL for a range or group that
 * cannot be; -ENOSPC if there are fewer than @min slots or vectors; -ERANGE if
 * slots beyond the driver's number of slots are the only ones left; -ENOMEM;
 * -EIO if the hypervisor has failed.
 */
int imsvisor_ims_alloc_irqs(struct pci_dev *pdev, unsigned int group,
			    unsigned int min, unsigned int max,
			    struct msi_map *maps, const u64 *cookies,
			    const struct irq_affinity_desc *affdescs)
{
	struct imsvisor_ims *ims = ims_of(pdev);
	unsigned int done = 0;
	int rc = 0;

	if (!ims)
		return -ENODEV;
	if (!min || min > max)
		return -EINVAL;
	while (done < max) {
		u32 most = min(max - done, IMSVISOR_HANDLES_MAX);
		u32 least = done < min ? min(min - done, most) : 1;

		mutex_lock(&ims->lock);
		rc = alloc_some(ims, group, least, most, maps + done,
				cookies ? cookies + done : NULL,
				affdescs ? affdescs + done : NULL);
		mutex_unlock(&ims->lock);
		if (rc < 0)
			break;
		done += rc;
		if (rc < most)
			break;
	}
	if (done >= min)
		return done;
	imsvisor_ims_free_irqs(pdev, maps, done);
	return rc < 0 ? rc : -ENOSPC;
}
EXPORT_SYMBOL_GPL(imsvisor_ims_alloc_irqs);

/**
 * imsvisor_ims_alloc_irq - Allocates one interrupt
 * @pdev:	the device
 * @cookie:	a name of the driver's, which comes back in records of faults
 * @affdesc:	on which processors, and whether that stays, or NULL
 *
 * Return: the slot's index and the Linux irq; a negative index is an errno of
 * imsvisor_ims_alloc_irqs().
 */
struct msi_map imsvisor_ims_alloc_irq(struct pci_dev *pdev, u64 cookie,
				      const struct irq_affinity_desc *affdesc)
{
	struct imsvisor_ims *ims = ims_of(pdev);
	struct msi_map map = { .index = -ENODEV };
	int rc;

	if (!ims)
		return map;
	mutex_lock(&ims->lock);
	rc = alloc_some(ims, 0, 1, 1, &map, &cookie, affdesc);
	mutex_unlock(&ims->lock);
	if (rc < 0)
		map.index = rc;
	return map;
}
EXPORT_SYMBOL_GPL(imsvisor_ims_alloc_irq);

/**
 * imsvisor_ims_free_irqs - Gives interrupts back
 * @pdev:	the device
 * @maps:	what was allocated; the interrupts were freed by free_irq()
 * @nr:		how many
 */
void imsvisor_ims_free_irqs(struct pci_dev *pdev, const struct msi_map *maps,
			    unsigned int nr)
{
	struct imsvisor_ims *ims = ims_of(pdev);
	struct imsvisor_slot *slot;
	unsigned int n = 0;

	if (WARN_ON_ONCE(nr && !ims))
		return;
	while (nr) {
		mutex_lock(&ims->lock);
		for (n = 0; nr && n < IMSVISOR_HANDLES_MAX; maps++, nr--) {
			slot = slot_at(ims, *maps);
			if (!WARN_ON_ONCE(!slot))
				ims->handles[n++] = remove_irq(slot);
		}
		if (n)
			ims->ops->free(ims, n);
		mutex_unlock(&ims->lock);
	}
}
EXPORT_SYMBOL_GPL(imsvisor_ims_free_irqs);

/**
 * imsvisor_ims_free_irq - Gives an interrupt back
 * @pdev:	the device
 * @map:	what imsvisor_ims_alloc_irq() returned
 */
void imsvisor_ims_free_irq(struct pci_dev *pdev, struct msi_map map)
{
	imsvisor_ims_free_irqs(pdev, &map, 1);
}
EXPORT_SYMBOL_GPL(imsvisor_ims_free_irq);

/* Frees all irqs that are meant, by few calls; ims->lock is held. */
static void free_some(struct imsvisor_ims *ims, bool all, u32 group)
{
	struct imsvisor_slot *slot, *next;
	unsigned int n = 0;

	list_for_each_entry_safe(slot, next, &ims->irqs, node) {
		if (!all && slot->group != group)
			continue;
		ims->handles[n++] = remove_irq(slot);
		if (n == IMSVISOR_HANDLES_MAX) {
			ims->ops->free(ims, n);
			n = 0;
		}
	}
	if (n)
		ims->ops->free(ims, n);
}

/**
 * imsvisor_ims_free_group - Gives all interrupts of a group back
 * @pdev:	the device
 * @group:	the group; its interrupts were freed by free_irq(). That of
 *		imsvisor_ims_alloc_irq() is 0
 */
void imsvisor_ims_free_group(struct pci_dev *pdev, unsigned int group)
{
	struct imsvisor_ims *ims = ims_of(pdev);

	if (WARN_ON_ONCE(!ims))
		return;
	mutex_lock(&ims->lock);
	free_some(ims, false, group);
	mutex_unlock(&ims->lock);
}
EXPORT_SYMBOL_GPL(imsvisor_ims_free_group);

/**
 * imsvisor_ims_set_pasid - Sets an interrupt's auxiliary data
 * @pdev:	the device
 * @map:	the interrupt
 * @pasid:	the device uses the slot for work with this PASID only; a
 *		negative one stands for any work
 *
 * Return: 0; -ENODEV for a device without a domain; -EINVAL for an interrupt
 * that the device does not have, or a PASID of more than 20 bits; -EPERM for a
 * PASID that is not the guest's; -EOPNOTSUPP; -EIO if the hypervisor has
 * failed.
 */
int imsvisor_ims_set_pasid(struct pci_dev *pdev, struct msi_map map, int pasid)
{
	struct imsvisor_ims *ims = ims_of(pdev);
	u32 aux = pasid < 0 ? 0 : IMSVISOR_PASID_VALID | pasid;
	struct imsvisor_slot *slot;
	unsigned long flags;
	int rc = -EINVAL;

	if (!ims)
		return -ENODEV;
	if (pasid >= (int)BIT(20))
		return -EINVAL;
	mutex_lock(&ims->lock);
	slot = slot_at(ims, map);
	if (slot) {
		raw_spin_lock_irqsave(&slot->lock, flags);
		rc = ims->ops->set_pasid(slot, aux);
		raw_spin_unlock_irqrestore(&slot->lock, flags);
	}
	mutex_unlock(&ims->lock);
	return rc;
}
EXPORT_SYMBOL_GPL(imsvisor_ims_set_pasid);

/**
 * imsvisor_ims_restore - Writes a device's slots again
 * @pdev:	the device, after a reset or a suspension that has changed its
 *		store. It raises no interrupt yet
 *
 * By hypercall a reset gives the slots back. There a driver frees its
 * interrupts before it resets the device, and allocates them after.
 *
 * Return: 0; -ENODEV for a device without a domain; -EOPNOTSUPP by hypercall.
 */
int imsvisor_ims_restore(struct pci_dev *pdev)
{
	struct imsvisor_ims *ims = ims_of(pdev);
	struct imsvisor_slot *slot;
	unsigned long flags;

	if (!ims)
		return -ENODEV;
	if (!ims->ops->restore)
		return -EOPNOTSUPP;
	mutex_lock(&ims->lock);
	ims->ops->restore(ims);
	list_for_each_entry(slot, &ims->irqs, node) {
		raw_spin_lock_irqsave(&slot->lock, flags);
		ims->ops->restore_slot(slot);
		raw_spin_unlock_irqrestore(&slot->lock, flags);
	}
	mutex_unlock(&ims->lock);
	return 0;
}
EXPORT_SYMBOL_GPL(imsvisor_ims_restore);

static int create_domain(struct imsvisor_ims *ims)
{
	struct irq_domain *parent = ims->ops->parent(ims);

	if (!parent)
		return -EOPNOTSUPP;
	snprintf(ims->name, sizeof(ims->name), "IMS-%s", pci_name(ims->pdev));
	ims->chip = ims_chip;
	ims->chip.name = ims->name;
	imsvisor_set_chip_move(&ims->chip, ims->deferred);
	ims->fwnode = irq_domain_alloc_named_fwnode(ims->name);
	if (!ims->fwnode)
		return -ENOMEM;
	ims->domain = irq_domain_create_hierarchy(parent, 0, 0, ims->fwnode,
						  &ims_domain_ops, ims);
	if (!ims->domain) {
		irq_domain_free_fwnode(ims->fwnode);
		return -ENOMEM;
	}
	return 0;
}

static void ims_free(struct imsvisor_ims *ims)
{
	ims->ops->close(ims);
	free_page((unsigned long)ims->sent);
	free_page((unsigned long)ims->handles);
	mutex_destroy(&ims->lock);
	kfree(ims);
}

/* Runs when the driver lets its device go, and frees what the driver has not. */
static void ims_release(struct device *dev, void *res)
{
	struct imsvisor_ims *ims = *(struct imsvisor_ims **)res;

	imsvisor_faults_del(ims);
	mutex_lock(&ims->lock);
	free_some(ims, true, 0);
	mutex_unlock(&ims->lock);
	/* Without irqs there is nothing that queues it again. */
	cancel_delayed_work_sync(&ims->repair);
	irq_domain_remove(ims->domain);
	irq_domain_free_fwnode(ims->fwnode);
	ims_free(ims);
}

static struct imsvisor_ims *ims_new(struct pci_dev *pdev,
				    const struct imsvisor_store *store)
{
	struct imsvisor_ims *ims = kzalloc(sizeof(*ims), GFP_KERNEL);

	if (!ims)
		return NULL;
	ims->handles = (u32 *)get_zeroed_page(GFP_KERNEL);
	ims->sent = (u32 *)get_zeroed_page(GFP_KERNEL);
	if (!ims->handles || !ims->sent) {
		free_page((unsigned long)ims->sent);
		free_page((unsigned long)ims->handles);
		kfree(ims);
		return NULL;
	}
	ims->pdev = pdev;
	ims->ops = imsvisor_active_ops();
	ims->store = *store;
	mutex_init(&ims->lock);
	INIT_LIST_HEAD(&ims->irqs);
	INIT_DELAYED_WORK(&ims->repair, imsvisor_slots_repair);
	ratelimit_default_init(&ims->ratelimit);
	return ims;
}

/**
 * imsvisor_ims_create - Creates the irq domain of a device's store
 * @pdev:	the device
 * @store:	what the driver knows of the store
 *
 * The domain goes away when the driver lets the device go, or by
 * imsvisor_ims_destroy(). MSI-X of the same device can be in use beside it. The
 * driver serialises this function and imsvisor_ims_destroy() with each other
 * and with all other functions for this device. The others may run at the same
 * time.
 *
 * Return: 0; -EOPNOTSUPP where message stores must not be used, and drivers
 * use MSI-X; -ENODEV for a device without a store; -EEXIST for one that has a
 * domain; -ENOMEM; -EIO if the hypervisor has failed.
 */
int imsvisor_ims_create(struct pci_dev *pdev, const struct imsvisor_store *store)
{
	struct imsvisor_ims *ims, **res;
	int rc;

	if (!imsvisor_active_ops())
		return -EOPNOTSUPP;
	if (ims_of(pdev))
		return -EEXIST;
	res = devres_alloc(ims_release, sizeof(*res), GFP_KERNEL);
	ims = ims_new(pdev, store);
	rc = res && ims ? 0 : -ENOMEM;
	if (rc)
		goto free;
	rc = ims->ops->open(ims);
	if (rc < 0)
		goto free;
	ims->nr_slots = min_t(unsigned int, rc, store->nr_slots);
	rc = create_domain(ims);
	if (rc)
		goto free;
	*res = ims;
	devres_add(&pdev->dev, res);
	imsvisor_faults_add(ims);
	pci_info(pdev, "%u slots as irq domain %s\n", ims->nr_slots, ims->name);
	return 0;

free:
	if (ims)
		ims_free(ims);
	if (res)
		devres_free(res);
	return rc;
}
EXPORT_SYMBOL_GPL(imsvisor_ims_create);

/**
 * imsvisor_ims_destroy - Takes the irq domain of a device's store away
 * @pdev:	the device; its interrupts were freed by free_irq()
 */
void imsvisor_ims_destroy(struct pci_dev *pdev)
{
	WARN_ON(devres_release(&pdev->dev, ims_release, NULL, NULL));
}
EXPORT_SYMBOL_GPL(imsvisor_ims_destroy);

int __init imsvisor_irq_init(void)
{
	slots = KMEM_CACHE(imsvisor_slot, 0);
	return slots ? 0 : -ENOMEM;
}

void imsvisor_irq_exit(void)
{
	kmem_cache_destroy(slots);
}
