/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Differences between the kernels that this builds for; none in the kernel itself. */
#ifndef _IMSVISOR_COMPAT_H
#define _IMSVISOR_COMPAT_H

#include <linux/irq.h>
#include <linux/processor.h>
#include <linux/syscore_ops.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#include <asm/cpuid/api.h>
#else
#include <asm/cpuid.h>
#endif

/*
 * Says for an irq whether its target changes at any time, or, if @deferred, in
 * its interrupt only. Since 6.14 this is so unless the chip says otherwise.
 */
static inline void imsvisor_set_move(unsigned int virq, bool deferred)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 14, 0)
	if (!deferred)
		irq_set_status_flags(virq, IRQ_MOVE_PCNTXT);
#endif
}

/* The same for a chip. */
static inline void imsvisor_set_chip_move(struct irq_chip *chip, bool deferred)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0)
	if (deferred)
		chip->flags |= IRQCHIP_MOVE_DEFERRED;
#endif
}

/* Since 6.19 callbacks have an argument, which is not used here. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
#define IMSVISOR_SYSCORE(name, end)					\
	static void name##_end(void *data) { end(); }			\
	static const struct syscore_ops name##_ops = { .shutdown = name##_end }; \
	static struct syscore name = { .ops = &name##_ops }
#define imsvisor_register_syscore	register_syscore
#define imsvisor_unregister_syscore	unregister_syscore
#else
#define IMSVISOR_SYSCORE(name, end)					\
	static struct syscore_ops name = { .shutdown = end }
#define imsvisor_register_syscore	register_syscore_ops
#define imsvisor_unregister_syscore	unregister_syscore_ops
#endif

#endif /* _IMSVISOR_COMPAT_H */
