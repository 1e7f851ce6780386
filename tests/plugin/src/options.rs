//! What the environment asks for.

use crate::layout::{Bar, Layout};

/// Physical addresses of the emulated processors are this wide.
pub(crate) const HOST_ADDRESS_WIDTH: u32 = 40;

/// A device ID that nobody has.
const UNKNOWN_DEVICE: u16 = 0x5eed;

/// Rounds of a slow command: 256 microseconds of the machine's time.
const SLOW_COMMAND: u32 = 256;

/// Rounds of a slow reset: 40 milliseconds of the machine's time.
const SLOW_RESET: u32 = 40_000;

/// Descriptors after which a DSA halts.
const HALTS_AFTER: u32 = 200;

/// What differs from the default machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Everything on bus 0, one unit, and DSAs with more than real ones have.
    pub(crate) generous: bool,
    /// No remapping unit, and so no DMAR table.
    pub(crate) no_vtd: bool,
    /// No DSA function.
    pub(crate) no_dsa: bool,
    /// No DMAR table: firmware hides the unit.
    pub(crate) no_dmar: bool,
    /// Two remapping units on the generous machine, too: one for the first DSA, one for everything else.
    pub(crate) two_units: bool,
    /// DSAs have the only device ID that packaged Linux kernels know.
    pub(crate) idxd: bool,
    /// Slots of each DSA's store: as many as its registers can tell of.
    pub(crate) most_slots: bool,
    /// Each command of a DSA takes [`SLOW_COMMAND`] rounds.
    pub(crate) slow_commands: bool,
    /// The reset of a DSA by its command takes [`SLOW_RESET`] rounds.
    pub(crate) slow_resets: bool,
    /// Each DSA's store is behind a command interface.
    pub(crate) slow_store: bool,
    /// Four DSA functions instead of two.
    pub(crate) four_dsas: bool,
    /// The second function does not say that it is a DSA, and has other registers in the page of its MSI-X table.
    pub(crate) unknown: bool,
    /// The remapping units have no scalable mode.
    pub(crate) legacy: bool,
    /// The remapping units cannot post interrupts.
    pub(crate) no_posting: bool,
    /// The remapping units are a client's: they snoop nothing, and have no PASIDs.
    pub(crate) client_units: bool,
    /// The remapping units have first-stage tables as well.
    pub(crate) first_stage: bool,
    /// What shared virtual addressing takes: first-stage tables and page requests in the units, ATS and PRI in the DSAs.
    pub(crate) sva: bool,
    /// Each DSA halts once, after [`HALTS_AFTER`] descriptors.
    pub(crate) halts: bool,
    /// Firmware makes mistakes in its tables: [`crate::odd`].
    pub(crate) odd_firmware: bool,
    /// Firmware asks not to use x2APIC mode.
    pub(crate) opt_out: bool,
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
                "no-vtd" => options.no_vtd = true,
                "no-dsa" => options.no_dsa = true,
                "no-dmar" => options.no_dmar = true,
                "two-units" => options.two_units = true,
                "slow-store" => options.slow_store = true,
                "slow-commands" => options.slow_commands = true,
                "slow-resets" => options.slow_resets = true,
                "four-dsas" => options.four_dsas = true,
                "unknown" => options.unknown = true,
                "first-stage" => options.first_stage = true,
                "sva" => options.sva = true,
                "halts" => options.halts = true,
                "odd-firmware" => options.odd_firmware = true,
                "opt-out" => options.opt_out = true,
                "client-units" => options.client_units = true,
                "legacy" => options.legacy = true,
                "no-posting" => options.no_posting = true,
                "idxd" => options.idxd = true,
                "most-slots" => options.most_slots = true,
                _ => return Err(format!("{}: unknown option {word:?}", Self::VARIABLE)),
            }
        }
        if !options.generous && (options.most_slots || options.slow_store || options.two_units) {
            return Err(format!("{}: most-slots, slow-store and two-units need generous", Self::VARIABLE));
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
        use vtd_model::Config;
        let base = match (self.client_units, self.generous) {
            (true, _) => Config::meteor_lake(),
            (false, true) => Config::default(),
            (false, false) => Config::sapphire_rapids_accelerators(),
        };
        Config {
            host_address_width: HOST_ADDRESS_WIDTH,
            scalable_mode: !self.legacy,
            posted_interrupts: base.posted_interrupts && !self.no_posting,
            first_stage: base.first_stage || self.first_stage || self.sva,
            device_tlb: base.device_tlb || self.sva,
            page_requests: self.sva,
            ..base
        }
    }

    /// How the DSA of this number is made. Portals of the generous machine take pieces, so that both ways are tried; real ones do not.
    pub(crate) fn dsa(&self, number: usize) -> dsa_model::Config {
        use dsa_model::Config;
        let base = match (self.generous, self.most_slots) {
            (false, _) => Config::sapphire_rapids(),
            (true, true) => Config { pieces: true, ..Config::most_slots() },
            (true, false) => Config { pieces: true, ..Config::default() },
        };
        let command_rounds = if self.slow_commands { SLOW_COMMAND } else { base.command_rounds };
        let reset_rounds = if self.slow_resets { SLOW_RESET } else { 0 };
        let halts_after = if self.halts { HALTS_AFTER } else { 0 };
        let base = Config { command_rounds, reset_rounds, halts_after, ..base };
        let known = if self.idxd { dsa_model::spec::DEVICE_ID_SAPPHIRE_RAPIDS } else { base.device_id };
        let base = Config { slow_store: self.slow_store, page_requests: self.sva || base.page_requests, ..base };
        if self.unknown && number == 1 {
            let layout = if self.generous { base.layout } else { dsa_model::Layout::CRAMPED };
            return Config { device_id: UNKNOWN_DEVICE, layout, ..base };
        }
        Config { device_id: known, ..base }
    }

    /// How long a DSA's BAR is; BARs are aligned to that.
    pub(crate) fn bar_bytes(&self, bar: Bar) -> u64 {
        match bar {
            Bar::Registers => self.dsa(0).layout.bytes.into(),
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
        assert_eq!(Options::parse("generous,most-slots").unwrap().dsa(0).ims_multiplier, 63);
        let real = Options::default();
        assert_eq!((real.dsa(0), real.dsa(1).pieces), (dsa_model::Config::sapphire_rapids(), false));
        assert_eq!(
            (real.dsa(0).command_rounds, Options::parse("slow-commands").unwrap().dsa(1).command_rounds),
            (16, 256)
        );
        assert_eq!((real.dsa(0).reset_rounds, Options::parse("slow-resets").unwrap().dsa(1).reset_rounds), (0, 40_000));
        assert_eq!((real.dsa(0).device_id, Options::parse("idxd").unwrap().dsa(0).device_id), (0x11fb, 0x0b25));
        assert_eq!((Options::default().dsas(), Options::parse("four-dsas").unwrap().dsas(), both.dsas()), (2, 4, 0));
        assert!(Options::default().unit().scalable_mode && !Options::parse("legacy").unwrap().unit().scalable_mode);
        assert!(Options::parse("first-stage").unwrap().unit().first_stage);
        let client = Options::parse("client-units").unwrap().unit();
        assert!(!client.coherent && !client.pasids && Options::default().unit().coherent);
        let units = |text: &str| Options::parse(text).unwrap().units();
        assert_eq!(["", "generous", "generous,two-units", "no-vtd"].map(units), [2, 1, 2, 0]);
        assert!(Options::default().dsa(0).wide_bars && !Options::parse("generous").unwrap().dsa(0).wide_bars);
        let sva = Options::parse("sva").unwrap();
        assert!(
            sva.unit().first_stage
                && sva.dsa(1).page_requests
                && !Options::parse("generous").unwrap().dsa(1).page_requests
        );
        assert!(Options::default().dmar() && !both.dmar());
        assert!(!Options { no_dmar: true, ..Options::default() }.dmar());
    }

    #[test]
    fn unknown_options_are_refused() {
        assert!(Options::parse("no-vtd,fast").unwrap_err().contains("fast"));
        assert!(Options::parse("most-slots").unwrap_err().contains("generous"));
    }
}
