// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Decides whether Linux may use message stores, and how: the bare-metal test
 * and the platform's word.
 *
 * The hints of a virtual machine are those of the on_bare_metal() that was
 * proposed with device IMS in 2021, with names compared word by word.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/acpi.h>
#include <linux/ctype.h>
#include <linux/dmi.h>
#include <linux/io.h>
#include <linux/pci.h>

#include "internal.h"

/* SMBIOS type 0: the byte and bit that say "virtual machine" (7.1.2.2). */
#define SMBIOS_BIOS			0
#define SMBIOS_EXTENSION		0x13
#define SMBIOS_VIRTUAL_MACHINE		BIT(4)

/* VT-d 11.4.2: the capability register, and its caching mode. */
#define VTD_CAP				8
#define VTD_CAP_CM			BIT_ULL(7)

/* AMD I/O virtualisation 3.3.1: not-present entries are cached. */
#define AMD_NP_CACHE			BIT(26)
#define CLASS_IOMMU			0x0806

#define VIRTIO_IOMMU			0x1057

/* Names as words in lower case; one that ends in "*" may go on. */
static const char * const vendors[] = {
	"qemu", "bochs", "kvm", "xen", "vmware*", "vmw", "innotek gmbh*",
	"parallels*", "bhyve", "cloud hypervisor", "kubevirt",
};

static const char * const products[] = {
	"kvm", "bhyve", "bochs", "qemu", "standard pc*", "virtualbox",
	"vmware*", "vmware7*", "vmware20*", "hvm domu", "virtual machine",
	"parallels*", "openstack*", "ahv", "apple virtualization*",
	"cloud hypervisor", "kubevirt",
};

/* The next word of @text, which is moved behind it; returns its length. */
static size_t __init next_word(const char **text, const char **word)
{
	const char *at = *text;

	while (*at && !isalnum(*at))
		at++;
	*word = at;
	while (isalnum(*at))
		at++;
	*text = at;
	return at - *word;
}

/* Whether the words of @text are those of @name, whatever is between them. */
static bool __init is_named(const char *text, const char *name)
{
	const char *word, *known;
	size_t length;

	while ((length = next_word(&name, &known))) {
		if (next_word(&text, &word) != length ||
		    strncasecmp(word, known, length))
			return false;
		if (*name == '*')
			return true;
	}
	return !next_word(&text, &word);
}

static bool __init is_among(int field, const char * const *names, size_t nr)
{
	const char *text = dmi_get_system_info(field);

	while (text && nr--) {
		if (is_named(text, names[nr]))
			return true;
	}
	return false;
}

static void __init see_smbios(const struct dmi_header *header, void *seen)
{
	const u8 *bytes = (const u8 *)header;

	if (header->type == SMBIOS_BIOS && header->length > SMBIOS_EXTENSION &&
	    bytes[SMBIOS_EXTENSION] & SMBIOS_VIRTUAL_MACHINE)
		*(bool *)seen = true;
}

static bool __init smbios_says_virtual(void)
{
	bool seen = false;

	dmi_walk(see_smbios, &seen);
	return seen;
}

static bool __init unit_is_emulated(u64 address)
{
	void __iomem *registers = ioremap(address, SZ_4K);
	u64 cap = 0;

	if (registers) {
		cap = readq(registers + VTD_CAP);
		iounmap(registers);
	}
	return cap & VTD_CAP_CM;
}

/* Whether a unit of the DMAR asks for what only emulated units need. */
static bool __init vtd_is_emulated(void)
{
	struct acpi_table_header *table;
	bool emulated = false;
	u8 *at, *end;

	if (ACPI_FAILURE(acpi_get_table(ACPI_SIG_DMAR, 0, &table)))
		return false;
	at = (u8 *)table + sizeof(struct acpi_table_dmar);
	end = (u8 *)table + table->length;
	while (end - at >= sizeof(struct acpi_dmar_hardware_unit)) {
		struct acpi_dmar_hardware_unit *unit = (void *)at;

		if (unit->header.length < sizeof(unit->header) ||
		    unit->header.length > end - at)
			break;
		if (unit->header.type == ACPI_DMAR_TYPE_HARDWARE_UNIT &&
		    unit->header.length >= sizeof(*unit))
			emulated |= unit_is_emulated(unit->address);
		at += unit->header.length;
	}
	acpi_put_table(table);
	return emulated;
}

static bool __init amd_iommu_is_emulated(void)
{
	struct pci_dev *pdev = NULL;
	u32 capability;
	u8 at;

	for_each_pci_dev(pdev) {
		if (pdev->vendor != PCI_VENDOR_ID_AMD)
			continue;
		if (pdev->class >> 8 != CLASS_IOMMU)
			continue;
		at = pci_find_capability(pdev, PCI_CAP_ID_SECDEV);
		if (!at || pci_read_config_dword(pdev, at, &capability))
			continue;
		if (capability & AMD_NP_CACHE) {
			pci_dev_put(pdev);
			return true;
		}
	}
	return false;
}

static bool __init has_virtio_iommu(void)
{
	static const struct pci_device_id ids[] __initconst = {
		{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, VIRTIO_IOMMU) },
		{}
	};

	return pci_dev_present(ids);
}

/* The first hint of a virtual machine, or NULL. */
static const char *__init virtual_hint(void)
{
	if (boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return "CPUID says that there is a hypervisor";
	if (smbios_says_virtual())
		return "SMBIOS says that this is a virtual machine";
	if (is_among(DMI_SYS_VENDOR, vendors, ARRAY_SIZE(vendors)))
		return "the system's vendor is one of virtual machines";
	if (is_among(DMI_PRODUCT_NAME, products, ARRAY_SIZE(products)))
		return "the system's product is a virtual machine";
	if (has_virtio_iommu())
		return "there is a virtio-iommu";
	if (vtd_is_emulated())
		return "a VT-d unit is in caching mode";
	if (amd_iommu_is_emulated())
		return "an AMD IOMMU caches entries that are not present";
	return NULL;
}

/* Whether the platform's table says that stores must not be used natively. */
static bool __init table_forbids(void)
{
	struct acpi_table_header *table;
	char signature[ACPI_NAMESEG_SIZE + 1] = {};
	u32 flags = 0;

	memcpy(signature, &(u32){ IMSVISOR_ACPI_SIGNATURE }, ACPI_NAMESEG_SIZE);
	if (ACPI_FAILURE(acpi_get_table(signature, 0, &table)))
		return false;
	if (table->length >= IMSVISOR_ACPI_LENGTH)
		memcpy(&flags, (u8 *)table + IMSVISOR_ACPI_FLAGS, sizeof(flags));
	acpi_put_table(table);
	return flags & IMSVISOR_ACPI_FLAG_IMS_FORBIDDEN;
}

/* The table, or a hypervisor whose domain cannot be used. */
static bool __init platform_forbids(void)
{
	return table_forbids() ||
	       imsvisor_domain.features & IMSVISOR_FEATURE_IMS_FORBIDDEN;
}

/**
 * imsvisor_decide - Decides which way to the slots is open
 * @domain:	there is a hypercall domain, and it is enabled
 * @why:	set to the reason, in words
 *
 * A domain is used whatever else is said: it is the proof of a hypervisor
 * that watches the stores. Without one, a store is used on bare metal only,
 * and only if the platform does not forbid it.
 *
 * Return: the decision.
 */
enum imsvisor_decision __init imsvisor_decide(bool domain, const char **why)
{
	if (domain) {
		*why = "there is a hypercall domain";
		return IMSVISOR_HYPERCALL;
	}
	if (platform_forbids()) {
		*why = "the platform forbids them, and there is no hypercall domain";
		return IMSVISOR_REFUSED;
	}
	*why = virtual_hint();
	if (*why)
		return IMSVISOR_REFUSED;
	*why = "this is bare metal";
	return IMSVISOR_NATIVE;
}
