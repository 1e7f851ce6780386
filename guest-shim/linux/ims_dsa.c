// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Tests a DSA's interrupt message store: a driver for the raw function, which
 * is bound by driver_override, with as many interrupts as it can get.
 *
 * Writing a word to the function's attribute "ims_run" carries a step out:
 *
 *   alloc N	allocate and request interrupts until there are N
 *   fire N	each interrupt completes N copies
 *   move N	N times: each interrupt moves to another CPU while a copy is
 *		under way that it completes, and completes another one there
 *   mask N	N interrupts are masked, come meanwhile, and are unmasked
 *   pasid P	one interrupt is for work of PASID P only: it does not come for
 *		work without, and comes again when it is for all work
 *   burst N	one interrupt completes copies for N milliseconds as fast as it
 *		can, however many of them come, comes once more, and is freed
 *   churn N	N times: some interrupts at random are freed, and others
 *		allocated, while copies of others are under way
 *   free	free all
 *
 * A write returns when the step is over. "ims_result" has the counts. Where
 * message stores must not be used, the interrupts are those of MSI-X.
 */
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/irq.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "ims_dsa.h"
#include "imsvisor.h"

/* Bytes that a copy moves. */
#define COPY		64
/* Copies that are under way while interrupts come and go. */
#define BURST		64
/* Interrupts that come and go at a time. */
#define CHURN_MAX	32
/* The group of all interrupts. */
#define GROUP		1
/* One of so many interrupts has a thread only, another one is enabled late. */
#define KINDS		16
#define THREADED	1
#define ENABLED_LATE	2
/* More milliseconds than an interrupt stays masked after a storm. */
#define MASKED_MS	2500
/* After which an interrupt is missed. */
#define TIMEOUT		(5 * HZ)
/* A step ends when so many interrupts have been missed. */
#define MOST_TIMEOUTS	8

static unsigned int limit = 4096;
module_param(limit, uint, 0444);
MODULE_PARM_DESC(limit, "Most interrupts of a device (default: 4096)");

/* What the device reads and writes for one interrupt. */
struct area {
	u8 src[COPY];
	u8 dst[COPY];
	struct dsa_completion_record record __aligned(32);
	u8 unused[96];
};

/* One interrupt. */
struct line {
	struct ims_dsa *dsa;
	struct msi_map map;
	unsigned int place;	/* of its area */
	int handle;
	bool live;
	bool submitted;
	unsigned int handled;
	unsigned int expected;
	struct completion done;
};

struct ims_dsa {
	struct ims_dsa_hw hw;
	bool ims;
	struct mutex lock;	/* one step at a time */
	unsigned int most;
	unsigned int live;
	unsigned int top;	/* beyond the last line that was ever live */
	struct line *lines;
	struct msi_map *maps;
	u64 *cookies;
	struct area *areas;
	dma_addr_t areas_dma;
	char name[32];
	unsigned int next;	/* where a look for a live line goes on */
	/* Results. */
	unsigned int descriptors, verified, errors, timeouts;
	unsigned int moved, unmoved, masked, refused, churned, allocated;
	atomic_t handled;
};

static irqreturn_t completed(int irq, void *arg)
{
	struct line *line = arg;

	line->handled++;
	atomic_inc(&line->dsa->handled);
	complete(&line->done);
	return IRQ_HANDLED;
}

static dma_addr_t dma_of(struct line *line, size_t offset)
{
	return line->dsa->areas_dma + line->place * sizeof(struct area) + offset;
}

static struct area *area_of(struct line *line)
{
	return &line->dsa->areas[line->place];
}

/* Hands a copy to the device that the line's interrupt completes. */
static void submit(struct line *line)
{
	struct dsa_hw_desc desc __aligned(64) = {
		.opcode = DSA_OPCODE_MEMMOVE,
		.flags = IDXD_OP_FLAG_CRAV | IDXD_OP_FLAG_RCR | IDXD_OP_FLAG_RCI,
		.completion_addr = dma_of(line, offsetof(struct area, record)),
		.src_addr = dma_of(line, offsetof(struct area, src)),
		.dst_addr = dma_of(line, offsetof(struct area, dst)),
		.xfer_size = COPY,
		.int_handle = line->handle,
	};
	struct area *area = area_of(line);

	get_random_bytes(area->src, sizeof(u64));
	memset(area->dst, 0, COPY);
	area->record.status = 0;
	line->expected++;
	line->submitted = true;
	line->dsa->descriptors++;
	ims_dsa_hw_submit(&line->dsa->hw, line->dsa->ims, &desc);
}

/* Waits for a line's interrupt, if a copy is under way, and verifies it. */
static void finish(struct line *line)
{
	struct ims_dsa *dsa = line->dsa;
	struct area *area = area_of(line);

	if (!line->submitted)
		return;
	line->submitted = false;
	if (!wait_for_completion_timeout(&line->done, TIMEOUT)) {
		dsa->timeouts++;
		pci_err(dsa->hw.pdev, "slot %d, irq %d: no interrupt, status %#x\n",
			line->map.index, line->map.virq, area->record.status);
		return;
	}
	if (line->handled != line->expected ||
	    (area->record.status & DSA_COMP_STATUS_MASK) != DSA_COMP_SUCCESS ||
	    memcmp(area->src, area->dst, COPY)) {
		dsa->errors++;
		pci_err(dsa->hw.pdev, "slot %d: %u of %u interrupts, status %#x\n",
			line->map.index, line->handled, line->expected,
			area->record.status);
		return;
	}
	dsa->verified++;
}

/* Requests a line's irq in one of the ways in which drivers do. */
static int request_line(struct line *line)
{
	const char *name = line->dsa->name;
	unsigned int virq = line->map.virq;
	int rc;

	switch (line->place % KINDS) {
	case THREADED:
		return request_threaded_irq(virq, NULL, completed, 0, name, line);
	case ENABLED_LATE:
		rc = request_irq(virq, completed, IRQF_NO_AUTOEN, name, line);
		if (!rc)
			enable_irq(virq);
		return rc;
	default:
		return request_irq(virq, completed, 0, name, line);
	}
}

static int attach(struct ims_dsa *dsa, struct line *line, struct msi_map map)
{
	int rc;

	line->map = map;
	line->handled = 0;
	line->expected = 0;
	reinit_completion(&line->done);
	rc = ims_dsa_hw_request_handle(&dsa->hw, dsa->ims, map.index);
	if (rc < 0)
		return rc;
	line->handle = rc;
	rc = request_line(line);
	if (rc) {
		ims_dsa_hw_release_handle(&dsa->hw, dsa->ims, line->handle);
		return rc;
	}
	line->live = true;
	dsa->top = max(dsa->top, line->place + 1);
	dsa->live++;
	dsa->allocated++;
	return 0;
}

/* The map of a line that is freed is left for the caller to give back. */
static void detach(struct ims_dsa *dsa, struct line *line)
{
	finish(line);
	if (ims_dsa_hw_release_handle(&dsa->hw, dsa->ims, line->handle))
		dsa->errors++;
	free_irq(line->map.virq, line);
	line->live = false;
	dsa->live--;
}

/* Gives interrupts to lines that have none; returns how many it gave. */
static int attach_all(struct ims_dsa *dsa, unsigned int nr)
{
	unsigned int n = 0, at = 0;
	int rc = 0;

	for (at = 0; at < dsa->most && n < nr; at++) {
		if (dsa->lines[at].live)
			continue;
		rc = attach(dsa, &dsa->lines[at], dsa->maps[n]);
		if (rc)
			break;
		n++;
	}
	if (n < nr && dsa->ims)
		imsvisor_ims_free_irqs(dsa->hw.pdev, dsa->maps + n, nr - n);
	return rc;
}

static int alloc_by_ims(struct ims_dsa *dsa, unsigned int nr)
{
	unsigned int n;
	int rc;

	for (n = 0; n < nr; n++)
		dsa->cookies[n] = get_random_u64();
	rc = imsvisor_ims_alloc_irqs(dsa->hw.pdev, GROUP, nr, nr, dsa->maps,
				     dsa->cookies, NULL);
	if (rc < 0)
		return rc;
	return attach_all(dsa, nr);
}

static int alloc_lines(struct ims_dsa *dsa, unsigned int target)
{
	unsigned int n;

	target = min(target, dsa->most);
	if (target <= dsa->live)
		return 0;
	if (dsa->ims)
		return alloc_by_ims(dsa, target - dsa->live);
	/* MSI-X: line n has vector n for good. */
	for (n = dsa->live; n < target; n++) {
		dsa->maps[n - dsa->live] = (struct msi_map) {
			.index = n,
			.virq = pci_irq_vector(dsa->hw.pdev, n),
		};
	}
	return attach_all(dsa, target - dsa->live);
}

static int too_many_missed(struct ims_dsa *dsa)
{
	return dsa->timeouts < MOST_TIMEOUTS ? 0 : -ETIMEDOUT;
}

/* The next line with an interrupt, round and round. */
static struct line *next_live(struct ims_dsa *dsa)
{
	do {
		dsa->next = (dsa->next + 1) % dsa->top;
	} while (!dsa->lines[dsa->next].live);
	return &dsa->lines[dsa->next];
}

static struct line *random_live(struct ims_dsa *dsa)
{
	dsa->next = get_random_u32_below(dsa->top);
	return next_live(dsa);
}

/* Each line completes @rounds copies; as many are under way as the queue holds. */
static int fire(struct ims_dsa *dsa, unsigned int rounds)
{
	unsigned int depth = min(dsa->hw.depth, dsa->live);
	u64 n, total = (u64)rounds * dsa->live;
	struct line **under_way;

	if (!dsa->live)
		return -ENOENT;
	under_way = kcalloc(depth, sizeof(*under_way), GFP_KERNEL);
	if (!under_way)
		return -ENOMEM;
	for (n = 0; n < total + depth; n++) {
		struct line **at = &under_way[n % depth];

		if (*at)
			finish(*at);
		if (too_many_missed(dsa))
			total = min(total, n);
		*at = n < total ? next_live(dsa) : NULL;
		if (*at)
			submit(*at);
		cond_resched();
	}
	kfree(under_way);
	return too_many_missed(dsa);
}

/* The CPU behind the one to which a line's interrupts go. */
static unsigned int next_cpu(struct line *line)
{
	struct irq_data *data = irq_get_irq_data(line->map.virq);
	unsigned int cpu = cpumask_first(irq_data_get_effective_affinity_mask(data));

	cpu = cpumask_next(cpu, cpu_online_mask);
	return cpu < nr_cpu_ids ? cpu : cpumask_first(cpu_online_mask);
}

/*
 * Moves a line to the next CPU. Linux frees the vectors that irqs have left
 * some milliseconds later, so there may be none for a moment.
 */
static int move_line(struct line *line)
{
	const struct cpumask *mask = cpumask_of(next_cpu(line));
	unsigned int tries;
	int rc = -ENOSPC;

	for (tries = 0; rc == -ENOSPC && tries < 100; tries++) {
		if (tries)
			msleep(10);
		rc = irq_set_affinity(line->map.virq, mask);
	}
	return rc;
}

/*
 * Each line moves @rounds times while a copy is under way. Linux keeps the old
 * vector until an interrupt comes by the new one, so another copy follows.
 */
static int move(struct ims_dsa *dsa, unsigned int rounds)
{
	unsigned int n, total = rounds * dsa->live;
	struct line *line;

	if (!dsa->live)
		return -ENOENT;
	for (n = 0; n < total && !too_many_missed(dsa); n++) {
		line = next_live(dsa);
		submit(line);
		if (move_line(line))
			dsa->unmoved++;
		else
			dsa->moved++;
		finish(line);
		submit(line);
		finish(line);
		cond_resched();
	}
	return too_many_missed(dsa);
}

/* Waits until the device has written a line's record, interrupt or not. */
static void await_record(struct line *line)
{
	unsigned long end = jiffies + TIMEOUT;

	while (!READ_ONCE(area_of(line)->record.status) && time_before(jiffies, end))
		cond_resched();
}

static int mask(struct ims_dsa *dsa, unsigned int nr)
{
	struct line *line;
	unsigned int n, before;

	if (!dsa->live)
		return -ENOENT;
	for (n = 0; n < nr && !too_many_missed(dsa); n++) {
		line = next_live(dsa);
		/* Without this an irq is masked only when it comes. */
		irq_set_status_flags(line->map.virq, IRQ_DISABLE_UNLAZY);
		disable_irq(line->map.virq);
		before = line->handled;
		submit(line);
		await_record(line);
		if (line->handled != before)
			dsa->errors++;
		enable_irq(line->map.virq);
		irq_clear_status_flags(line->map.virq, IRQ_DISABLE_UNLAZY);
		finish(line);
		dsa->masked++;
	}
	return too_many_missed(dsa);
}

static int pasid(struct ims_dsa *dsa, unsigned int number)
{
	struct line *line;
	int rc;

	if (!dsa->ims || !dsa->live)
		return -ENOENT;
	line = next_live(dsa);
	rc = imsvisor_ims_set_pasid(dsa->hw.pdev, line->map, number);
	if (rc)
		return rc;
	submit(line);
	await_record(line);
	if (try_wait_for_completion(&line->done))
		dsa->errors++;
	line->submitted = false;
	line->expected = line->handled;
	dsa->descriptors--;
	dsa->refused++;
	rc = imsvisor_ims_set_pasid(dsa->hw.pdev, line->map, -1);
	if (rc)
		return rc;
	submit(line);
	finish(line);
	return 0;
}

/*
 * The hypervisor masks an interrupt that comes faster than its limit, and a
 * message waits in the device. The module unmasks the slot after some time, and
 * the interrupt comes as ever.
 */
static int burst(struct ims_dsa *dsa, unsigned int milliseconds)
{
	unsigned long end = jiffies + msecs_to_jiffies(milliseconds);
	struct line *line;

	if (!dsa->ims || !dsa->live)
		return -ENOENT;
	/* A thread runs once for several interrupts, so it would miscount them. */
	do {
		line = next_live(dsa);
	} while (line->place % KINDS == THREADED && dsa->live > 1);
	while (time_before(jiffies, end)) {
		submit(line);
		await_record(line);
		dsa->descriptors--;
		cond_resched();
	}
	msleep(MASKED_MS);
	line->expected = line->handled;
	reinit_completion(&line->done);
	submit(line);
	detach(dsa, line);
	imsvisor_ims_free_irqs(dsa->hw.pdev, &line->map, 1);
	return 0;
}

/* Frees some lines at random and allocates as many, while others fire. */
static int churn_once(struct ims_dsa *dsa)
{
	unsigned int nr = get_random_u32_inclusive(1, min(CHURN_MAX, dsa->live - 1));
	unsigned int target = dsa->live;
	unsigned int n;
	int rc;

	for (n = 0; n < BURST / 2; n++) {
		struct line *line = random_live(dsa);

		if (!line->submitted)
			submit(line);
	}
	for (n = 0; n < nr; n++) {
		struct line *line = random_live(dsa);

		detach(dsa, line);
		dsa->maps[n] = line->map;
	}
	imsvisor_ims_free_irqs(dsa->hw.pdev, dsa->maps, nr);
	rc = alloc_lines(dsa, target);
	if (rc)
		return rc;
	for (n = 0; n < dsa->most; n++) {
		if (dsa->lines[n].live)
			finish(&dsa->lines[n]);
	}
	dsa->churned += nr;
	return too_many_missed(dsa);
}

static int churn(struct ims_dsa *dsa, unsigned int rounds)
{
	int rc = dsa->ims && dsa->live > 1 ? 0 : -ENOENT;

	while (!rc && rounds--) {
		rc = churn_once(dsa);
		cond_resched();
	}
	return rc;
}

static int free_lines(struct ims_dsa *dsa)
{
	unsigned int n, nr = 0;

	for (n = 0; n < dsa->most; n++) {
		if (!dsa->lines[n].live)
			continue;
		detach(dsa, &dsa->lines[n]);
		dsa->maps[nr++] = dsa->lines[n].map;
	}
	if (dsa->ims && nr)
		imsvisor_ims_free_group(dsa->hw.pdev, GROUP);
	return 0;
}

static int run_step(struct ims_dsa *dsa, const char *text)
{
	unsigned int number = 0;
	char word[8] = {};

	if (sscanf(text, "%7s %u", word, &number) < 1)
		return -EINVAL;
	if (!strcmp(word, "alloc"))
		return alloc_lines(dsa, number);
	if (!strcmp(word, "fire"))
		return fire(dsa, number);
	if (!strcmp(word, "move"))
		return move(dsa, number);
	if (!strcmp(word, "mask"))
		return mask(dsa, number);
	if (!strcmp(word, "burst"))
		return burst(dsa, number);
	if (!strcmp(word, "pasid"))
		return pasid(dsa, number);
	if (!strcmp(word, "churn"))
		return churn(dsa, number);
	if (!strcmp(word, "free"))
		return free_lines(dsa);
	return -EINVAL;
}

static ssize_t ims_run_store(struct device *dev, struct device_attribute *attr,
			     const char *buf, size_t count)
{
	struct ims_dsa *dsa = dev_get_drvdata(dev);
	int rc;

	mutex_lock(&dsa->lock);
	rc = run_step(dsa, buf);
	mutex_unlock(&dsa->lock);
	return rc < 0 ? rc : count;
}
static DEVICE_ATTR_WO(ims_run);

static ssize_t ims_result_show(struct device *dev, struct device_attribute *attr,
			       char *buf)
{
	struct ims_dsa *dsa = dev_get_drvdata(dev);

	return sysfs_emit(buf,
			  "descriptors=%u verified=%u errors=%u timeouts=%u by=%s allocated=%u moved=%u unmoved=%u masked=%u refused=%u churned=%u counted=%d\n",
			  dsa->descriptors, dsa->verified, dsa->errors,
			  dsa->timeouts, dsa->ims ? "ims" : "msix",
			  dsa->allocated, dsa->moved, dsa->unmoved, dsa->masked,
			  dsa->refused, dsa->churned, atomic_read(&dsa->handled));
}
static DEVICE_ATTR_RO(ims_result);

static struct attribute *ims_dsa_attrs[] = {
	&dev_attr_ims_run.attr,
	&dev_attr_ims_result.attr,
	NULL
};
ATTRIBUTE_GROUPS(ims_dsa);

/* Chooses between the message store and MSI-X. */
static int choose(struct ims_dsa *dsa)
{
	struct pci_dev *pdev = dsa->hw.pdev;
	struct imsvisor_store store = {
		.slots = dsa->hw.store,
		.nr_slots = dsa->hw.nr_slots,
	};
	int rc = imsvisor_ims_create(pdev, &store);

	dsa->ims = !rc;
	if (!rc) {
		dsa->most = min(dsa->hw.nr_slots, limit);
		return 0;
	}
	pci_info(pdev, "no message store (%d): MSI-X\n", rc);
	rc = pci_alloc_irq_vectors(pdev, 1, limit, PCI_IRQ_MSIX);
	if (rc < 0)
		return rc;
	dsa->most = rc;
	return 0;
}

static int make_room(struct ims_dsa *dsa)
{
	struct device *dev = &dsa->hw.pdev->dev;
	unsigned int n;

	dsa->lines = kvcalloc(dsa->most, sizeof(*dsa->lines), GFP_KERNEL);
	dsa->maps = kvcalloc(dsa->most, sizeof(*dsa->maps), GFP_KERNEL);
	dsa->cookies = kvcalloc(dsa->most, sizeof(*dsa->cookies), GFP_KERNEL);
	dsa->areas = dma_alloc_coherent(dev, dsa->most * sizeof(*dsa->areas),
					&dsa->areas_dma, GFP_KERNEL);
	if (!dsa->lines || !dsa->maps || !dsa->cookies || !dsa->areas)
		return -ENOMEM;
	for (n = 0; n < dsa->most; n++) {
		dsa->lines[n].dsa = dsa;
		dsa->lines[n].place = n;
		init_completion(&dsa->lines[n].done);
	}
	return 0;
}

static void give_interrupts_back(struct ims_dsa *dsa)
{
	if (dsa->ims)
		imsvisor_ims_destroy(dsa->hw.pdev);
	else
		pci_free_irq_vectors(dsa->hw.pdev);
}

static void free_room(struct ims_dsa *dsa)
{
	if (dsa->areas)
		dma_free_coherent(&dsa->hw.pdev->dev, dsa->most * sizeof(*dsa->areas),
				  dsa->areas, dsa->areas_dma);
	kvfree(dsa->cookies);
	kvfree(dsa->maps);
	kvfree(dsa->lines);
}

static int ims_dsa_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct ims_dsa *dsa = devm_kzalloc(&pdev->dev, sizeof(*dsa), GFP_KERNEL);
	int rc;

	if (!dsa)
		return -ENOMEM;
	dsa->hw.pdev = pdev;
	mutex_init(&dsa->lock);
	snprintf(dsa->name, sizeof(dsa->name), "ims-dsa@%s", pci_name(pdev));
	rc = ims_dsa_hw_open(&dsa->hw);
	if (rc)
		return rc;
	rc = choose(dsa);
	if (rc)
		return rc;
	rc = make_room(dsa);
	if (!rc)
		rc = ims_dsa_hw_start(&dsa->hw);
	if (rc) {
		give_interrupts_back(dsa);
		free_room(dsa);
		return rc;
	}
	pci_set_drvdata(pdev, dsa);
	return 0;
}

static void ims_dsa_remove(struct pci_dev *pdev)
{
	struct ims_dsa *dsa = pci_get_drvdata(pdev);

	free_lines(dsa);
	/* Before the reset, which gives all slots back as well. */
	give_interrupts_back(dsa);
	if (ims_dsa_hw_reset(&dsa->hw)) {
		pci_err(pdev, "it cannot be reset, and its memory stays its own\n");
		dsa->areas = NULL;
	}
	free_room(dsa);
}

/* No function is bound to it but by driver_override. */
static const struct pci_device_id ims_dsa_ids[] = { {} };

static struct pci_driver ims_dsa_driver = {
	.name = "ims-dsa",
	.id_table = ims_dsa_ids,
	.probe = ims_dsa_probe,
	.remove = ims_dsa_remove,
	.dev_groups = ims_dsa_groups,
};
module_pci_driver(ims_dsa_driver);

MODULE_DESCRIPTION("Tests a DSA's interrupt message store");
MODULE_AUTHOR("The imsvisor project");
MODULE_LICENSE("Dual MIT/GPL");
