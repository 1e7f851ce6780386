//! The transport of calls to the hypervisor.

/// Makes a call.
pub trait Transport {
    /// Puts `number` into RAX and `args` into RBX, RCX, RDX and RSI; returns what RAX holds afterwards.
    fn call(&self, number: u64, args: [u64; 4]) -> u64;
}

impl<T: Transport + ?Sized> Transport for &T {
    fn call(&self, number: u64, args: [u64; 4]) -> u64 {
        (**self).call(number, args)
    }
}
