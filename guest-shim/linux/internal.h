/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What the parts of imsvisor-core share. */
#ifndef _IMSVISOR_INTERNAL_H
#define _IMSVISOR_INTERNAL_H

#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/list.h>
#include <linux/msi.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/ratelimit_types.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

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

/* How the policy lets slots be reached. */
enum imsvisor_decision {
	IMSVISOR_HYPERCALL,
	IMSVISOR_NATIVE,
	IMSVISOR_REFUSED,
};

/**
 * struct imsvisor_ims_ops - operations on slots, by hypercall or natively
 * @open:	prepares for a device; returns the number of its slots
 * @close:	undoes @open, also one that failed
 * @parent:	the parent of the device's irq domain, or NULL if there is none
 * @msi_prepare:	says to the parent for which device it allocates
 * @alloc:	takes @min to @max slots of @group and writes their handles to
 *		ims->handles; returns their number
 * @free:	gives the slots in ims->handles back
 * @map:	gives a slot the target of its irq_data, and unmasks it
 * @unmap:	masks a slot and takes its target away
 * @mask:	masks or unmasks a slot in the device
 * @set_affinity:	sends the interrupts of a mapped slot to the target of
 *		its irq_data
 * @retry_affinity:	repeats the last @set_affinity, which failed; NULL if
 *		@set_affinity cannot fail
 * @set_pasid:	has the device use the slot for work of one PASID only
 * @restore:	masks all slots after a reset of the device, or NULL where a
 *		reset frees the slots
 * @restore_slot:	writes a slot again after @restore
 * @shutdown:	gives all slots back when the kernel ends. By hypercall only;
 *		called under imsvisor_ims_list_lock, without ims->lock
 *
 * The driver serialises @open and @close. @parent is called by @open's caller.
 * @alloc, @free and @restore are called under ims->lock. @map, @unmap, @mask,
 * @set_affinity, @retry_affinity, @set_pasid and @restore_slot are called under
 * slot->lock and do not sleep.
 */
struct imsvisor_ims_ops {
	int (*open)(struct imsvisor_ims *ims);
	void (*close)(struct imsvisor_ims *ims);
	struct irq_domain *(*parent)(struct imsvisor_ims *ims);
	void (*msi_prepare)(struct imsvisor_ims *ims, struct irq_alloc_info *info);
	int (*alloc)(struct imsvisor_ims *ims, u32 group, u32 min, u32 max);
	void (*free)(struct imsvisor_ims *ims, unsigned int nr);
	int (*map)(struct imsvisor_slot *slot, struct irq_data *data);
	int (*unmap)(struct imsvisor_slot *slot);
	int (*mask)(struct imsvisor_slot *slot, bool masked);
	int (*set_affinity)(struct imsvisor_slot *slot, struct irq_data *data);
	int (*retry_affinity)(struct imsvisor_slot *slot);
	int (*set_pasid)(struct imsvisor_slot *slot, u32 pasid);
	void (*restore)(struct imsvisor_ims *ims);
	void (*restore_slot)(struct imsvisor_slot *slot);
	void (*shutdown)(struct imsvisor_ims *ims);
};

/**
 * struct imsvisor_ims - the interrupts of one device's store
 * @pdev:	the device
 * @ops:	how its slots are reached
 * @store:	what the driver knows of the store
 * @nr_slots:	number of slots
 * @deferred:	an irq moves when it fires, and at no other time
 * @lock:	serialises allocation and freeing; taken before the locks of
 *		genirq
 * @irqs:	the slots that have an irq, under @lock
 * @handles:	a page for handles on their way to or from the hypervisor,
 *		under @lock
 * @sent:	by hypercall, a page with the handles that were sent, under @lock
 * @taken:	natively, the slots in use, under @lock
 * @desc:	natively, what names the device to the parent domain
 * @domain:	the irq domain
 * @fwnode:	its name
 * @chip:	its chip, which has the device's name
 * @name:	the chip's name
 * @repair:	work on slots that are not as genirq wants them (slot.c)
 * @repairs:	how often @repair has run without success
 * @ratelimit:	of the lines of the log about faults
 * @node:	in imsvisor_ims_list
 */
struct imsvisor_ims {
	struct pci_dev *pdev;
	const struct imsvisor_ims_ops *ops;
	struct imsvisor_store store;
	unsigned int nr_slots;
	bool deferred;
	struct mutex lock;
	struct list_head irqs;
	u32 *handles;
	u32 *sent;
	unsigned long *taken;
	struct msi_desc *desc;
	struct irq_domain *domain;
	struct fwnode_handle *fwnode;
	struct irq_chip chip;
	char name[32];
	struct delayed_work repair;
	unsigned int repairs;
	struct ratelimit_state ratelimit;
	struct list_head node;
};

/**
 * struct imsvisor_slot - a slot that has an irq
 * @item:	the request by which the slot is mapped. The hypervisor reads
 *		and writes it, so the structure must be aligned to 16 bytes
 * @reply:	the answer, in its place
 * @ims:	the device's store
 * @handle:	the slot's name for the hypervisor
 * @group:	the group that the driver has given the slot
 * @virq:	the Linux irq
 * @cookie:	the driver's name for the irq
 * @lock:	protects @item, @reply and all members that follow, except
 *		@node; innermost, taken with interrupts off
 * @target:	where the slot's interrupts go, as SetAffinity has it
 * @wanted:	where Linux wants them
 * @msg:	natively, the slot's message
 * @pasid:	natively, the bits of the control dword for the PASID
 * @mapped:	the slot has a target
 * @masked:	genirq wants the slot masked
 * @device_masked:	the slot is masked in the device
 * @unsure:	@device_masked may be wrong, because a call has failed
 * @stale:	@target is not where Linux wants it; the slot stays masked
 * @limited:	the hypervisor has masked the slot, because it fired too fast
 * @node:	in ims->irqs, under ims->lock
 */
struct imsvisor_slot {
	union {
		struct imsvisor_map_request item;
		struct imsvisor_map_reply reply;
	} __aligned(16);
	struct imsvisor_ims *ims;
	u32 handle;
	u32 group;
	unsigned int virq;
	u64 cookie;
	raw_spinlock_t lock;
	u64 target;
	u64 wanted;
	struct msi_msg msg;
	u32 pasid;
	bool mapped;
	bool masked;
	bool device_masked;
	bool unsure;
	bool stale;
	bool limited;
	struct list_head node;
};

static inline unsigned int imsvisor_index(u32 handle)
{
	return handle & ((1U << IMSVISOR_HANDLE_GENERATION_SHIFT) - 1);
}

extern struct imsvisor_domain imsvisor_domain;
extern struct list_head imsvisor_ims_list;
extern struct mutex imsvisor_ims_list_lock;
extern const struct imsvisor_ims_ops imsvisor_hypercall_ops;
extern const struct imsvisor_ims_ops imsvisor_native_ops;

const struct imsvisor_ims_ops *imsvisor_active_ops(void);
long imsvisor_call(u32 call, u64 rbx, u64 rcx, u64 rdx, u64 rsi);
int imsvisor_errno(long status);
u64 imsvisor_target(struct irq_data *data);

enum imsvisor_decision imsvisor_decide(bool domain, const char **why);

void imsvisor_slot_set_masked(struct imsvisor_slot *slot, bool masked);
void imsvisor_slot_set_affinity(struct imsvisor_slot *slot, struct irq_data *data);
int imsvisor_slot_activate(struct imsvisor_slot *slot, struct irq_data *data);
void imsvisor_slot_deactivate(struct imsvisor_slot *slot);
void imsvisor_slot_note_storm(struct imsvisor_ims *ims, unsigned int index);
void imsvisor_slots_note_lost(struct imsvisor_ims *ims);
void imsvisor_slots_repair(struct work_struct *work);

int imsvisor_irq_init(void);
void imsvisor_irq_exit(void);

void imsvisor_manage_init(void);
void imsvisor_manage_exit(void);
void imsvisor_stop_init(void);
void imsvisor_stop_exit(void);
void imsvisor_stop_shutdown(void);

void imsvisor_faults_add(struct imsvisor_ims *ims);
void imsvisor_faults_del(struct imsvisor_ims *ims);
void imsvisor_power_init(void);
void imsvisor_power_exit(void);

#endif /* _IMSVISOR_INTERNAL_H */
