//! Selects a driver's access to slots: natively, by hypercall, or not at all.
//!
//! | bare metal | platform forbids | domain known | decision |
//! |---|---|---|---|
//! | yes | no | no | native |
//! | any | any | yes | hypercall |
//! | any | yes | no | refuse: forbidden |
//! | no | no | no | refuse: virtualised |
//!
//! The rows are those of the kernel's discussion of 2020 ("no IMS information: use IMS; disable flag and a hypercall: use IMS;
//! disable flag and no hypercall: fail IMS") and of the condition that merged driver code was to test,
//! `on_bare_metal() || hypercall_irq_domain_supported()`. A domain that was found is used whatever the bare-metal test says:
//! it is itself the proof of a hypervisor.

use core::fmt;

use crate::discover::Interface;

/// What a driver may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Program the store itself.
    Native,
    /// Go through this domain.
    Hypercall(Interface),
    /// Leave the store alone and use MSI-X.
    Refuse(Refusal),
}

/// Why a driver must leave the store alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The platform says that stores are not to be used, and there is no domain.
    Forbidden,
    /// This is a virtual machine, and nobody would watch what is written to the store.
    Virtualised,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forbidden => "the platform forbids interrupt message stores and offers no hypercall domain",
            Self::Virtualised => "not on bare metal, and no hypercall domain",
        })
    }
}

/// Decides. `forbidden`: a table or register of the platform says that stores are not to be used.
pub fn decide(on_bare_metal: bool, forbidden: bool, domain: Option<Interface>) -> Decision {
    match domain {
        Some(interface) => Decision::Hypercall(interface),
        None if forbidden => Decision::Refuse(Refusal::Forbidden),
        None if on_bare_metal => Decision::Native,
        None => Decision::Refuse(Refusal::Virtualised),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::interface;

    #[test]
    fn the_truth_table_holds() {
        let domain = Some(interface());
        let hypercall = Decision::Hypercall(interface());
        for (bare_metal, forbidden, domain, decision) in [
            (true, false, None, Decision::Native),
            (false, false, None, Decision::Refuse(Refusal::Virtualised)),
            (true, true, None, Decision::Refuse(Refusal::Forbidden)),
            (false, true, None, Decision::Refuse(Refusal::Forbidden)),
            (true, false, domain, hypercall),
            (false, false, domain, hypercall),
            (true, true, domain, hypercall),
            (false, true, domain, hypercall),
        ] {
            assert_eq!(decide(bare_metal, forbidden, domain), decision, "{bare_metal} {forbidden}");
        }
    }
}
