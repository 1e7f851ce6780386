/*
 * The interface between imsvisor and its guests, as it is on the wire: for guests that do not use the shim (imsvisor.h). Written by
 * hcall-abi/tests/c_header.rs. What the numbers mean, and in which order calls are made, is in hcall-abi's documentation.
 *
 * A call is VMCALL from 64-bit code at CPL 0: RAX = call base + IMSVISOR_CALL_…, arguments in RBX, RCX, RDX and RSI; those that the call does
 * not use are 0. RAX comes back as the result, or as minus IMSVISOR_STATUS_…. All structures are little-endian; reserved fields are 0.
 */

#ifndef IMSVISOR_ABI_H
#define IMSVISOR_ABI_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#endif

/* The version that this header has. */
#define IMSVISOR_VERSION_MAJOR 1u
#define IMSVISOR_VERSION_MINOR 4u

/* CPUID: where a scan for the signature begins, ends and how it steps. */
#define IMSVISOR_CPUID_FIRST_BASE 0x40000000u
#define IMSVISOR_CPUID_LAST_BASE 0x4000ff00u
#define IMSVISOR_CPUID_BASE_STEP 256u
#define IMSVISOR_CPUID_SIGNATURE_EBX 0x76736d69u
#define IMSVISOR_CPUID_SIGNATURE_ECX 0x726f7369u
#define IMSVISOR_CPUID_SIGNATURE_EDX 0x534d492du

/* Leaf base + 0: highest leaf and signature. */
#define IMSVISOR_CPUID_LEAF_SIGNATURE 0u

/* Leaf base + 1: EAX = major 31:16, minor 15:0; EBX = number of call 0. */
#define IMSVISOR_CPUID_LEAF_VERSION 1u

/* Leaf base + 2: EAX = Features. */
#define IMSVISOR_CPUID_LEAF_FEATURES 2u

/* Leaf base + 3: EAX = most slots of a device, EBX = most items in a batch, ECX = number of groups. */
#define IMSVISOR_CPUID_LEAF_LIMITS 3u

/* Array stores in device memory. */
#define IMSVISOR_FEATURE_ARRAY_STORE 0x1u

/* Queue stores in system memory. */
#define IMSVISOR_FEATURE_QUEUE_STORE 0x2u

/* Interrupts can be posted to a running virtual processor without a VM exit. */
#define IMSVISOR_FEATURE_POSTED 0x4u

/* IMSVISOR_CALL_MAP takes more than one item. */
#define IMSVISOR_FEATURE_BATCH 0x8u

/* IMSVISOR_CALL_ALLOC_MANY and IMSVISOR_CALL_FREE_MANY work: fewer may be granted than asked for. */
#define IMSVISOR_FEATURE_FEWER_GRANT 0x10u

/* Slots can be freed by group: IMSVISOR_CALL_FREE_GROUP. */
#define IMSVISOR_FEATURE_GROUP 0x20u

/* Auxiliary data (a PASID) can be set: IMSVISOR_CALL_SET_AUX. */
#define IMSVISOR_FEATURE_AUX_PASID 0x40u

/* IMSVISOR_CALL_SET_AFFINITY works. */
#define IMSVISOR_FEATURE_RETARGET 0x80u

/* A guest can read the faults of its own slots: IMSVISOR_CALL_READ_FAULTS. */
#define IMSVISOR_FEATURE_FAULT_LOG 0x100u

/* IMSVISOR_CALL_ENABLE is there, and needed: devices show their stores after it only. */
#define IMSVISOR_FEATURE_ENABLE 0x200u

/* IMSVISOR_CALL_QUERY_SLOT works. */
#define IMSVISOR_FEATURE_QUERY_SLOT 0x400u

/* A slot that fires faster than its limit is masked, and a fault record says so. */
#define IMSVISOR_FEATURE_STORM_LIMIT 0x800u

/* An interrupt can be ended without an exit: IMSVISOR_CALL_SET_PV_EOI. */
#define IMSVISOR_FEATURE_PV_EOI 0x1000u

/* The guest can be asked to stop: IMSVISOR_CALL_SET_STOP_REQUEST. */
#define IMSVISOR_FEATURE_STOP_REQUEST 0x2000u

/* The guest manages all guests: the other calls of LifeCall work. */
#define IMSVISOR_FEATURE_MANAGE 0x4000u

/* The platform forbids this guest to use an interrupt message store without the hypercall domain. */
#define IMSVISOR_FEATURE_IMS_FORBIDDEN 0x80000000u

/* The ACPI table: its signature as a dword, the offset of its flags, its length. */
#define IMSVISOR_ACPI_SIGNATURE 0x50534d49u
#define IMSVISOR_ACPI_FLAGS 36u
#define IMSVISOR_ACPI_LENGTH 40u

/* Flag: stores must not be used but through this interface. */
#define IMSVISOR_ACPI_FLAG_IMS_FORBIDDEN 1u

/* Does nothing and returns 0: the floor of every measurement. */
#define IMSVISOR_CALL_NOP 0u

/* RBX = number n, from 0. Returns the ID of the guest's n-th device with a store, IMSVISOR_STATUS_NO_SUCH_DEVICE when there are no
   more. */
#define IMSVISOR_CALL_DISCOVER 1u

/* RBX = device, RCX = guest-physical address of a struct imsvisor_device_info, in one page, whose size and version are set. Fills it
   in and returns 0. */
#define IMSVISOR_CALL_QUERY_DEVICE 2u

/* RBX = device, RCX = group, below the number of groups. Takes a free slot, which stays masked, and returns its handle.
   IMSVISOR_STATUS_NO_FREE_SLOT when all are taken. */
#define IMSVISOR_CALL_ALLOC 3u

/* RBX = device, RCX = handle. Masks and unmaps the slot and gives it back; the handle is stale from then on. Returns 0. */
#define IMSVISOR_CALL_FREE 4u

/* RBX = device, RCX = guest-physical address of the items, RDX = their number (1 up to the batch limit), RSI = ItemLayout. Items lie
   in one page, 16-byte aligned, and are read once. Each struct imsvisor_map_request is answered in place by a struct
   imsvisor_map_reply. Returns the number of items that succeeded. The entry of every item that succeeded is in the remapping table,
   flushed, and in the device's store. */
#define IMSVISOR_CALL_MAP 5u

/* RBX = device, RCX = handle. Masks the slot and takes its entry away; the slot stays allocated. A slot that is not mapped is left as
   it is. Returns 0. */
#define IMSVISOR_CALL_UNMAP 6u

/* RBX = device, RCX = handle. Returns 0 when the device sends no message of the slot any more. IMSVISOR_STATUS_NOT_MAPPED for a slot
   without a target. The mask is the device's: it does not stop a device that is made to write the slot's message by DMA. */
#define IMSVISOR_CALL_MASK 7u

/* RBX = device, RCX = handle. A message that came while the slot was masked is sent. IMSVISOR_STATUS_NOT_MAPPED for a slot without a
   target; IMSVISOR_STATUS_INVALID_ARGUMENT for one whose message the guest has overwritten in the store, until it is mapped again.
   Returns 0. */
#define IMSVISOR_CALL_UNMASK 8u

/* RBX = device, RCX = handle, RDX = target. Sends the slot's interrupts elsewhere; the pair in the store stays as it is and no
   interrupt is lost. IMSVISOR_STATUS_NOT_MAPPED for a slot without a target. Returns 0. */
#define IMSVISOR_CALL_SET_AFFINITY 9u

/* RBX = the version that the guest speaks (major 31:16, minor 15:0). Has the guest's devices show that they have interrupt message
   stores; until then they show none, and every other call but Nop is IMSVISOR_STATUS_NOT_ENABLED. Returns the minor version that both
   speak. IMSVISOR_STATUS_UNSUPPORTED for another major version. */
#define IMSVISOR_CALL_ENABLE 10u

/* RBX = device, RCX = guest-physical address of room for max handles of 4 bytes each, in one page, aligned to 4; RDX = min 31:0 and
   max 63:32 (1 ≤ min ≤ max ≤ IMSVISOR_HANDLES_MAX), RSI = group. Takes as many free slots as there are, at most max, and returns their
   number; with fewer than min, IMSVISOR_STATUS_NO_FREE_SLOT and none is taken. */
#define IMSVISOR_CALL_ALLOC_MANY 11u

/* RBX = device, RCX = guest-physical address of handles as AllocMany writes them, RDX = their number (1 to IMSVISOR_HANDLES_MAX).
   Frees each, by one flush for many, and puts its result in its place: 0, or minus a Status. Returns the number of those that were
   freed. */
#define IMSVISOR_CALL_FREE_MANY 12u

/* RBX = device, RCX = group. Frees slots that were allocated with this group, at most IMSVISOR_HANDLES_MAX by one call. Returns their
   number: with IMSVISOR_HANDLES_MAX there may be more of them. */
#define IMSVISOR_CALL_FREE_GROUP 13u

/* RBX = device, RCX = handle, RDX = PASID 19:0 and bit 31 set, or 0 for none. From then on the device takes the slot only for work
   that was submitted with this PASID. IMSVISOR_STATUS_BAD_PASID when the guest does not own it. Returns 0. */
#define IMSVISOR_CALL_SET_AUX 14u

/* RBX = device, RCX = handle, RDX = guest-physical address of a struct imsvisor_slot_info, in one page, whose size and version are
   set. Fills it in and returns 0. */
#define IMSVISOR_CALL_QUERY_SLOT 15u

/* RBX = guest-physical address of room for RCX (1 to IMSVISOR_FAULTS_MAX) struct imsvisor_fault_records, in one page, aligned to 32.
   Moves the oldest faults of the guest's slots there and returns their number. */
#define IMSVISOR_CALL_READ_FAULTS 16u

/* RBX = device, RCX = number of slots (1 to IMSVISOR_QUEUE_SLOTS_MAX). Opens a store in the guest's own memory beside the device's: a
   queue store, whose slots the guest writes and the device reads. Nobody watches what is written there, so the requester ID has to be
   the guest's alone (IMSVISOR_STATUS_NOT_ISOLATED): then an entry that it names can only be its own. Its slots are taken, mapped and
   freed by the same calls, with StoreId::queue in RBX; what to write for a slot that is mapped is told by QuerySlot, and is the real
   message. Masks and PASIDs are the guest's business, in its memory: Mask, Unmask and SetAux are IMSVISOR_STATUS_UNSUPPORTED. A slot
   that is unmapped or freed sends nothing any more, whatever its memory says. It is IMSVISOR_STATUS_EXISTS when it is open already.
   Returns 0. */
#define IMSVISOR_CALL_OPEN_QUEUE 17u

/* RBX = guest-physical address of 4 bytes that are 0, aligned to 4, with IMSVISOR_PV_EOI_ENABLE; or 0 to take them away. It is about
   the virtual processor that calls. From then on an interrupt that is delivered while no other one waits comes with
   IMSVISOR_PV_EOI_PENDING set there. The handler that finds the bit and clears it, by one instruction, has ended the interrupt, and
   does not write EOI, which is an exit; otherwise it writes EOI as ever. Bytes that were named before are the guest's own again when
   the call returns; an interrupt in service that has not ended by then ends by EOI. INIT takes the bytes away, and leaves what they
   hold. IMSVISOR_STATUS_UNSUPPORTED where the processor keeps the local APIC, because EOI is no exit there. Returns 0. */
#define IMSVISOR_CALL_SET_PV_EOI 18u

/* RBX = target, as Target::to_register has it, or 0 for none. From then on the guest gets this interrupt when it is asked to stop, and
   should end by itself soon. If it has been asked already, the interrupt comes at once. IMSVISOR_STATUS_BAD_TARGET for a virtual
   processor that the guest does not have, IMSVISOR_STATUS_BAD_VECTOR for a vector below 16. Returns 0. */
#define IMSVISOR_CALL_SET_STOP_REQUEST 19u

/* RBX = guest, RCX = guest-physical address of a struct imsvisor_guest_info, in one page, whose size and version are set. Fills it in
   and returns 0. A guest that the hypervisor has refused is GuestState::Failed, with no more than that and the number of guests.
   IMSVISOR_STATUS_INVALID_ARGUMENT if another field of the structure is not 0. */
#define IMSVISOR_CALL_QUERY_GUEST 20u

/* RBX = guest. Makes the guest from its module and starts it. One that is being stopped starts after that. IMSVISOR_STATUS_UNSUPPORTED
   for a guest that the hypervisor has refused. Returns 0 without waiting. */
#define IMSVISOR_CALL_START_GUEST 21u

/* RBX = guest, RCX = milliseconds, at most IMSVISOR_GRACE_MAX. Asks the guest to stop (IMSVISOR_CALL_SET_STOP_REQUEST), and ends it if
   it runs so many milliseconds later; at once if they are 0. IMSVISOR_STATUS_UNSUPPORTED for a guest that the hypervisor has refused.
   Returns 0 without waiting. */
#define IMSVISOR_CALL_STOP_GUEST 22u

/* RBX = guest, RCX = milliseconds. As StopGuest, and then StartGuest, with their errors. Returns 0 without waiting. */
#define IMSVISOR_CALL_RESTART_GUEST 23u

/* RBX = guest, RCX = guest-physical address of struct imsvisor_guest_counters, in one page, whose size and version are set. Fills them
   in and returns 0; all are 0 for a guest that the hypervisor has refused. IMSVISOR_STATUS_INVALID_ARGUMENT if another field of the
   structure is not 0. */
#define IMSVISOR_CALL_READ_COUNTERS 24u

/* StopGuest and RestartGuest: the most milliseconds that a guest gets to stop. */
#define IMSVISOR_GRACE_MAX 0x927c0u

/* The most slots of a queue store; handles and fault records of one call. */
#define IMSVISOR_QUEUE_SLOTS_MAX 0x1000u
#define IMSVISOR_HANDLES_MAX 1024u
#define IMSVISOR_FAULTS_MAX 128u

/* SetPvEoi: the bit beside the address; the bit in the 4 bytes. */
#define IMSVISOR_PV_EOI_ENABLE 1u
#define IMSVISOR_PV_EOI_PENDING 1u

/* An argument or field is out of its range, or a reserved bit or field is not zero. */
#define IMSVISOR_STATUS_INVALID_ARGUMENT 1u

/* The guest has no such device with an interrupt message store. */
#define IMSVISOR_STATUS_NO_SUCH_DEVICE 2u

/* The device's store has no such slot. */
#define IMSVISOR_STATUS_NO_SUCH_SLOT 3u

/* The slot was freed since the handle was given out. */
#define IMSVISOR_STATUS_STALE_HANDLE 4u

/* The slot is mapped already, in another way than asked for; or the queue store is open already. */
#define IMSVISOR_STATUS_EXISTS 5u

/* All slots of the device are taken. */
#define IMSVISOR_STATUS_NO_FREE_SLOT 6u

/* The remapping unit has no free table entry. */
#define IMSVISOR_STATUS_NO_FREE_ENTRY 7u

/* The processor has no free interrupt vector. */
#define IMSVISOR_STATUS_NO_FREE_VECTOR 8u

/* A guest's interrupt vector is 16 to 255. */
#define IMSVISOR_STATUS_BAD_VECTOR 9u

/* The guest has no virtual processor with this x2APIC ID. */
#define IMSVISOR_STATUS_BAD_TARGET 10u

/* A guest-physical address outside the guest's memory, or not aligned. */
#define IMSVISOR_STATUS_BAD_ADDRESS 11u

/* A structure or item has a size or version that this hypervisor does not know. */
#define IMSVISOR_STATUS_BAD_LAYOUT 12u

/* A structure or batch crosses a page. */
#define IMSVISOR_STATUS_CROSSES_PAGE 13u

/* The slot is not mapped. */
#define IMSVISOR_STATUS_NOT_MAPPED 14u

/* The calling code is not 64-bit code at CPL 0. */
#define IMSVISOR_STATUS_NOT_PRIVILEGED 15u

/* The hardware did not do what it was told, in the time it had. */
#define IMSVISOR_STATUS_HARDWARE_ERROR 16u

/* The platform forbids this to this guest. */
#define IMSVISOR_STATUS_FORBIDDEN 17u

/* The device or platform cannot do this. */
#define IMSVISOR_STATUS_UNSUPPORTED 18u

/* The guest has not made IMSVISOR_CALL_ENABLE. */
#define IMSVISOR_STATUS_NOT_ENABLED 19u

/* Others share the device's requester ID, so the guest cannot have a store that nobody watches. */
#define IMSVISOR_STATUS_NOT_ISOLATED 20u

/* The guest does not own this PASID. */
#define IMSVISOR_STATUS_BAD_PASID 21u

/* No such call. The code is KVM's, so that a call that reaches another hypervisor looks the same. */
#define IMSVISOR_STATUS_UNKNOWN_CALL 1000u

/* A device's queue store: this bit with the device ID. */
#define IMSVISOR_STORE_QUEUE 0x10000u

/* There is a PASID, in bits 19:0; 0 stands for none. */
#define IMSVISOR_PASID_VALID 0x80000000u

/* A target: vector 7:0, and the x2APIC ID of the processor from this bit on. */
#define IMSVISOR_TARGET_APIC_ID_SHIFT 32u

/* A handle: the slot's index in the bits below this one, the generation from here on. */
#define IMSVISOR_HANDLE_GENERATION_SHIFT 16u

/* Map: RSI. */
#define IMSVISOR_ITEM_LAYOUT 0x10010u

/* A map request's flag: the slot is unmasked when it is mapped. */
#define IMSVISOR_MAP_FLAG_UNMASK 1u

/* The version that the guest puts into a structure, with its size. */
#define IMSVISOR_LAYOUT_DEVICE_INFO 1u
#define IMSVISOR_LAYOUT_SLOT_INFO 1u
#define IMSVISOR_LAYOUT_GUEST_INFO 1u
#define IMSVISOR_LAYOUT_GUEST_COUNTERS 1u

/* Where a device keeps its messages: device memory, system memory. */
#define IMSVISOR_STORE_KIND_ARRAY 1u
#define IMSVISOR_STORE_KIND_QUEUE 2u

/* What a slot is in: it has no target, it has one. */
#define IMSVISOR_SLOT_STATE_ALLOCATED 1u
#define IMSVISOR_SLOT_STATE_MAPPED 2u

/* It does not run, and has ended as it should, or was never started. */
#define IMSVISOR_GUEST_STATE_STOPPED 0u

/* It is being made, or waits for memory that others have. */
#define IMSVISOR_GUEST_STATE_STARTING 1u

/* It runs. */
#define IMSVISOR_GUEST_STATE_RUNNING 2u

/* A manager has asked the guest to stop, or the guest has ended and its resources are being released. */
#define IMSVISOR_GUEST_STATE_STOPPING 3u

/* It does not run, because it ended otherwise than with exit code 0, or could not be made. */
#define IMSVISOR_GUEST_STATE_FAILED 4u

/* A guest's flag: it is the guest that asks. */
#define IMSVISOR_GUEST_FLAG_OWN 1u

/* A slot's flags: no message is sent; a message waits; it was masked because it fired faster than its limit. */
#define IMSVISOR_SLOT_FLAG_MASKED 1u
#define IMSVISOR_SLOT_FLAG_PENDING 2u
#define IMSVISOR_SLOT_FLAG_LIMITED 4u

/* The control dword of a slot in a store: masked; a message waits; bits 31:12 have a PASID; where it begins. */
#define IMSVISOR_SLOT_CONTROL_MASK 1u
#define IMSVISOR_SLOT_CONTROL_PENDING 2u
#define IMSVISOR_SLOT_CONTROL_PASID_ENABLE 8u
#define IMSVISOR_SLOT_CONTROL_PASID_SHIFT 12u

/* Which store a fault's slot is in. */
#define IMSVISOR_FAULT_STORE_MSIX 0u
#define IMSVISOR_FAULT_STORE_ARRAY 1u
#define IMSVISOR_FAULT_STORE_QUEUE 2u

/* A fault's kind: the unit refused a message (reason: its code); storm; a write could not be carried out (reason: status). */
#define IMSVISOR_FAULT_REMAPPING 1u
#define IMSVISOR_FAULT_STORM 2u
#define IMSVISOR_FAULT_REFUSED 3u

/* A fault's flag: the message came from another function than the slot's. */
#define IMSVISOR_FAULT_FLAG_FOREIGN 1u

/* An item of IMSVISOR_CALL_MAP: 16 bytes. */
struct imsvisor_map_request {
    uint32_t handle; /* 0 */
    uint16_t apic_id; /* 4 */
    uint8_t vector; /* 6 */
    uint8_t flags; /* 7 */
    uint64_t cookie; /* 8 */
};

/* The answer to an item of IMSVISOR_CALL_MAP, in its place: 16 bytes. */
struct imsvisor_map_reply {
    uint64_t address; /* 0 */
    uint32_t data; /* 8 */
    int32_t status; /* 12 */
};

/* What IMSVISOR_CALL_QUERY_DEVICE fills in: 64 bytes. */
struct imsvisor_device_info {
    uint32_t size; /* 0 */
    uint16_t version; /* 4 */
    uint16_t kind; /* 6 */
    uint32_t slots; /* 8 */
    uint32_t free; /* 12 */
    uint32_t bar; /* 16 */
    uint32_t offset; /* 20 */
    uint32_t device; /* 24 */
    uint32_t first_pasid; /* 28 */
    uint32_t last_pasid; /* 32 */
    uint8_t reserved0[28];
};

/* What IMSVISOR_CALL_QUERY_SLOT fills in: 64 bytes. */
struct imsvisor_slot_info {
    uint32_t size; /* 0 */
    uint16_t version; /* 4 */
    uint16_t state; /* 6 */
    uint16_t flags; /* 8 */
    uint16_t group; /* 10 */
    uint32_t pasid; /* 12 */
    uint64_t target; /* 16 */
    uint64_t cookie; /* 24 */
    uint64_t address; /* 32 */
    uint32_t data; /* 40 */
    uint8_t reserved0[20];
};

/* A record of IMSVISOR_CALL_READ_FAULTS: 32 bytes. */
struct imsvisor_fault_record {
    uint64_t cookie; /* 0 */
    uint16_t device; /* 8 */
    uint16_t slot; /* 10 */
    uint8_t store; /* 12 */
    uint8_t kind; /* 13 */
    uint8_t reason; /* 14 */
    uint8_t flags; /* 15 */
    uint32_t lost; /* 16 */
    uint8_t reserved0[12];
};

/* What IMSVISOR_CALL_QUERY_GUEST fills in: 64 bytes. */
struct imsvisor_guest_info {
    uint32_t size; /* 0 */
    uint16_t version; /* 4 */
    uint16_t state; /* 6 */
    uint16_t guests; /* 8 */
    uint16_t flags; /* 10 */
    uint8_t reserved0[4];
    char name[16]; /* 16 */
    uint32_t vcpus; /* 32 */
    uint32_t memory_mib; /* 36 */
    uint32_t weight; /* 40 */
    uint8_t reserved1[4];
    uint64_t starts; /* 48 */
    uint8_t reserved2[8];
};

/* What IMSVISOR_CALL_READ_COUNTERS fills in: 64 bytes. */
struct imsvisor_guest_counters {
    uint32_t size; /* 0 */
    uint16_t version; /* 4 */
    uint8_t reserved0[2];
    uint64_t building; /* 8 */
    uint64_t charged; /* 16 */
    uint64_t interrupting; /* 24 */
    uint64_t exits; /* 32 */
    uint64_t interrupts; /* 40 */
    uint8_t reserved1[16];
};

#endif /* IMSVISOR_ABI_H */
