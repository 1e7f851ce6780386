// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Registers, commands and portals of a DSA, as far as a test needs them: one
 * group with one dedicated work queue and one engine. Commands are polled, so
 * all interrupts of the device are completions.
 */
#include <linux/bitfield.h>
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/iopoll.h>

#include <asm/cpufeature.h>

#include "ims_dsa.h"

#define DSA_GENCAP		0x10
#define GENCAP_TRANSFER_SHIFT	GENMASK_ULL(20, 16)
#define GENCAP_BATCH_SHIFT	GENMASK_ULL(24, 21)
#define GENCAP_IMS_MULTIPLIER	GENMASK_ULL(30, 25)
#define GENCAP_CMDCAP		BIT_ULL(4)
#define IMS_UNIT		256
#define DSA_WQCAP		0x20
#define WQCAP_SIZE		GENMASK_ULL(15, 0)
#define DSA_TABLES		0x60
#define TABLES_GROUPS		GENMASK_ULL(15, 0)
#define TABLES_QUEUES		GENMASK_ULL(31, 16)
#define TABLES_IMS		GENMASK_ULL(63, 48)
#define TABLE_UNIT		0x100
#define DSA_GENSTS		0x90
#define GENSTS_STATE		GENMASK(1, 0)
#define GENSTS_ENABLED		1
#define DSA_CMD			0xa0
#define CMD_OPERAND		GENMASK(19, 0)
#define CMD_COMMAND		GENMASK(24, 20)
#define DSA_CMDSTS		0xa8
#define CMDSTS_ERROR		GENMASK(7, 0)
#define CMDSTS_RESULT		GENMASK(23, 8)
#define CMDSTS_ACTIVE		BIT(31)
#define DSA_CMDCAP		0xb0

enum {
	CMD_ENABLE_DEVICE = 1,
	CMD_RESET_DEVICE = 5,
	CMD_ENABLE_WQ = 6,
	CMD_REQUEST_HANDLE = 13,
	CMD_RELEASE_HANDLE = 14,
};

/* In an interrupt handle command's operand: of the store, not of MSI-X. */
#define HANDLE_IMS		BIT(16)

/* In a group's configuration; its work queues are at 0. */
#define GROUP_ENGINES		32
#define GROUP_FLAGS		40

/* A work queue's third and fourth dword. */
#define WQCFG_DEDICATED		BIT(0)
#define WQCFG_PRIORITY		GENMASK(7, 4)
#define WQCFG_TRANSFER_SHIFT	GENMASK(4, 0)
#define WQCFG_BATCH_SHIFT	GENMASK(8, 5)

/* The portals of work queue 0: MSI-X unlimited, limited, IMS unlimited. */
#define PORTAL_IMS		(2 * SZ_4K)

#define COMMAND_TIMEOUT_US	(2 * USEC_PER_SEC)
#define MOST_DEPTH		128

/* Carries a command out; returns its result, or an errno. */
static int command(struct ims_dsa_hw *hw, u32 which, u32 operand)
{
	u32 status;
	int rc;

	iowrite32(FIELD_PREP(CMD_COMMAND, which) | FIELD_PREP(CMD_OPERAND, operand),
		  hw->regs + DSA_CMD);
	rc = readl_poll_timeout(hw->regs + DSA_CMDSTS, status,
				!(status & CMDSTS_ACTIVE), 0, COMMAND_TIMEOUT_US);
	if (rc)
		return rc;
	if (FIELD_GET(CMDSTS_ERROR, status)) {
		pci_err(hw->pdev, "command %u with %#x ended with %#x\n", which,
			operand, status);
		return -EIO;
	}
	return FIELD_GET(CMDSTS_RESULT, status);
}

static void __iomem *table(struct ims_dsa_hw *hw, u64 offset)
{
	return hw->regs + offset * TABLE_UNIT;
}

static u64 tables(struct ims_dsa_hw *hw)
{
	return readq(hw->regs + DSA_TABLES);
}

/**
 * ims_dsa_hw_open - Maps a DSA and finds out what it has
 * @hw:		the device, with @hw->pdev
 *
 * Return: 0 or an errno.
 */
int ims_dsa_hw_open(struct ims_dsa_hw *hw)
{
	struct pci_dev *pdev = hw->pdev;
	u64 gencap;
	int rc;

	if (!boot_cpu_has(X86_FEATURE_MOVDIR64B))
		return -EOPNOTSUPP;
	rc = pcim_enable_device(pdev);
	if (rc)
		return rc;
	hw->regs = pcim_iomap_region(pdev, 0, "ims-dsa");
	if (IS_ERR(hw->regs))
		return PTR_ERR(hw->regs);
	hw->portals = pcim_iomap_region(pdev, 2, "ims-dsa");
	if (IS_ERR(hw->portals))
		return PTR_ERR(hw->portals);
	rc = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (rc)
		return rc;
	pci_set_master(pdev);
	gencap = readq(hw->regs + DSA_GENCAP);
	hw->nr_slots = FIELD_GET(GENCAP_IMS_MULTIPLIER, gencap) * IMS_UNIT;
	hw->store = table(hw, FIELD_GET(TABLES_IMS, tables(hw)));
	hw->depth = min(FIELD_GET(WQCAP_SIZE, readq(hw->regs + DSA_WQCAP)), MOST_DEPTH);
	hw->handles = gencap & GENCAP_CMDCAP &&
		      ioread32(hw->regs + DSA_CMDCAP) & BIT(CMD_REQUEST_HANDLE);
	return 0;
}

/**
 * ims_dsa_hw_start - Resets a DSA and enables it with one work queue
 * @hw:		the device
 *
 * Return: 0 or an errno.
 */
int ims_dsa_hw_start(struct ims_dsa_hw *hw)
{
	void __iomem *group = table(hw, FIELD_GET(TABLES_GROUPS, tables(hw)));
	void __iomem *queue = table(hw, FIELD_GET(TABLES_QUEUES, tables(hw)));
	u64 gencap = readq(hw->regs + DSA_GENCAP);
	int rc = command(hw, CMD_RESET_DEVICE, 0);

	if (rc < 0)
		return rc;
	iowrite32(hw->depth, queue);
	iowrite32(0, queue + 4);
	iowrite32(WQCFG_DEDICATED | FIELD_PREP(WQCFG_PRIORITY, 8), queue + 8);
	iowrite32(FIELD_PREP(WQCFG_TRANSFER_SHIFT, FIELD_GET(GENCAP_TRANSFER_SHIFT, gencap)) |
		  FIELD_PREP(WQCFG_BATCH_SHIFT, FIELD_GET(GENCAP_BATCH_SHIFT, gencap)),
		  queue + 12);
	iowrite32(BIT(0), group);
	iowrite32(BIT(0), group + GROUP_ENGINES);
	iowrite32(0, group + GROUP_FLAGS);
	rc = command(hw, CMD_ENABLE_DEVICE, 0);
	if (rc < 0)
		return rc;
	if ((ioread32(hw->regs + DSA_GENSTS) & GENSTS_STATE) != GENSTS_ENABLED)
		return -EIO;
	rc = command(hw, CMD_ENABLE_WQ, 0);
	return min(rc, 0);
}

/**
 * ims_dsa_hw_reset - Resets a DSA
 * @hw:		the device
 *
 * Return: 0 or an errno; the device may write to memory after an error.
 */
int ims_dsa_hw_reset(struct ims_dsa_hw *hw)
{
	return min(command(hw, CMD_RESET_DEVICE, 0), 0);
}

/**
 * ims_dsa_hw_request_handle - What a descriptor says to raise an interrupt
 * @hw:		the device
 * @ims:	of the message store, not of MSI-X
 * @index:	the slot or entry
 *
 * Return: the handle, or an errno.
 */
int ims_dsa_hw_request_handle(struct ims_dsa_hw *hw, bool ims, u16 index)
{
	if (!hw->handles)
		return index;
	return command(hw, CMD_REQUEST_HANDLE, index | (ims ? HANDLE_IMS : 0));
}

/**
 * ims_dsa_hw_release_handle - Gives a handle back
 * @hw:		the device
 * @ims:	of the message store, not of MSI-X
 * @handle:	the handle
 *
 * Return: 0 or an errno.
 */
int ims_dsa_hw_release_handle(struct ims_dsa_hw *hw, bool ims, u16 handle)
{
	if (!hw->handles)
		return 0;
	return min(command(hw, CMD_RELEASE_HANDLE, handle | (ims ? HANDLE_IMS : 0)), 0);
}

/**
 * ims_dsa_hw_submit - Hands a descriptor to work queue 0
 * @hw:		the device
 * @ims:	its handle is one of the message store
 * @desc:	the descriptor, aligned to 64 bytes
 */
void ims_dsa_hw_submit(struct ims_dsa_hw *hw, bool ims, const struct dsa_hw_desc *desc)
{
	/* What the descriptor refers to is in memory before it is. */
	wmb();
	iosubmit_cmds512(hw->portals + (ims ? PORTAL_IMS : 0), desc, 1);
}
