//! What is asked for of a guest `linux`: its files and its command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{OPTIONS, Payload};

/// Options that the guest has unless it is asked for others of their kind: that it is Linux, memory, a device.
const DEFAULTS: [&str; 3] = ["os=linux", "mem=512M", "device=dsa"];
/// Options of the guest that tests message stores. Linux gives each interrupt a vector of its own, some 200 on each processor.
const IMS_DEFAULTS: [&str; 2] = ["mem=1G", "cpus=16"];
/// Words for its first process: 3,000 interrupts.
const IMS_WORDS: &str = "ims=3000";
/// One more where the device is a model: the packaged `idxd` knows 8086:0b25 only, which has this erratum.
const ACCEPTED: &str = "unsafe=INTEL-SA-01084";
/// The option whose words come behind those that a guest `linux` has anyway.
const CMDLINE: &str = "cmdline=";

/// What stands in the place of Debian's files, and words for the kernel's command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// A kernel, a bzImage or an ELF executable. Our initrd is not for it.
    pub kernel: Option<PathBuf>,
    /// An initrd.
    pub initrd: Option<PathBuf>,
    /// Words behind those of [`OPTIONS`].
    pub append: Option<String>,
    /// Whether the guest tests a message store by our modules, instead of copying by its own driver.
    pub ims: bool,
    /// Whether a real machine is to run the guest: then nobody but the user accepts its device's errata.
    pub real_machine: bool,
}

impl Asked {
    /// Refuses `--kernel`, `--initrd`, `--append` and `--ims` where there is no Linux, and `--ims` with an initrd that is not ours.
    pub fn check(&self, linux: bool) -> Result<()> {
        let given = [
            ("kernel", self.kernel.is_some()),
            ("initrd", self.initrd.is_some()),
            ("append", self.append.is_some()),
            ("ims", self.ims),
        ];
        let name = given.iter().find_map(|(name, given)| given.then_some(*name)).unwrap_or_default();
        ensure!(linux || name.is_empty(), "--{name} is for the guest linux: --guest linux, or --native linux");
        ensure!(
            !self.ims || self.takes_initrd(),
            "--ims needs the modules that are in our initrd, for Debian's kernel"
        );
        Ok(())
    }

    /// Whether Debian's kernel is to be there.
    pub fn takes_kernel(&self) -> bool {
        self.kernel.is_none()
    }

    /// Whether the initrd for it is to be made.
    pub fn takes_initrd(&self) -> bool {
        self.kernel.is_none() && self.initrd.is_none()
    }

    /// The guest's options: those that it has been given, and defaults for what they leave open.
    pub(crate) fn options(&self, given: Vec<String>) -> Vec<String> {
        let (cmdline, mut options): (Vec<_>, Vec<_>) = given.into_iter().partition(|word| word.starts_with(CMDLINE));
        let kind = |word: &str| word.split_inclusive('=').next().unwrap_or_default().to_owned();
        let accepted = (!self.real_machine).then_some(ACCEPTED);
        let for_ims = if self.ims { &IMS_DEFAULTS[..] } else { &[] };
        for default in for_ims.iter().copied().chain(DEFAULTS).chain(accepted) {
            if !options.iter().any(|word| kind(word) == kind(default)) {
                options.push(default.to_owned());
            }
        }
        let own = cmdline.iter().map(|word| &word[CMDLINE.len()..]).chain(self.append.as_deref());
        let ims = self.ims.then_some(IMS_WORDS);
        let words: Vec<&str> = OPTIONS.into_iter().chain(ims).chain(own).filter(|words| !words.is_empty()).collect();
        options.push(format!("{CMDLINE}{}", words.join(" ")));
        options
    }

    /// The kernel, and its initrd if it has one. `payload` has Debian's, and is there where one of the two is taken from it.
    pub fn files(&self, payload: Option<&Payload>) -> Result<(PathBuf, Option<PathBuf>)> {
        let missing = "Debian's Linux was not looked for";
        let kernel = match &self.kernel {
            Some(kernel) => kernel.clone(),
            None => payload.context(missing)?.kernel.clone(),
        };
        let made = self.takes_initrd().then(|| payload.and_then(|payload| payload.initrd.as_deref()).context(missing));
        let initrd = self.initrd.as_deref().or(made.transpose()?).map(Path::to_owned);
        Ok((kernel, initrd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(asked: &Asked, given: &[&str]) -> String {
        asked.options(given.iter().map(|word| (*word).to_owned()).collect()).join("|")
    }

    #[test]
    fn a_guest_has_defaults_for_what_it_is_not_given() {
        let asked = Asked::default();
        let own = OPTIONS.join(" ");
        assert_eq!(options(&asked, &[]), format!("os=linux|mem=512M|device=dsa|{ACCEPTED}|cmdline={own}"));
        let real = Asked { real_machine: true, ..Asked::default() };
        assert_eq!(
            options(&real, &[]),
            format!("os=linux|mem=512M|device=dsa|cmdline={own}"),
            "the user has to accept it"
        );
        let given = ["cpus=2", "mem=1G", "device=vdsa", "vectors=8", "device=00:1f.0"];
        assert_eq!(options(&asked, &given), format!("{}|os=linux|{}|cmdline={own}", given.join("|"), ACCEPTED));
    }

    #[test]
    fn a_guest_that_tests_message_stores_has_processors_for_all_their_vectors() {
        let asked = Asked { ims: true, append: Some("fires=1".into()), ..Asked::default() };
        let own = OPTIONS.join(" ");
        assert_eq!(
            options(&asked, &["cpus=2"]),
            format!("cpus=2|mem=1G|os=linux|device=dsa|{ACCEPTED}|cmdline={own} {IMS_WORDS} fires=1")
        );
        assert!(options(&asked, &[]).starts_with("mem=1G|cpus=16|"));
        assert!(asked.check(true).is_ok() && asked.check(false).is_err());
        assert!(Asked { kernel: Some("/k".into()), ..asked }.check(true).is_err(), "the modules are for one kernel");
    }

    #[test]
    fn words_of_the_command_line_come_behind_our_own() {
        let asked = Asked { append: Some("end=reboot loglevel=7".into()), ..Asked::default() };
        let own = OPTIONS.join(" ");
        assert!(
            options(&asked, &["cmdline=copies=9"]).ends_with(&format!("|cmdline={own} copies=9 end=reboot loglevel=7"))
        );
        assert!(options(&asked, &["cmdline="]).ends_with(&format!("|cmdline={own} end=reboot loglevel=7")));
    }

    #[test]
    fn our_initrd_goes_with_debians_kernel_only() {
        let payload = Payload { kernel: "/k".into(), initrd: Some("/i".into()) };
        let files = |kernel: Option<&str>, initrd: Option<&str>| {
            let asked = Asked { kernel: kernel.map(Into::into), initrd: initrd.map(Into::into), ..Asked::default() };
            asked.files(Some(&payload)).unwrap()
        };
        assert_eq!(files(None, None), ("/k".into(), Some("/i".into())));
        assert_eq!(files(None, Some("/x")), ("/k".into(), Some("/x".into())));
        assert_eq!(files(Some("/y"), None), ("/y".into(), None));
        assert_eq!(files(Some("/y"), Some("/x")), ("/y".into(), Some("/x".into())));
        assert!(Asked::default().files(None).is_err());
    }

    #[test]
    fn files_without_a_guest_for_them_are_refused() {
        assert!(Asked::default().check(false).is_ok());
        let asked = Asked { initrd: Some("/i".into()), ..Asked::default() };
        assert!(asked.check(true).is_ok());
        assert!(asked.check(false).unwrap_err().to_string().starts_with("--initrd is for the guest linux"));
    }
}
