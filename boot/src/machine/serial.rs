//! A machine's serial ports, and their other ends.

use anyhow::{Context, Result, ensure};
use imsvisor::options::{Console, Options, SerialPort};

use super::Config;

/// What is at a serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port<'a> {
    /// Nothing. The machine has the port, and loses the bytes that are written there.
    Nothing,
    /// A file of the run's directory.
    File(&'a str),
    /// A device, for a person at a terminal.
    Terminal(&'a str),
}

/// The words of the hypervisor's command line as it reads them; refuses words that it would pass over.
pub fn check_options(words: &[String]) -> Result<Options> {
    let line = words.join(" ");
    let (options, wrong) = Options::parse(&line);
    ensure!(wrong.is_none(), "{}", wrong.map_or_else(String::new, |wrong| wrong.to_string()));
    Ok(options)
}

/// The console's port on an emulated machine, and the terminal's beside it. No emulated firmware names one.
fn console_and_terminal(words: &[String]) -> Result<[usize; 2]> {
    let console = match check_options(words)?.console {
        Console::Auto => SerialPort::COM[0],
        Console::At(port) => port,
    };
    let number =
        |port: SerialPort| port.number().with_context(|| format!("{port}: the emulated machine has COM1 to COM4"));
    Ok([number(console)?, number(console.terminal_beside())?])
}

/// The number of the console's port on an emulated machine, from 1 on.
pub fn console_number(words: &[String]) -> Result<usize> {
    console_and_terminal(words).map(|[console, _]| console)
}

/// The ports of a machine, COM1's first: the console's file, and a terminal where the hypervisor looks for it.
pub(super) fn ports<'a>(config: &'a Config, file: &'a str) -> Result<Vec<Port<'a>>> {
    let words = if config.native { &[][..] } else { &config.hypervisor_options };
    let [console, terminal] = console_and_terminal(words)?;
    let last = if config.terminal.is_some() { console.max(terminal) } else { console };
    let at = |number| match &config.terminal {
        _ if number == console => Port::File(file),
        Some(device) if number == terminal => Port::Terminal(device),
        _ => Port::Nothing,
    };
    Ok((1..=last).map(at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(words: &[&str], terminal: Option<&str>) -> Config {
        let hypervisor_options = words.iter().map(|word| (*word).to_owned()).collect();
        Config { hypervisor_options, terminal: terminal.map(str::to_owned), ..Config::default() }
    }

    #[test]
    fn the_console_has_its_file_and_the_terminal_is_beside_it() {
        use Port::{File, Nothing, Terminal};
        for (words, terminal, expected) in [
            (&[][..], None, &[File("f")][..]),
            (&["console=auto"], Some("t"), &[File("f"), Terminal("t")]),
            (&["console=com2"], None, &[Nothing, File("f")]),
            (&["console=0x2f8", "screen=off"], Some("t"), &[Terminal("t"), File("f")]),
            (&["console=com4"], Some("t"), &[Nothing, Terminal("t"), Nothing, File("f")]),
        ] {
            assert_eq!(ports(&config(words, terminal), "f").unwrap(), expected, "{words:?}");
        }
    }

    #[test]
    fn a_guest_in_the_hypervisors_place_has_words_of_its_own_and_reports_on_com1() {
        let config = Config { native: true, ..config(&["profile=short", "console=com2"], None) };
        assert_eq!(ports(&config, "f").unwrap(), [Port::File("f")]);
    }

    #[test]
    fn what_the_hypervisor_would_pass_over_and_a_port_that_is_not_there_are_refused() {
        for (word, why) in [
            ("console=com5", "console=com5: auto, com1 to com4"),
            ("quiet", "options are console=, screen=, smt= and mitigations="),
            ("console=0xc000", "COM1 to COM4"),
        ] {
            let error = ports(&config(&[word], None), "f").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
