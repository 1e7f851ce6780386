/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What the parts of imsvisor-core share. */
#ifndef _IMSVISOR_INTERNAL_H
#define _IMSVISOR_INTERNAL_H

#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pci.h>

#include "imsvisor.h"
#include "imsvisor_abi.h"

struct imsvisor_slot;
struct imsvisor_ims;

/**
 * struct imsvisor_domain - the hypercall domain as CPUID describes it
 * @base:	the leaf with the signature
 * @call_base:	the number of call 0
 * @features:	IMSVISOR_FEATURE_...
 * @max_slots:	most slots of a device
 * @groups:	number of groups
 * @version:	the version, major 31:16, minor 15:0
 */
struct imsvisor_domain {
	u32 base;
	u32 call_base;
	u32 features;
	u32 max_slots;
	u32 groups;
	u32 version;
};

/* The way to the slots that the policy leaves open. */
enum imsvisor_decision {
	IMSVISOR_HYPERCALL,
	IMSVISOR_NATIVE,
	IMSVISOR_REFUSED,
};

/**
 * struct imsvisor_way - how slots are reached
 * @open:	prepares for a device; returns the number of its slots
 * @close:	undoes @open
 * @parent:	the parent of the device's irq domain
 * @prepare:	says to the parent for which device it allocates
 * @alloc:	takes @min to @max slots of @group and writes their handles to
 *		ims->handles; returns their number
 * @free:	gives the slots in ims->handles back
 * @map:	sends a slot's interrupts where its irq_data says. The slot is
 *		unmasked then
 * @unmap:	masks a slot and takes its target away
 * @mask:	masks or unmasks a slot
 * @retarget:	sends the interrupts of a mapped slot elsewhere
 * @set_pasid:	has the device use the slot for work of one PASID only
 *
 * @map, @unmap, @mask and @retarget are called under the lock of the irq's
 * descriptor and do not sleep; all others are called under ims->lock.
 */
struct imsvisor_way {
	int (*open)(struct imsvisor_ims *ims);
	void (*close)(struct imsvisor_ims *ims);
	struct irq_domain *(*parent)(struct imsvisor_ims *ims);
	void (*prepare)(struct imsvisor_ims *ims, struct irq_alloc_info *info);
	int (*alloc)(struct imsvisor_ims *ims, u32 group, u32 min, u32 max);
	void (*free)(struct imsvisor_ims *ims, unsigned int nr);
	int (*map)(struct imsvisor_slot *slot, struct irq_data *data);
	int (*unmap)(struct imsvisor_slot *slot);
	int (*mask)(struct imsvisor_slot *slot, bool masked);
	int (*retarget)(struct imsvisor_slot *slot, struct irq_data *data);
	int (*set_pasid)(struct imsvisor_slot *slot, u32 pasid);
};

/**
 * struct imsvisor_ims - the interrupts of one device's store
 * @pdev:	the device
 * @way:	how its slots are reached
 * @store:	what the driver knows of the store
 * @nr_slots:	number of slots
 * @lock:	serialises allocation, freeing and PASIDs; taken before the
 *		locks of genirq
 * @irqs:	the slots that have an irq, under @lock
 * @handles:	a page for handles on their way to or from the hypervisor,
 *		under @lock
 * @taken:	natively, the slots in use, under @lock
 * @desc:	natively, what names the device to the parent domain
 * @domain:	the irq domain
 * @fwnode:	its name
 * @chip:	its chip, which has the device's name
 * @name:	the chip's name
 * @node:	in the list of all
 */
struct imsvisor_ims {
	struct pci_dev *pdev;
	const struct imsvisor_way *way;
	struct imsvisor_store store;
	unsigned int nr_slots;
	struct mutex lock;
	struct list_head irqs;
	u32 *handles;
	unsigned long *taken;
	struct msi_desc *desc;
	struct irq_domain *domain;
	struct fwnode_handle *fwnode;
	struct irq_chip chip;
	char name[32];
	struct list_head node;
};

/**
 * struct imsvisor_slot - a slot that has an irq
 * @item:	the request by which the slot is mapped. The hypervisor reads
 *		and writes it, so the structure must be aligned to 16 bytes
 * @reply:	the answer, in its place
 * @ims:	the device's store
 * @handle:	the slot's name for the hypervisor
 * @virq:	the Linux irq
 * @cookie:	the driver's name for the irq
 * @target:	where the slot's interrupts go, as SetAffinity has it
 * @pasid:	natively, the bits of the control dword for the PASID
 * @mapped:	whether the slot has a target
 * @masked:	whether the slot is masked
 * @node:	in ims->irqs
 *
 * The lock of the irq's descriptor protects @item, @target, @mapped and
 * @masked.
 */
struct imsvisor_slot {
	union {
		struct imsvisor_map_request item;
		struct imsvisor_map_reply reply;
	} __aligned(16);
	struct imsvisor_ims *ims;
	u32 handle;
	unsigned int virq;
	u64 cookie;
	u64 target;
	u32 pasid;
	bool mapped;
	bool masked;
	struct list_head node;
};

static inline unsigned int imsvisor_index(u32 handle)
{
	return handle & ((1U << IMSVISOR_HANDLE_GENERATION_SHIFT) - 1);
}

extern struct imsvisor_domain imsvisor_domain;
extern const struct imsvisor_way imsvisor_hypercall_way;
extern const struct imsvisor_way imsvisor_native_way;

const struct imsvisor_way *imsvisor_way(void);
long imsvisor_call(u32 call, u64 rbx, u64 rcx, u64 rdx, u64 rsi);
int imsvisor_errno(long status);
u64 imsvisor_target(struct irq_data *data);

enum imsvisor_decision imsvisor_decide(bool domain, const char **why);

int imsvisor_irq_init(void);
void imsvisor_irq_exit(void);

int imsvisor_manage_init(void);
void imsvisor_manage_exit(void);
void imsvisor_stop_init(void);
void imsvisor_stop_exit(void);

void imsvisor_faults_add(struct imsvisor_ims *ims);
void imsvisor_faults_del(struct imsvisor_ims *ims);

#endif /* _IMSVISOR_INTERNAL_H */
