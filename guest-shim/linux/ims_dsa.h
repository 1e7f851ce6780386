/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* The part of a DSA that ims-dsa uses. */
#ifndef _IMS_DSA_H
#define _IMS_DSA_H

#include <linux/pci.h>
#include <linux/types.h>

#include <uapi/linux/idxd.h>

/**
 * struct ims_dsa_hw - a DSA
 * @pdev:	the function
 * @regs:	BAR 0, registers and tables
 * @portals:	BAR 2
 * @store:	the message store in BAR 0
 * @nr_slots:	its slots
 * @depth:	descriptors that work queue 0 holds
 * @handles:	whether the device wants to be asked for interrupt handles
 */
struct ims_dsa_hw {
	struct pci_dev *pdev;
	void __iomem *regs;
	void __iomem *portals;
	void __iomem *store;
	unsigned int nr_slots;
	unsigned int depth;
	bool handles;
};

int ims_dsa_hw_open(struct ims_dsa_hw *hw);
int ims_dsa_hw_start(struct ims_dsa_hw *hw);
int ims_dsa_hw_reset(struct ims_dsa_hw *hw);
int ims_dsa_hw_request_handle(struct ims_dsa_hw *hw, bool ims, u16 index);
int ims_dsa_hw_release_handle(struct ims_dsa_hw *hw, bool ims, u16 handle);
void ims_dsa_hw_submit(struct ims_dsa_hw *hw, bool ims, const struct dsa_hw_desc *desc);

#endif /* _IMS_DSA_H */
