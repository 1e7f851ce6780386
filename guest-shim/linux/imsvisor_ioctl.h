/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/* /dev/imsvisor: how the guest that manages all guests does so from user space. */
#ifndef _IMSVISOR_IOCTL_H
#define _IMSVISOR_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

#include "imsvisor_abi.h"

/**
 * struct imsvisor_ioc_info - asks about a guest
 * @guest:	its number, from 0
 * @reserved:	0
 * @info:	the answer
 */
struct imsvisor_ioc_info {
	__u32 guest;
	__u32 reserved;
	struct imsvisor_guest_info info;
};

/**
 * struct imsvisor_ioc_counters - asks for a guest's figures
 * @guest:	its number, from 0
 * @reserved:	0
 * @counters:	the answer
 */
struct imsvisor_ioc_counters {
	__u32 guest;
	__u32 reserved;
	struct imsvisor_guest_counters counters;
};

/**
 * struct imsvisor_ioc_life - starts, stops or restarts a guest
 * @guest:	its number, from 0
 * @grace_ms:	how long it gets to stop, at most IMSVISOR_GRACE_MAX; 0 to start
 */
struct imsvisor_ioc_life {
	__u32 guest;
	__u32 grace_ms;
};

/*
 * -EINVAL for a guest that is not there; -EBADF for a change by a file that was
 * opened for reading.
 */
#define IMSVISOR_IOC_INFO	_IOWR('i', 0x60, struct imsvisor_ioc_info)
#define IMSVISOR_IOC_COUNTERS	_IOWR('i', 0x61, struct imsvisor_ioc_counters)
#define IMSVISOR_IOC_START	_IOW('i', 0x62, struct imsvisor_ioc_life)
#define IMSVISOR_IOC_STOP	_IOW('i', 0x63, struct imsvisor_ioc_life)
#define IMSVISOR_IOC_RESTART	_IOW('i', 0x64, struct imsvisor_ioc_life)

#endif /* _IMSVISOR_IOCTL_H */
