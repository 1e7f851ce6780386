// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The request to stop: an interrupt by which the hypervisor asks this guest to
 * end, and which powers it off in order. No device raises it, so it has an irq
 * domain of its own, of one irq.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/reboot.h>

#include <asm/irqdomain.h>

#include "compat.h"
#include "internal.h"

#define NAME	"imsvisor-stop"

static struct irq_domain *domain;
static struct fwnode_handle *fwnode;
static int virq;

/* Tells the hypervisor which interrupt it is; 0: none. */
static int tell(u64 target)
{
	return imsvisor_errno(imsvisor_call(IMSVISOR_CALL_SET_STOP_REQUEST,
					    target, 0, 0, 0));
}

static int stop_irq_set_affinity(struct irq_data *data, const struct cpumask *mask,
				 bool force)
{
	int rc = irq_chip_set_affinity_parent(data, mask, force);
	int failed;

	if (rc < 0 || !irqd_is_activated(data))
		return rc;
	/* The vector domain has moved the irq, so that this is no error of the move. */
	failed = tell(imsvisor_target(data));
	if (failed)
		pr_err("requests to stop still go to the old processor: %d\n", failed);
	return rc;
}

/*
 * The interrupt cannot be masked. genirq masks an irq that it moves in its
 * interrupt, and asks for no function to do so.
 */
static void stop_irq_nothing(struct irq_data *data)
{
}

static struct irq_chip stop_chip = {
	.name = NAME,
	.irq_mask = stop_irq_nothing,
	.irq_unmask = stop_irq_nothing,
	.irq_ack = irq_chip_ack_parent,
	.irq_set_affinity = stop_irq_set_affinity,
	.irq_retrigger = irq_chip_retrigger_hierarchy,
	.flags = IRQCHIP_SKIP_SET_WAKE | IRQCHIP_AFFINITY_PRE_STARTUP |
		 IRQCHIP_ONESHOT_SAFE,
};

static int stop_domain_alloc(struct irq_domain *stop, unsigned int irq,
			     unsigned int nr_irqs, void *arg)
{
	struct irq_alloc_info info = {};
	int rc = irq_domain_alloc_irqs_parent(stop, irq, nr_irqs, &info);

	if (rc)
		return rc;
	irq_domain_set_info(stop, irq, 0, &stop_chip, NULL, handle_edge_irq, NULL,
			    "edge");
	imsvisor_set_move(irq, false);
	return 0;
}

static int stop_domain_activate(struct irq_domain *stop, struct irq_data *data,
				bool reserve)
{
	return reserve ? 0 : tell(imsvisor_target(data));
}

static void stop_domain_deactivate(struct irq_domain *stop, struct irq_data *data)
{
	if (tell(0))
		pr_err("the request to stop cannot be taken away\n");
}

static const struct irq_domain_ops stop_domain_ops = {
	.alloc = stop_domain_alloc,
	.free = irq_domain_free_irqs_common,
	.activate = stop_domain_activate,
	.deactivate = stop_domain_deactivate,
};

static irqreturn_t asked(int irq, void *arg)
{
	pr_notice("the hypervisor asks this guest to stop\n");
	orderly_poweroff(true);
	return IRQ_HANDLED;
}

static int create(void)
{
	fwnode = irq_domain_alloc_named_fwnode(NAME);
	if (!fwnode)
		return -ENOMEM;
	domain = irq_domain_create_hierarchy(x86_vector_domain, 0, 0, fwnode,
					     &stop_domain_ops, NULL);
	if (!domain)
		return -ENOMEM;
	virq = irq_domain_alloc_irqs(domain, 1, NUMA_NO_NODE, NULL);
	if (virq <= 0)
		return virq ?: -ENOSPC;
	return request_irq(virq, asked, IRQF_NOBALANCING, NAME, &stop_chip);
}

static void destroy(void)
{
	if (virq > 0)
		irq_dispose_mapping(virq);
	if (domain)
		irq_domain_remove(domain);
	if (fwnode)
		irq_domain_free_fwnode(fwnode);
	virq = 0;
	domain = NULL;
	fwnode = NULL;
}

/**
 * imsvisor_stop_init - Takes requests to stop, if the hypervisor makes any
 *
 * A guest that cannot be asked is ended after the time that it was given, so
 * a failure is one line of the log.
 */
void __init imsvisor_stop_init(void)
{
	int rc;

	if (!(imsvisor_domain.features & IMSVISOR_FEATURE_STOP_REQUEST))
		return;
	rc = create();
	if (rc) {
		pr_warn("this guest cannot be asked to stop: %d\n", rc);
		destroy();
	}
}

/**
 * imsvisor_stop_shutdown - Takes no more requests to stop, when the kernel ends
 *
 * The next kernel has other vectors.
 */
void imsvisor_stop_shutdown(void)
{
	if (domain)
		tell(0);
}

/**
 * imsvisor_stop_exit - Takes no more requests to stop
 */
void imsvisor_stop_exit(void)
{
	if (!domain)
		return;
	free_irq(virq, &stop_chip);
	destroy();
}
