// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * /dev/imsvisor, for the one guest that manages all guests.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "imsvisor_ioctl.h"
#include "internal.h"

static bool registered;

/*
 * Asks the hypervisor to fill a structure in that begins with its size and
 * version. The structure must not cross a page, so it has one.
 */
static long ask(u32 call, u32 guest, void *answer_to, u32 size, u16 version)
{
	void *page = (void *)get_zeroed_page(GFP_KERNEL);
	long rc;

	if (!page)
		return -ENOMEM;
	memcpy(page + offsetof(struct imsvisor_guest_info, size), &size, sizeof(size));
	memcpy(page + offsetof(struct imsvisor_guest_info, version), &version, sizeof(version));
	rc = imsvisor_errno(imsvisor_call(call, guest, virt_to_phys(page), 0, 0));
	if (!rc)
		memcpy(answer_to, page, size);
	free_page((unsigned long)page);
	return rc;
}

static long ioc_info(void __user *arg)
{
	struct imsvisor_ioc_info asked;
	long rc;

	if (copy_from_user(&asked, arg, sizeof(asked)))
		return -EFAULT;
	if (asked.reserved)
		return -EINVAL;
	rc = ask(IMSVISOR_CALL_QUERY_GUEST, asked.guest, &asked.info,
		 sizeof(asked.info), IMSVISOR_LAYOUT_GUEST_INFO);
	if (!rc && copy_to_user(arg, &asked, sizeof(asked)))
		rc = -EFAULT;
	return rc;
}

static long ioc_counters(void __user *arg)
{
	struct imsvisor_ioc_counters asked;
	long rc;

	if (copy_from_user(&asked, arg, sizeof(asked)))
		return -EFAULT;
	if (asked.reserved)
		return -EINVAL;
	rc = ask(IMSVISOR_CALL_READ_COUNTERS, asked.guest, &asked.counters,
		 sizeof(asked.counters), IMSVISOR_LAYOUT_GUEST_COUNTERS);
	if (!rc && copy_to_user(arg, &asked, sizeof(asked)))
		rc = -EFAULT;
	return rc;
}

static long ioc_life(struct file *file, u32 call, void __user *arg)
{
	struct imsvisor_ioc_life asked;

	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (copy_from_user(&asked, arg, sizeof(asked)))
		return -EFAULT;
	if (call == IMSVISOR_CALL_START_GUEST && asked.grace_ms)
		return -EINVAL;
	return imsvisor_errno(imsvisor_call(call, asked.guest, asked.grace_ms, 0, 0));
}

static long manage_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *at = (void __user *)arg;

	switch (cmd) {
	case IMSVISOR_IOC_INFO:
		return ioc_info(at);
	case IMSVISOR_IOC_COUNTERS:
		return ioc_counters(at);
	case IMSVISOR_IOC_START:
		return ioc_life(file, IMSVISOR_CALL_START_GUEST, at);
	case IMSVISOR_IOC_STOP:
		return ioc_life(file, IMSVISOR_CALL_STOP_GUEST, at);
	case IMSVISOR_IOC_RESTART:
		return ioc_life(file, IMSVISOR_CALL_RESTART_GUEST, at);
	default:
		return -ENOTTY;
	}
}

static int manage_open(struct inode *inode, struct file *file)
{
	return capable(CAP_SYS_ADMIN) ? 0 : -EPERM;
}

static const struct file_operations manage_fops = {
	.owner = THIS_MODULE,
	.open = manage_open,
	.unlocked_ioctl = manage_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice manage_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "imsvisor",
	.fops = &manage_fops,
	.mode = 0600,
};

/**
 * imsvisor_manage_init - Makes /dev/imsvisor, if this guest manages
 *
 * Message stores do without the device, so a failure is one line of the log.
 */
void __init imsvisor_manage_init(void)
{
	int rc;

	if (!(imsvisor_domain.features & IMSVISOR_FEATURE_MANAGE))
		return;
	rc = misc_register(&manage_device);
	if (rc)
		pr_warn("there is no /dev/imsvisor: %d\n", rc);
	registered = !rc;
}

/**
 * imsvisor_manage_exit - Takes /dev/imsvisor away
 */
void imsvisor_manage_exit(void)
{
	if (registered)
		misc_deregister(&manage_device);
}
