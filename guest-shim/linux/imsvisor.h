/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Interrupts by a device's interrupt message store (IMS), for device drivers.
 *
 * The functions are near to those that Linux 6.2 to 6.9 had for PCI IMS; the
 * differences are in Documentation/imsvisor.rst:
 *
 *   pci_create_ims_domain(pdev, template, hwsize, data)
 *					imsvisor_ims_create(pdev, store)
 *   pci_ims_alloc_irq(pdev, cookie, affdesc)
 *					imsvisor_ims_alloc_irq(pdev, cookie, affdesc)
 *   pci_ims_free_irq(pdev, map)	imsvisor_ims_free_irq(pdev, map)
 *
 * All of them may sleep.
 */
#ifndef _IMSVISOR_H
#define _IMSVISOR_H

#include <linux/interrupt.h>
#include <linux/msi_api.h>
#include <linux/pci.h>

/**
 * struct imsvisor_store - what a driver knows of its device's store
 * @slots:	the slots, of 16 bytes each: address, data, control; written
 *		on bare metal only, and NULL if the driver has not mapped them.
 *		The mapping has to last until the domain goes
 * @nr_slots:	their number
 */
struct imsvisor_store {
	void __iomem *slots;
	unsigned int nr_slots;
};

int imsvisor_ims_create(struct pci_dev *pdev, const struct imsvisor_store *store);
void imsvisor_ims_destroy(struct pci_dev *pdev);

struct msi_map imsvisor_ims_alloc_irq(struct pci_dev *pdev, u64 cookie,
				      const struct irq_affinity_desc *affdesc);
void imsvisor_ims_free_irq(struct pci_dev *pdev, struct msi_map map);

int imsvisor_ims_alloc_irqs(struct pci_dev *pdev, unsigned int group,
			    unsigned int min, unsigned int max,
			    struct msi_map *maps, const u64 *cookies,
			    const struct irq_affinity_desc *affdescs);
void imsvisor_ims_free_irqs(struct pci_dev *pdev, const struct msi_map *maps,
			    unsigned int nr);

void imsvisor_ims_free_group(struct pci_dev *pdev, unsigned int group);

int imsvisor_ims_set_pasid(struct pci_dev *pdev, struct msi_map map, int pasid);
int imsvisor_ims_restore(struct pci_dev *pdev);

#endif /* _IMSVISOR_H */
