/* The guest shim for C. Written by cbindgen: see guest-shim/c/src/lib.rs. */

#ifndef IMSVISOR_H
#define IMSVISOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMS_ALIGNED(n) __attribute__((aligned(n)))

/* Why a call failed: minus one of these is returned. */
#define IMS_INVALID_ARGUMENT 1 /* invalid argument or reserved bit */
#define IMS_NO_SUCH_DEVICE 2 /* no such device */
#define IMS_NO_SUCH_SLOT 3 /* no such slot */
#define IMS_STALE_HANDLE 4 /* stale handle */
#define IMS_EXISTS 5 /* mapped already in another way */
#define IMS_NO_FREE_SLOT 6 /* no free slot */
#define IMS_NO_FREE_ENTRY 7 /* no free remapping entry */
#define IMS_NO_FREE_VECTOR 8 /* no free vector */
#define IMS_BAD_VECTOR 9 /* vector below 16 */
#define IMS_BAD_TARGET 10 /* no such virtual processor */
#define IMS_BAD_ADDRESS 11 /* bad guest-physical address */
#define IMS_BAD_LAYOUT 12 /* unknown size or version */
#define IMS_CROSSES_PAGE 13 /* crosses a page */
#define IMS_NOT_MAPPED 14 /* not mapped */
#define IMS_NOT_PRIVILEGED 15 /* not 64-bit code at CPL 0 */
#define IMS_HARDWARE_ERROR 16 /* hardware error */
#define IMS_FORBIDDEN 17 /* forbidden by the platform */
#define IMS_UNSUPPORTED 18 /* not supported */
#define IMS_NOT_ENABLED 19 /* the interface is not enabled */
#define IMS_NOT_ISOLATED 20 /* the requester ID is shared */
#define IMS_BAD_PASID 21 /* not the guest's PASID */
#define IMS_UNKNOWN_CALL 1000 /* unknown call */


// Decision: program the store yourself.
#define IMS_NATIVE 0

// Decision: go through the hypercall domain.
#define IMS_HYPERCALL 1

// Decision: leave the store alone, because the platform forbids it. Use MSI-X.
#define IMS_REFUSED_FORBIDDEN 2

// Decision: leave the store alone, because nobody would watch what is written there. Use MSI-X.
#define IMS_REFUSED_VIRTUALISED 3

// State of a guest: it does not run, and has ended as it should, or was never started.
#define IMS_GUEST_STOPPED 0

// State of a guest: it is being made.
#define IMS_GUEST_STARTING 1

// State of a guest: it runs.
#define IMS_GUEST_RUNNING 2

// State of a guest: a manager has asked the guest to stop, or its resources are being released.
#define IMS_GUEST_STOPPING 3

// State of a guest: it does not run, because it ended otherwise than with exit code 0, or could not be made.
#define IMS_GUEST_FAILED 4

// Store: slots of 16 bytes in device memory.
#define IMS_STORE_ARRAY 1

// Store: beside the work queue, in system memory.
#define IMS_STORE_QUEUE 2

// Fault: the remapping unit refused a message of the slot; `reason` is its code (VT-d 5.1.4.1).
#define IMS_FAULT_REMAPPING 1

// Fault: the slot fired faster than its limit and was masked. Unmasking lets it fire again.
#define IMS_FAULT_STORM 2

// Fault: the hypervisor could not carry out a write to the slot and masked it; `reason` is the status. Unmasking tries again.
#define IMS_FAULT_REFUSED 3

// The fault's slot is in the MSI-X table.
#define IMS_FAULT_STORE_MSIX 0

// The fault's slot is in the store in device memory.
#define IMS_FAULT_STORE_ARRAY 1

// The fault's slot is in the store in the guest's memory.
#define IMS_FAULT_STORE_QUEUE 2

// A hypercall domain that was found.
typedef struct ImsInterface {
  // The CPUID leaf at which it was found.
  uint32_t base;
  // The number of call 0.
  uint32_t call_base;
  // What it offers: bits of `hcall_abi::cpuid::Features`.
  uint32_t features;
  // Most slots that a device can have.
  uint32_t slots_per_device;
  // Most items in one batch.
  uint32_t batch;
  // Number of groups.
  uint32_t groups;
  // Its minor version.
  uint16_t minor;
} ImsInterface;

// The facts about the machine for the bare-metal test. An unknown fact is zero.
typedef struct ImsFacts {
  // The SMBIOS structure of type 0, or null.
  const uint8_t *smbios_bios;
  // Its bytes.
  size_t smbios_bios_length;
  // The manufacturer of SMBIOS type 1: text in UTF-8, or null.
  const uint8_t *system_vendor;
  // Its bytes, without a zero at its end.
  size_t system_vendor_length;
  // The product name of SMBIOS type 1: text in UTF-8, or null.
  const uint8_t *system_product;
  // Its bytes, without a zero at its end.
  size_t system_product_length;
  // CPUID leaf 1, ECX bit 31.
  bool cpuid_hypervisor;
  // VT-d CAP.CM of any unit.
  bool caching_mode;
  // AMD's NpCache of any unit.
  bool np_cache;
  // There is a virtio-iommu.
  bool virtio_iommu;
} ImsFacts;

// Room for a device's interrupts. Its content is the library's own; it must not be moved while it is open.
typedef struct IMS_ALIGNED(16) ImsDomain {
  uint64_t opaque[16];
} ImsDomain;

// Room for what a driver knows of a slot that it programs itself. Zeros to begin with.
typedef struct IMS_ALIGNED(8) ImsSlotState {
  uint64_t opaque[6];
} ImsSlotState;

// Where an interrupt shall go.
typedef struct ImsRequest {
  // x2APIC ID of the processor.
  uint32_t apic_id;
  // Vector, 16 to 255.
  uint8_t vector;
  // Whether the slot is unmasked at the end.
  bool unmask;
  // The driver's own name for it: comes back in queries and fault records.
  uint64_t cookie;
} ImsRequest;

// What is known of a guest.
typedef struct ImsGuestInfo {
  // How often it was started.
  uint64_t starts;
  // Its virtual processors.
  uint32_t vcpus;
  // MiB of memory.
  uint32_t memory_mib;
  // Its weight for the scheduler.
  uint32_t weight;
  // How many guests there are.
  uint16_t guests;
  // `IMS_GUEST_…`.
  uint16_t state;
  // Whether it is the guest that asks.
  bool is_own;
  // Its name, with a zero behind it.
  char name[17];
} ImsGuestInfo;

// A guest's figures. All but the first are of the life that it has now, or had last.
typedef struct ImsGuestCounters {
  // Ticks of the TSC that making and releasing it took, in all its lives.
  uint64_t building;
  // Ticks of processors that were charged to it.
  uint64_t charged;
  // Ticks of these that processors worked for it beside its turns.
  uint64_t interrupting;
  // VM exits.
  uint64_t exits;
  // Devices' interrupts that the hypervisor has given to it.
  uint64_t interrupts;
} ImsGuestCounters;

// What is known of a device.
typedef struct ImsDeviceInfo {
  // Slots in its store.
  uint32_t slots;
  // Slots that can still be taken.
  uint32_t free;
  // The BAR that holds the store.
  uint32_t bar;
  // Offset of the store in that BAR, in bytes.
  uint32_t offset;
  // The first PASID that the guest owns for the device; negative if it owns none.
  int32_t first_pasid;
  // The last one; negative if it owns none.
  int32_t last_pasid;
  // Where the device keeps its messages: `IMS_STORE_…`.
  uint16_t kind;
  // The device: its requester ID on the guest's own bus.
  uint16_t device;
} ImsDeviceInfo;

// A fault of one of the guest's slots.
typedef struct ImsFault {
  // The driver's own name for the interrupt; 0 of a slot that no call mapped.
  uint64_t cookie;
  // How many faults were lost before this one, because nobody had read the older ones.
  uint32_t lost;
  // The device.
  uint16_t device;
  // The slot's index.
  uint16_t slot;
  // What went wrong: `IMS_FAULT_…`; 0 for a fault that this library does not know, whose other fields are 0 as well.
  uint8_t kind;
  // Depends on the kind; else 0.
  uint8_t reason;
  // The store that the slot is in: `IMS_FAULT_STORE_…`.
  uint8_t store;
  // Whether the message came from another function than the slot's.
  bool foreign;
} ImsFault;

// What is known of a slot.
typedef struct ImsSlotInfo {
  // The driver's own name for the interrupt; 0 unless the slot is mapped.
  uint64_t cookie;
  // The message's address, as it lies in the store; 0 unless the slot is mapped.
  uint64_t address;
  // The message's data; 0 unless the slot is mapped.
  uint32_t data;
  // x2APIC ID of the processor to which its interrupts go; 0 unless the slot is mapped.
  uint32_t apic_id;
  // The PASID that it is for; negative for none.
  int32_t pasid;
  // The group that it was taken with.
  uint16_t group;
  // The vector on which its interrupts come; 0 unless the slot is mapped.
  uint8_t vector;
  // Whether it is mapped.
  bool mapped;
  // Whether it is masked.
  bool masked;
  // Whether a message waits for it to be unmasked.
  bool pending;
  // Whether it was masked because it fired faster than its limit.
  bool limited;
} ImsSlotInfo;

// Room for the interrupts of a queue store. Its content is the library's own; it must not be moved while it is open.
typedef struct IMS_ALIGNED(16) ImsQueue {
  uint64_t opaque[16];
} ImsQueue;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Looks for a hypercall domain. 0 if there is one, which is written to `interface`; `-IMS_UNSUPPORTED` if there is none.
//
// # Safety
// `interface` points to room for one.
int32_t ims_discover(struct ImsInterface *interface);

// Whether CPUID says that there is a hypervisor.
bool ims_cpuid_hypervisor(void);

// The bare-metal test: whether nothing hints at a virtual machine.
//
// # Safety
// `facts` and what it points to can be read.
bool ims_on_bare_metal(const struct ImsFacts *facts);

// Whether an ACPI table of `length` bytes says that stores must not be used natively: what [`ims_decide`] takes as `forbidden`. Only the
// table with the signature IMSP can say so.
//
// # Safety
// `table` is null, or so many bytes can be read there.
bool ims_table_forbids(const uint8_t *table,
                       size_t length);

// Which way is open: `IMS_NATIVE`, `IMS_HYPERCALL` or `IMS_REFUSED_…`. `forbidden` is what the platform's tables say; `interface` is
// null if none was found.
//
// # Safety
// `interface` is null or can be read.
int32_t ims_decide(bool on_bare_metal,
                   bool forbidden,
                   const struct ImsInterface *interface);

// Tells the hypervisor that the guest knows the interface: its devices show their stores from then on. To be called before
// devices are looked at.
//
// # Safety
// The guest runs at CPL 0 in 64-bit mode, and `interface` was found by [`ims_discover`].
int32_t ims_enable(const struct ImsInterface *interface);

// Does nothing: the floor of every measurement.
//
// # Safety
// As for [`ims_enable`].
int32_t ims_nop(const struct ImsInterface *interface);

// The guest's `n`-th device with a store: its requester ID on the guest's own bus.
//
// # Safety
// As for [`ims_enable`].
int32_t ims_device(const struct ImsInterface *interface, uint32_t n);

// Opens a domain that goes by hypercall, for the device with this ID. `page` is a page of ordinary memory at the physical address
// `page_physical`, which the library keeps for itself.
//
// # Safety
// As for [`ims_enable`]; `domain` points to room for one, and the page stays the library's as long as the domain is used.
int32_t ims_open_hypercall(struct ImsDomain *domain,
                           const struct ImsInterface *interface,
                           uint16_t device,
                           void *page,
                           uint64_t page_physical);

// Opens a domain that programs the store itself: `slots` slots of 16 bytes at `store`, mapped uncached. `states` has an element for
// each slot that may be used, from slot 0.
//
// # Safety
// `domain` points to room for one; store and states stay the library's as long as the domain is used.
int32_t ims_open_native(struct ImsDomain *domain,
                        void *store,
                        uint32_t slots,
                        struct ImsSlotState *states,
                        size_t count);

// Takes a free slot, in a group; it stays masked. Its handle is written to `handle`.
//
// # Safety
// `domain` is open and used by one processor at a time; `handle` points to room for one.
int32_t ims_alloc(struct ImsDomain *domain, uint32_t group, uint32_t *handle);

// The slot's index in the store: what a device is told to raise this interrupt.
uint16_t ims_index(uint32_t handle);

// Sends a slot's interrupts to a processor.
//
// # Safety
// `domain` is open and used by one processor at a time; `request` can be read.
int32_t ims_map(struct ImsDomain *domain, uint32_t handle, const struct ImsRequest *request);

// Masks a slot and takes its mapping away; the slot stays taken.
//
// # Safety
// `domain` is open and used by one processor at a time.
int32_t ims_unmap(struct ImsDomain *domain, uint32_t handle);

// Masks a slot: after this no message of it is sent. One that comes meanwhile waits.
//
// # Safety
// `domain` is open and used by one processor at a time.
int32_t ims_mask(struct ImsDomain *domain, uint32_t handle);

// Unmasks a slot. A message that came meanwhile is sent.
//
// # Safety
// `domain` is open and used by one processor at a time.
int32_t ims_unmask(struct ImsDomain *domain, uint32_t handle);

// Sends a slot's interrupts elsewhere, losing none.
//
// # Safety
// `domain` is open and used by one processor at a time.
int32_t ims_set_affinity(struct ImsDomain *domain, uint32_t handle, uint32_t apic_id, uint8_t vector);

// From now on the device takes the slot only for work that is submitted with this PASID; a negative one stands for any.
//
// # Safety
// `domain` is open and used by one processor at a time.
int32_t ims_set_pasid(struct ImsDomain *domain, uint32_t handle, int32_t pasid);

// Gives a slot back: masked and unmapped.
//
// # Safety
// `domain` is open and used by one processor at a time.
int32_t ims_free(struct ImsDomain *domain, uint32_t handle);

// Gives all slots of a group back. Returns their number.
//
// # Safety
// `domain` is open and used by one processor at a time.
int32_t ims_free_group(struct ImsDomain *domain, uint32_t group);

// Has the interrupt `vector` of the virtual processor with x2APIC ID `apic_id` ask this guest to stop: it ends by itself soon after that. With
// vector 0 no interrupt does.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable).
int32_t ims_set_stop_request(const struct ImsInterface *interface,
                             uint32_t apic_id,
                             uint8_t vector);

// Writes what is known of a guest, counted from 0, to `info`. `-IMS_INVALID_ARGUMENT` beyond the last one; `-IMS_UNKNOWN_CALL` for a guest
// that does not manage. `page` is a page of ordinary memory at the physical address `page_physical`.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable); nobody else uses the page during the call, and `info` points to room for one.
int32_t ims_query_guest(const struct ImsInterface *interface,
                        uint16_t guest,
                        void *page,
                        uint64_t page_physical,
                        struct ImsGuestInfo *info);

// Starts a guest. One that runs goes on.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable).
int32_t ims_start_guest(const struct ImsInterface *interface, uint16_t guest);

// Asks a guest to stop, and ends it after so many milliseconds; at once if they are 0.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable).
int32_t ims_stop_guest(const struct ImsInterface *interface, uint16_t guest, uint64_t milliseconds);

// Stops a guest as [`ims_stop_guest`] does, and starts it again.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable).
int32_t ims_restart_guest(const struct ImsInterface *interface, uint16_t guest, uint64_t milliseconds);

// Writes a guest's figures to `counters`. `page` is as for [`ims_query_guest`].
//
// # Safety
// As for [`ims_enable`](crate::ims_enable); nobody else uses the page during the call, and `counters` points to room for them.
int32_t ims_guest_counters(const struct ImsInterface *interface,
                           uint16_t guest,
                           void *page,
                           uint64_t page_physical,
                           struct ImsGuestCounters *counters);

// Takes free slots, in a group: as many as there are, from `min` to `max`. Their handles are written to `handles`, and their number is
// returned. `-IMS_NO_FREE_SLOT` with fewer than `min`; nothing is taken then, and `handles` holds nothing of use.
//
// # Safety
// `domain` is open and used by one processor at a time; `handles` points to room for `max`.
int32_t ims_alloc_many(struct ImsDomain *domain,
                       uint32_t group,
                       size_t min,
                       size_t max,
                       uint32_t *handles);

// Gives `count` slots back: masked and unmapped. Returns how many of them were given back; the others are lost to the driver, because
// their handles are stale or were never handles.
//
// # Safety
// `domain` is open and used by one processor at a time; `handles` points to `count` of them.
int32_t ims_free_many(struct ImsDomain *domain,
                      const uint32_t *handles,
                      size_t count);

// Sends the interrupts of `count` slots to processors: slot `handles[n]` as `requests[n]` says. What became of each is written to
// `results[n]`: 0, or minus a status. Returns how many were mapped, or minus the status of a batch that was refused as a whole; its
// results and those behind it are that status then, and those before it stand.
//
// # Safety
// `domain` is open and used by one processor at a time; `handles` and `requests` point to `count` of them, and `results` to room for as
// many.
int32_t ims_map_many(struct ImsDomain *domain,
                     const uint32_t *handles,
                     const struct ImsRequest *requests,
                     size_t count,
                     int32_t *results);

// This processor ends interrupts by 4 bytes at the physical address `word_physical` from now on ([`ims_pv_eoi_end`]): they are 0, lie at
// a multiple of 4 and are used by this processor alone. `-IMS_UNSUPPORTED` where EOI is no VM exit.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable); the bytes stay the hypervisor's until [`ims_clear_pv_eoi`].
int32_t ims_set_pv_eoi(const struct ImsInterface *interface,
                       uint64_t word_physical);

// This processor ends its interrupts by writing EOI again. The bytes that it had named are free, and an interrupt in service ends by EOI.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable).
int32_t ims_clear_pv_eoi(const struct ImsInterface *interface);

// Ends the interrupt in service by this processor's bytes, if the hypervisor has said that this is enough. Returns whether it has ended;
// if not, the caller writes EOI.
//
// # Safety
// `word` points to the bytes that this processor named by [`ims_set_pv_eoi`], or to 4 bytes that are 0.
bool ims_pv_eoi_end(uint32_t *word);

// Writes the properties of a device's store to `info`. `page` is a page of ordinary memory at the physical address `page_physical`.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable); nobody else uses the page during the call, and `info` points to room for one.
int32_t ims_query_device(const struct ImsInterface *interface,
                         uint16_t device,
                         void *page,
                         uint64_t page_physical,
                         struct ImsDeviceInfo *info);

// Moves the oldest faults of the guest's slots, of all its devices, to `faults`, which has room for `count`. Returns their number:
// at most 128 by one call. `page` is a page of ordinary memory at the physical address `page_physical`.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable); nobody else uses the page during the call, and `faults` points to room for `count`.
int32_t ims_read_faults(const struct ImsInterface *interface,
                        void *page,
                        uint64_t page_physical,
                        struct ImsFault *faults,
                        size_t count);

// Writes what is known of a slot to `info`.
//
// # Safety
// `domain` is open and used by one processor at a time; `info` points to room for one.
int32_t ims_query_slot(struct ImsDomain *domain, uint32_t handle, struct ImsSlotInfo *info);

// Opens the store in the guest's own memory that belongs to a device: `slots` slots of 16 bytes at `memory`, all of which are masked
// then. Nobody watches what is written there, so only a guest that has the whole function can have one: `-IMS_NOT_ISOLATED`. `page` is a
// page of ordinary memory at the physical address `page_physical`, which the library keeps for itself. How the device is told where the
// memory is, and that it is to look at a slot again, is the driver's business.
//
// # Safety
// As for [`ims_enable`](crate::ims_enable); `queue` points to room for one; memory and page stay the library's as long as it is used.
int32_t ims_open_queue(struct ImsQueue *queue,
                       const struct ImsInterface *interface,
                       uint16_t device,
                       void *page,
                       uint64_t page_physical,
                       void *memory,
                       uint32_t slots);

// Takes a free slot of a queue store, in a group; it stays masked. Its handle is written to `handle`.
//
// # Safety
// `queue` is open and used by one processor at a time; `handle` points to room for one.
int32_t ims_queue_alloc(struct ImsQueue *queue, uint32_t group, uint32_t *handle);

// Sends a slot's interrupts to a processor, and writes its message to the memory.
//
// # Safety
// `queue` is open and used by one processor at a time; `request` can be read.
int32_t ims_queue_map(struct ImsQueue *queue, uint32_t handle, const struct ImsRequest *request);

// Masks a slot. A message that the device is sending already may still come.
//
// # Safety
// `queue` is open and used by one processor at a time.
int32_t ims_queue_mask(struct ImsQueue *queue, uint32_t handle);

// Unmasks a slot. Returns 1 if an interrupt came meanwhile: then the driver tells the device to look at the slot again.
//
// # Safety
// `queue` is open and used by one processor at a time.
int32_t ims_queue_unmask(struct ImsQueue *queue, uint32_t handle);

// Sends a slot's interrupts elsewhere, losing none. The memory stays as it is.
//
// # Safety
// `queue` is open and used by one processor at a time.
int32_t ims_queue_set_affinity(struct ImsQueue *queue, uint32_t handle, uint32_t apic_id, uint8_t vector);

// Gives a slot back. Its message leads nowhere from then on.
//
// # Safety
// `queue` is open and used by one processor at a time.
int32_t ims_queue_free(struct ImsQueue *queue, uint32_t handle);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* IMSVISOR_H */
