// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Copies memory through a DMA_MEMCPY channel of the dmaengine, each copy
 * completed by an interrupt, and verifies what arrived.
 *
 * The copies start when the module is loaded. Reading the parameter "wait"
 * returns when they are over, "result" has the counts at any time. The module
 * cannot be unloaded while copies are under way, nor after a time-out: the
 * device may still write to memory that was given to it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/dmaengine.h>
#include <linux/module.h>
#include <linux/prandom.h>
#include <linux/random.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/workqueue.h>

/* Memory before and after a destination that no copy may change. */
#define CANARY		64
#define CANARY_BYTE	0xc5
/* What a destination holds before a copy. */
#define EMPTY_BYTE	0x3a

#define BYTES_MAX	SZ_1M
#define THREADS_MAX	64U
#define OUTSTANDING_MAX	256U

static unsigned int copies = 256;
module_param(copies, uint, 0444);
MODULE_PARM_DESC(copies, "Copies in all (default: 256)");

static unsigned int bytes = 4096;
module_param(bytes, uint, 0444);
MODULE_PARM_DESC(bytes, "Bytes of each copy (default: 4096)");

static unsigned int threads = 1;
module_param(threads, uint, 0444);
MODULE_PARM_DESC(threads, "Work items that copy at the same time (default: 1)");

static unsigned int outstanding = 1;
module_param(outstanding, uint, 0444);
MODULE_PARM_DESC(outstanding, "Copies under way for each thread (default: 1)");

static unsigned int timeout = 2000;
module_param(timeout, uint, 0444);
MODULE_PARM_DESC(timeout, "Milliseconds after which an interrupt is missed (default: 2000)");

/* One copy under way. The memory is used again for the next one. */
struct request {
	struct completion done;
	enum dmaengine_tx_result result;
	u8 *src;
	u8 *area;	/* canary, destination, canary */
	dma_addr_t src_dma;
	dma_addr_t dst_dma;
	bool submitted;
	bool abandoned;	/* the device may still use the memory */
};

struct worker {
	struct work_struct work;
	struct rnd_state random;
	unsigned int copies;
	unsigned int depth;
	struct request *requests;
};

static struct dma_chan *channel;
static struct device *dma_dev;
static struct workqueue_struct *queue;
static struct worker *workers;

static atomic_t descriptors = ATOMIC_INIT(0);
static atomic_t verified = ATOMIC_INIT(0);
static atomic64_t bytes_verified = ATOMIC64_INIT(0);
static atomic_t errors = ATOMIC_INIT(0);
static atomic_t timeouts = ATOMIC_INIT(0);
static atomic_t running = ATOMIC_INIT(0);
static DECLARE_COMPLETION(all_done);

static int result_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "descriptors=%d bytes=%lld verified=%d errors=%d timeouts=%d\n",
			  atomic_read(&descriptors),
			  (long long)atomic64_read(&bytes_verified),
			  atomic_read(&verified), atomic_read(&errors),
			  atomic_read(&timeouts));
}

static const struct kernel_param_ops result_ops = { .get = result_get };
module_param_cb(result, &result_ops, NULL, 0444);
MODULE_PARM_DESC(result, "What came of the copies so far");

/*
 * Every wait of a worker has an end, so this one has. The other parameters
 * cannot be read meanwhile.
 */
static int wait_get(char *buffer, const struct kernel_param *kp)
{
	int rc = wait_for_completion_killable(&all_done);

	return rc ? rc : sysfs_emit(buffer, "done\n");
}

static const struct kernel_param_ops wait_ops = { .get = wait_get };
module_param_cb(wait, &wait_ops, NULL, 0444);
MODULE_PARM_DESC(wait, "Reading it returns when all copies are over");

static u8 *destination(struct request *req)
{
	return req->area + CANARY;
}

static void copied(void *param, const struct dmaengine_result *result)
{
	struct request *req = param;

	req->result = result ? result->result : DMA_TRANS_NOERROR;
	complete(&req->done);
}

static int map(struct request *req)
{
	req->src_dma = dma_map_single(dma_dev, req->src, bytes, DMA_TO_DEVICE);
	if (dma_mapping_error(dma_dev, req->src_dma))
		return -ENOMEM;
	req->dst_dma = dma_map_single(dma_dev, destination(req), bytes,
				      DMA_FROM_DEVICE);
	if (dma_mapping_error(dma_dev, req->dst_dma)) {
		dma_unmap_single(dma_dev, req->src_dma, bytes, DMA_TO_DEVICE);
		return -ENOMEM;
	}
	return 0;
}

static void unmap(struct request *req)
{
	dma_unmap_single(dma_dev, req->dst_dma, bytes, DMA_FROM_DEVICE);
	dma_unmap_single(dma_dev, req->src_dma, bytes, DMA_TO_DEVICE);
}

/* Fills the memory and hands a copy to the device. */
static int submit(struct worker *worker, struct request *req)
{
	struct dma_async_tx_descriptor *tx;
	int rc;

	prandom_bytes_state(&worker->random, req->src, bytes);
	memset(req->area, CANARY_BYTE, CANARY);
	memset(destination(req), EMPTY_BYTE, bytes);
	memset(destination(req) + bytes, CANARY_BYTE, CANARY);
	reinit_completion(&req->done);

	rc = map(req);
	if (rc)
		return rc;
	tx = dmaengine_prep_dma_memcpy(channel, req->dst_dma, req->src_dma,
				       bytes, DMA_PREP_INTERRUPT);
	if (!tx) {
		unmap(req);
		return -EIO;
	}
	tx->callback_result = copied;
	tx->callback_param = req;
	if (dma_submit_error(dmaengine_submit(tx))) {
		unmap(req);
		return -EIO;
	}
	dma_async_issue_pending(channel);
	return 0;
}

static bool is_right(struct request *req)
{
	u8 *dst = destination(req);

	return !memcmp(dst, req->src, bytes) &&
	       !memchr_inv(req->area, CANARY_BYTE, CANARY) &&
	       !memchr_inv(dst + bytes, CANARY_BYTE, CANARY);
}

/* Starts a copy; false if the device does not take it. */
static bool start(struct worker *worker, struct request *req)
{
	int rc = submit(worker, req);

	req->submitted = !rc;
	if (rc) {
		pr_err("the channel takes no copy: %d\n", rc);
		atomic_inc(&errors);
		return false;
	}
	atomic_inc(&descriptors);
	return true;
}

/* Waits for a copy and verifies it; false if its interrupt did not come. */
static bool finish(struct request *req)
{
	if (!req->submitted)
		return true;
	req->submitted = false;
	if (!wait_for_completion_timeout(&req->done, msecs_to_jiffies(timeout))) {
		req->abandoned = true;
		atomic_inc(&timeouts);
		return false;
	}
	unmap(req);
	if (req->result != DMA_TRANS_NOERROR || !is_right(req)) {
		atomic_inc(&errors);
		return true;
	}
	atomic_inc(&verified);
	atomic64_add(bytes, &bytes_verified);
	return true;
}

static void copy(struct work_struct *work)
{
	struct worker *worker = container_of(work, struct worker, work);
	unsigned int total = worker->copies;
	unsigned int n;

	/* Nothing is begun after a failure; what is under way is awaited. */
	for (n = 0; n < total + worker->depth; n++) {
		struct request *req = &worker->requests[n % worker->depth];

		if (n >= worker->depth && !finish(req))
			total = min(total, n);
		if (n < total && !start(worker, req))
			total = n;
	}
	if (!atomic_dec_and_test(&running))
		return;
	complete_all(&all_done);
	if (!atomic_read(&timeouts))
		module_put(THIS_MODULE);
}

static int alloc_request(struct request *req)
{
	init_completion(&req->done);
	req->src = kmalloc(bytes, GFP_KERNEL);
	req->area = kmalloc(bytes + 2 * CANARY, GFP_KERNEL);
	return req->src && req->area ? 0 : -ENOMEM;
}

static int alloc_worker(struct worker *worker, unsigned int share)
{
	unsigned int i;
	int rc = 0;

	INIT_WORK(&worker->work, copy);
	prandom_seed_state(&worker->random, get_random_u64());
	worker->copies = share;
	worker->depth = clamp(share, 1U, outstanding);
	worker->requests = kcalloc(worker->depth, sizeof(*worker->requests),
				   GFP_KERNEL);
	if (!worker->requests)
		return -ENOMEM;
	for (i = 0; !rc && i < worker->depth; i++)
		rc = alloc_request(&worker->requests[i]);
	return rc;
}

static void free_workers(void)
{
	unsigned int i, j;

	for (i = 0; i < threads; i++) {
		struct worker *worker = &workers[i];

		for (j = 0; worker->requests && j < worker->depth; j++) {
			kfree(worker->requests[j].src);
			kfree(worker->requests[j].area);
		}
		kfree(worker->requests);
	}
	kfree(workers);
}

static int alloc_workers(void)
{
	unsigned int i;
	int rc = 0;

	workers = kcalloc(threads, sizeof(*workers), GFP_KERNEL);
	if (!workers)
		return -ENOMEM;
	/* The first ones take what the division leaves. */
	for (i = 0; !rc && i < threads; i++)
		rc = alloc_worker(&workers[i],
				  copies / threads + (i < copies % threads));
	if (rc)
		free_workers();
	return rc;
}

static int request_channel(void)
{
	dma_cap_mask_t mask;

	dma_cap_zero(mask);
	dma_cap_set(DMA_MEMCPY, mask);
	channel = dma_request_chan_by_mask(&mask);
	if (IS_ERR(channel)) {
		pr_err("there is no channel that copies memory: %ld\n",
		       PTR_ERR(channel));
		return PTR_ERR(channel);
	}
	dma_dev = dmaengine_get_dma_device(channel);
	return 0;
}

static bool parameters_are_right(void)
{
	return copies && copies <= INT_MAX &&
	       bytes && bytes <= BYTES_MAX &&
	       threads && threads <= THREADS_MAX &&
	       outstanding && outstanding <= OUTSTANDING_MAX &&
	       timeout;
}

static int __init dmacopy_init(void)
{
	unsigned int i;
	int rc;

	if (!parameters_are_right()) {
		pr_err("a parameter is 0 or too large\n");
		return -EINVAL;
	}
	rc = request_channel();
	if (rc)
		return rc;
	rc = alloc_workers();
	if (rc)
		goto release;
	queue = alloc_workqueue("dmacopy", WQ_UNBOUND, threads);
	if (!queue) {
		rc = -ENOMEM;
		goto free;
	}
	/* For as long as copies are under way. */
	__module_get(THIS_MODULE);
	pr_info("%s, %u copies of %u bytes\n",
		dma_chan_name(channel), copies, bytes);
	atomic_set(&running, threads);
	for (i = 0; i < threads; i++)
		queue_work(queue, &workers[i].work);
	return 0;

free:
	free_workers();
release:
	dma_release_channel(channel);
	return rc;
}

static void __exit dmacopy_exit(void)
{
	destroy_workqueue(queue);
	free_workers();
	dma_release_channel(channel);
}

module_init(dmacopy_init);
module_exit(dmacopy_exit);

MODULE_DESCRIPTION("Verified memory copies through the dmaengine");
MODULE_AUTHOR("The imsvisor project");
MODULE_LICENSE("Dual MIT/GPL");
