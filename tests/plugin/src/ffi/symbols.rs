//! What is used of the Bochs binary.
//!
//! Methods of `BX_MEM_C` are static there, as its source declares them by default: they take no `this`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// `memory_handler_t`: address, length, data, parameter.
pub(super) type MemoryHandler = unsafe extern "C" fn(u64, u32, *mut c_void, *mut c_void) -> bool;
/// `bx_read_handler_t`: object, port, length.
pub(super) type PortReader = unsafe extern "C" fn(*mut c_void, u32, u32) -> u32;
/// `bx_write_handler_t`: object, port, value, length.
pub(super) type PortWriter = unsafe extern "C" fn(*mut c_void, u32, u32, u32);
type TimerHandler = unsafe extern "C" fn(*mut c_void);

/// `Dl_info` (dladdr(3)); only its room is used.
type AddressInformation = [usize; 4];
/// `RTLD_DL_SYMENT`: `dladdr1` gives the symbol's entry.
const SYMBOL_ENTRY: c_int = 1;
/// `RTLD_LAZY | RTLD_NOLOAD`: a library that is loaded already.
const LOADED: c_int = 1 | 4;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dladdr1(
        address: *const c_void,
        information: *mut AddressInformation,
        extra: *mut *const c_void,
        flags: c_int,
    ) -> c_int;
}

/// The words of an object of the program, which has a symbol of its own: its size is the symbol's.
pub(super) fn words(object: *mut c_void) -> Result<impl Iterator<Item = *mut *mut c_void>, String> {
    let mut information = [0; 4];
    let mut entry: *const c_void = ptr::null();
    // SAFETY: both places have room for what the function puts there (dladdr1(3)).
    let found = unsafe { dladdr1(object, &mut information, &mut entry, SYMBOL_ENTRY) };
    let [_, _, _, address] = information;
    if found == 0 || entry.is_null() || address != object.addr() {
        return Err("an object of the emulator has no symbol".to_string());
    }
    // SAFETY: the entry is an Elf64_Sym, whose last 8 bytes of 24 are the object's size.
    let size = unsafe { entry.cast::<u64>().add(2).read() } as usize;
    let first: *mut *mut c_void = object.cast();
    Ok((0..size / size_of::<usize>()).map(move |n| first.wrapping_add(n)))
}

/// Bochs' own I/O APIC, an object of a plugin of Bochs'.
pub(super) fn ioapic() -> Result<*mut c_void, String> {
    // SAFETY: the name is a C string.
    let library = unsafe { dlopen(c"libbx_ioapic.so.0".as_ptr(), LOADED) };
    // SAFETY: the handle is null or a library's; the name is a C string.
    let pointer = if library.is_null() { library } else { unsafe { dlsym(library, c"theIOAPIC".as_ptr()) } };
    if pointer.is_null() {
        return Err("this emulator has no I/O APIC in a plugin (Bochs 3.0 is needed)".to_string());
    }
    // SAFETY: the symbol is a variable that holds a pointer.
    Ok(unsafe { pointer.cast::<*mut c_void>().read() })
}

/// The address of a symbol of the program.
fn find(name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: a null handle means RTLD_DEFAULT; the name is a C string.
    let found = unsafe { dlsym(ptr::null_mut(), name.as_ptr()) };
    if found.is_null() {
        return Err(format!("this emulator has no symbol {} (Bochs 3.0 is needed)", name.to_string_lossy()));
    }
    Ok(found)
}

type ReadRip = unsafe extern "C" fn() -> u64;

/// Bochs' own debugger, where it was built in: its current processor, and what tells where that is.
#[derive(Clone, Copy)]
pub(super) struct Debugger {
    /// `dbg_cpu`.
    current: *mut u32,
    /// `bx_dbg_get_rip()`: of the current processor.
    rip: ReadRip,
}

impl Debugger {
    /// Finds its symbols; none where one is missing.
    pub(super) fn find() -> Option<Self> {
        let [current, rip] = [c"dbg_cpu", c"_Z14bx_dbg_get_ripv"].map(|name| find(name).ok());
        // SAFETY: the mangled name spells that the function takes nothing; it returns a `bx_address`, which has 64 bits.
        Some(Self { current: current?.cast(), rip: unsafe { std::mem::transmute::<*mut c_void, ReadRip>(rip?) } })
    }

    /// The address of the instruction at which a processor is.
    ///
    /// # Safety
    ///
    /// There is a processor of this number, and the caller is in Bochs' own thread.
    pub(super) unsafe fn rip(self, processor: u32) -> u64 {
        // SAFETY: the variable is the debugger's, which runs in this thread and not now; the caller says that there is the processor.
        unsafe {
            let before = self.current.replace(processor);
            let rip = (self.rip)();
            self.current.write(before);
            rip
        }
    }
}

// SAFETY: the addresses of a variable and of a function of the program; only Bochs' own thread uses them.
unsafe impl Send for Debugger {}
// SAFETY: as for `Send`.
unsafe impl Sync for Debugger {}

macro_rules! symbols {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $name:literal;)*) => {
        /// Functions and objects of the emulator.
        pub(super) struct Symbols {
            $($(#[$doc])* pub(super) $field: $type,)*
        }

        impl Symbols {
            /// Finds all of them; the error names the first that is missing.
            pub(super) fn find() -> Result<Self, String> {
                Ok(Self {
                    // SAFETY: the mangled name spells the parameter types, which are those of the pointer's type.
                    $($field: unsafe { std::mem::transmute::<*mut c_void, $type>(find($name)?) },)*
                })
            }
        }
    };
}

/// An object of the emulator.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Object(pub(super) *mut c_void);

// SAFETY: the address of a global object; only Bochs' own thread uses it.
unsafe impl Send for Object {}
// SAFETY: as for `Send`.
unsafe impl Sync for Object {}

symbols! {
    /// `bx_pc_system`.
    pc_system: Object = c"bx_pc_system";
    /// `bx_devices`.
    devices: Object = c"bx_devices";
    /// `BX_MEM_C::registerMemoryHandlers(param, read, write, direct access, first, last)`.
    register_memory: unsafe extern "C" fn(*mut c_void, MemoryHandler, MemoryHandler, *mut c_void, u64, u64) -> bool
        = c"_ZN8BX_MEM_C22registerMemoryHandlersEPvPFbmjS0_S0_ES2_PFPhmjS0_Emm";
    /// `BX_MEM_C::unregisterMemoryHandlers(param, first, last)`.
    unregister_memory: unsafe extern "C" fn(*mut c_void, u64, u64) -> bool
        = c"_ZN8BX_MEM_C24unregisterMemoryHandlersEPvmm";
    /// `BX_MEM_C::readPhysicalPage(cpu, address, length, data)`.
    read_physical: unsafe extern "C" fn(*mut c_void, u64, u32, *mut c_void)
        = c"_ZN8BX_MEM_C16readPhysicalPageEP8BX_CPU_CmjPv";
    /// `BX_MEM_C::writePhysicalPage(cpu, address, length, data)`.
    write_physical: unsafe extern "C" fn(*mut c_void, u64, u32, *mut c_void)
        = c"_ZN8BX_MEM_C17writePhysicalPageEP8BX_CPU_CmjPv";
    /// `BX_MEM_C::getHostMemAddr(cpu, address, access)`: access 0 reads, 1 writes.
    host_address: unsafe extern "C" fn(*mut c_void, u64, u32) -> *mut u8
        = c"_ZN8BX_MEM_C14getHostMemAddrEP8BX_CPU_Cmj";
    /// `apic_bus_deliver_interrupt(vector, destination, mode, logical, level, trigger)`.
    deliver: unsafe extern "C" fn(u8, u32, u8, bool, bool, bool) -> c_int
        = c"_Z26apic_bus_deliver_interrupthjhbbb";
    /// `bx_local_apic_c::read_x2apic(register, value)`: the register by its MSR number, in any mode.
    read_local_apic: unsafe extern "C" fn(*mut c_void, u32, *mut u64) -> bool
        = c"_ZN15bx_local_apic_c11read_x2apicEjPm";
    /// `bx_local_apic_c::periodic_smf(local APIC)`: the handler of a local APIC's timer.
    local_apic_timer: Object = c"_ZN15bx_local_apic_c12periodic_smfEPv";
    /// `bx_pc_system_c::register_timer(parameter, handler, microseconds, continuous, active, name)`.
    register_timer: unsafe extern "C" fn(*mut c_void, *mut c_void, TimerHandler, u32, bool, bool, *const c_char) -> c_int
        = c"_ZN14bx_pc_system_c14register_timerEPvPFvS0_EjbbPKc";
    /// `bx_pc_system_c::activate_timer(timer, microseconds, continuous)`.
    activate_timer: unsafe extern "C" fn(*mut c_void, u32, u32, bool)
        = c"_ZN14bx_pc_system_c14activate_timerEjjb";
    /// `bx_pc_system_c::deactivate_timer(timer)`.
    deactivate_timer: unsafe extern "C" fn(*mut c_void, u32)
        = c"_ZN14bx_pc_system_c16deactivate_timerEj";
    /// `bx_devices_c::inp(port, length)`.
    port_in: unsafe extern "C" fn(*mut c_void, u16, u32) -> u32 = c"_ZN12bx_devices_c3inpEtj";
    /// `bx_devices_c::outp(port, value, length)`.
    port_out: unsafe extern "C" fn(*mut c_void, u16, u32, u32) = c"_ZN12bx_devices_c4outpEtjj";
    /// `bx_devices_c::read_handler(object, port, length)`: Bochs' own ports, PCI's among them.
    read_port: PortReader = c"_ZN12bx_devices_c12read_handlerEPvjj";
    /// `bx_devices_c::write_handler(object, port, value, length)`.
    write_port: PortWriter = c"_ZN12bx_devices_c13write_handlerEPvjjj";
    /// `bx_devices_c::register_io_read_handler(object, handler, port, name, lengths)`.
    register_port_read: unsafe extern "C" fn(*mut c_void, *mut c_void, PortReader, u32, *const c_char, u8) -> bool
        = c"_ZN12bx_devices_c24register_io_read_handlerEPvPFjS0_jjEjPKch";
    /// `bx_devices_c::register_io_write_handler(object, handler, port, name, lengths)`.
    register_port_write: unsafe extern "C" fn(*mut c_void, *mut c_void, PortWriter, u32, *const c_char, u8) -> bool
        = c"_ZN12bx_devices_c25register_io_write_handlerEPvPFvS0_jjjEjPKch";
    /// `bx_devices_c::unregister_io_read_handler(object, handler, port, lengths)`.
    unregister_port_read: unsafe extern "C" fn(*mut c_void, *mut c_void, PortReader, u32, u8) -> bool
        = c"_ZN12bx_devices_c26unregister_io_read_handlerEPvPFjS0_jjEjh";
    /// `bx_devices_c::unregister_io_write_handler(object, handler, port, lengths)`.
    unregister_port_write: unsafe extern "C" fn(*mut c_void, *mut c_void, PortWriter, u32, u8) -> bool
        = c"_ZN12bx_devices_c27unregister_io_write_handlerEPvPFvS0_jjjEjh";
    /// `bx_devices_c::register_pci_handlers(device, function, name, description, bus)`.
    register_pci: unsafe extern "C" fn(*mut c_void, *mut c_void, *mut u8, *const c_char, *const c_char, u8) -> bool
        = c"_ZN12bx_devices_c21register_pci_handlersEP15bx_pci_device_cPhPKcS4_h";
    /// `bx_pci_device_c::init_pci_conf(vendor, device, revision, class, header, pin)`.
    init_config: unsafe extern "C" fn(*mut c_void, u16, u16, u8, u32, u8, u8)
        = c"_ZN15bx_pci_device_c13init_pci_confEtthjhh";
    /// `bx_pci_device_c::init_bar_mem(number, size, read, write)`.
    init_bar: unsafe extern "C" fn(*mut c_void, u8, u32, MemoryHandler, MemoryHandler)
        = c"_ZN15bx_pci_device_c12init_bar_memEhjPFbmjPvS0_ES2_";
    /// `bx_pci_device_c::pci_read_handler(register, length)`: reads what Bochs itself keeps.
    read_config: unsafe extern "C" fn(*mut c_void, u8, u32) -> u32 = c"_ZN15bx_pci_device_c16pci_read_handlerEhj";
    /// `logfunctions::logfunctions()`.
    construct_log: unsafe extern "C" fn(*mut c_void) = c"_ZN12logfunctionsC1Ev";
    /// `logfunctions::put(name, prefix)`.
    name_log: unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) = c"_ZN12logfunctions3putEPKcS1_";
    /// `pluginRegisterDeviceDevmodel(plugin, type, device, name)`.
    register_device: unsafe extern "C" fn(*mut c_void, u16, *mut c_void, *const c_char) = c"pluginRegisterDeviceDevmodel";
}
