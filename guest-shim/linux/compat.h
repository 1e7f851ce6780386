/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What differs between the kernels that this builds for. In the kernel itself it would not be. */
#ifndef _IMSVISOR_COMPAT_H
#define _IMSVISOR_COMPAT_H

#include <linux/irq.h>
#include <linux/processor.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#include <asm/cpuid/api.h>
#else
#include <asm/cpuid.h>
#endif

/*
 * A target changes at any time, not only in the interrupt. Since 6.15 this is
 * so unless a chip says otherwise.
 */
static inline void imsvisor_move_at_any_time(unsigned int virq)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 15, 0)
	irq_set_status_flags(virq, IRQ_MOVE_PCNTXT);
#endif
}

#endif /* _IMSVISOR_COMPAT_H */
