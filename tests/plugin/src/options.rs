//! What the environment asks for.

use crate::layout::Layout;
use crate::machine::Bar;

/// The most that GENCAP's field of six bits can say, in units of 256 slots.
const MOST_MULTIPLIER: u8 = 63;

/// Physical addresses of the emulated processors are this wide.
pub(crate) const HOST_ADDRESS_WIDTH: u32 = 40;

/// A device ID that nobody has.
const UNKNOWN_DEVICE: u16 = 0x5eed;

/// What differs from the default machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Everything on bus 0, one unit, and DSAs with more than real ones have.
    pub(crate) generous: bool,
    /// Firmware leaves the DSAs' memory decoding off, as real firmware does. The generous machine's BIOS switches it on.
    pub(crate) decode_off: bool,
    /// No remapping unit, and so no DMAR table.
    pub(crate) no_vtd: bool,
    /// No DSA function.
    pub(crate) no_dsa: bool,
    /// No DMAR table: firmware hides the unit.
    pub(crate) no_dmar: bool,
    /// Two remapping units on the generous machine, too: one for the first DSA, one for everything else.
    pub(crate) two_units: bool,
    /// Slots of each DSA's store: as many as its registers can tell of.
    pub(crate) most_slots: bool,
    /// Each DSA's store is behind a command interface.
    pub(crate) slow_store: bool,
    /// Four DSA functions instead of two.
    pub(crate) four_dsas: bool,
    /// The second function does not say that it is a DSA.
    pub(crate) unknown: bool,
    /// The remapping units have no scalable mode.
    pub(crate) legacy: bool,
    /// The remapping units have first-stage tables as well.
    pub(crate) first_stage: bool,
    /// What shared virtual addressing takes: first-stage tables and page requests in the units, ATS and PRI in the DSAs.
    pub(crate) sva: bool,
}

impl Options {
    /// The variable that holds the options, separated by commas.
    pub(crate) const VARIABLE: &str = "IMSVISOR_PLUGIN";

    /// Reads a list of options. An unknown one is an error.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "generous" => options.generous = true,
                "decode-off" => options.decode_off = true,
                "no-vtd" => options.no_vtd = true,
                "no-dsa" => options.no_dsa = true,
                "no-dmar" => options.no_dmar = true,
                "two-units" => options.two_units = true,
                "slow-store" => options.slow_store = true,
                "four-dsas" => options.four_dsas = true,
                "unknown" => options.unknown = true,
                "first-stage" => options.first_stage = true,
                "sva" => options.sva = true,
                "legacy" => options.legacy = true,
                "most-slots" => options.most_slots = true,
                _ => return Err(format!("{}: unknown option {word:?}", Self::VARIABLE)),
            }
        }
        Ok(options)
    }

    /// What lies where.
    pub(crate) fn layout(&self) -> &'static Layout {
        if self.generous { &Layout::GENEROUS } else { &Layout::SAPPHIRE_RAPIDS }
    }

    /// How many remapping units there are.
    pub(crate) fn units(&self) -> usize {
        match (self.no_vtd, self.two_units || !self.generous) {
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 1,
        }
    }

    /// How many DSA functions there are.
    pub(crate) fn dsas(&self) -> usize {
        match (self.no_dsa, self.four_dsas) {
            (true, _) => 0,
            (false, true) => 4,
            (false, false) => 2,
        }
    }

    /// How the remapping units are made.
    pub(crate) fn unit(&self) -> vtd_model::Config {
        vtd_model::Config {
            host_address_width: HOST_ADDRESS_WIDTH,
            scalable_mode: !self.legacy,
            first_stage: self.first_stage || self.sva,
            device_tlb: self.sva,
            page_requests: self.sva,
            ..Default::default()
        }
    }

    /// How the DSA of this number is made.
    pub(crate) fn dsa(&self, number: usize) -> dsa_model::Config {
        let default = dsa_model::Config::default();
        let device_id = if self.unknown && number == 1 { UNKNOWN_DEVICE } else { default.device_id };
        let wide_bars = self.layout().bars(number).is_some();
        let config =
            dsa_model::Config { slow_store: self.slow_store, page_requests: self.sva, wide_bars, device_id, ..default };
        if !self.most_slots {
            return config;
        }
        let slots = u16::from(MOST_MULTIPLIER) * dsa_model::spec::gencap::IMS_UNIT;
        let interrupt_handles = slots + dsa_model::spec::MSIX_ENTRIES as u16;
        dsa_model::Config { ims_multiplier: MOST_MULTIPLIER, interrupt_handles, ..config }
    }

    /// How long a DSA's BAR is; BARs are aligned to that.
    pub(crate) fn bar_bytes(&self, bar: Bar) -> u64 {
        match bar {
            Bar::Registers => dsa_model::spec::BAR0_SIZE.into(),
            Bar::Portals => dsa_model::spec::BAR2_SIZE.into(),
        }
    }

    /// Whether firmware describes the remapping unit.
    pub(crate) fn dmar(&self) -> bool {
        !self.no_vtd && !self.no_dmar
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_a_list() {
        assert_eq!(Options::parse(""), Ok(Options::default()));
        let both = Options { no_vtd: true, no_dsa: true, ..Options::default() };
        assert_eq!(Options::parse("no-vtd, no-dsa"), Ok(both));
        assert_eq!(Options::parse("most-slots").unwrap().dsa(0).ims_multiplier, 63);
        assert_eq!((Options::default().dsas(), Options::parse("four-dsas").unwrap().dsas(), both.dsas()), (2, 4, 0));
        assert!(Options::default().unit().scalable_mode && !Options::parse("legacy").unwrap().unit().scalable_mode);
        assert!(Options::parse("first-stage").unwrap().unit().first_stage);
        let units = |text: &str| Options::parse(text).unwrap().units();
        assert_eq!(["", "generous", "generous,two-units", "no-vtd"].map(units), [2, 1, 2, 0]);
        assert!(Options::default().dsa(0).wide_bars && !Options::parse("generous").unwrap().dsa(0).wide_bars);
        let sva = Options::parse("sva").unwrap();
        assert!(sva.unit().first_stage && sva.dsa(1).page_requests && !Options::default().dsa(1).page_requests);
        assert!(Options::default().dmar() && !both.dmar());
        assert!(!Options { no_dmar: true, ..Options::default() }.dmar());
    }

    #[test]
    fn unknown_options_are_refused() {
        assert!(Options::parse("no-vtd,fast").unwrap_err().contains("fast"));
    }
}
