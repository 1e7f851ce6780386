//! The README's section.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Figure, peer, table};

const BEGIN: &str = "<!-- figures: begin (cargo bench -- --update) -->\n";
const END: &str = "<!-- figures: end -->\n";

/// Puts the table between the README's marks.
pub fn update(readme: &Path, figures: &[Figure], machine: &str) -> Result<PathBuf> {
    let text = fs::read_to_string(readme).context("the README")?;
    let text = replaced(&text, &section(figures, machine)).context("the README has no place for the figures")?;
    fs::write(readme, text).context("the README")?;
    Ok(readme.to_owned())
}

fn section(figures: &[Figure], machine: &str) -> String {
    let kvm: Vec<_> =
        peer::KVM.iter().map(|peer| format!("{}: {}", peer.what, table::grouped(peer.instructions))).collect();
    format!(
        "Machine: {machine}.\n\n{}\nFor comparison, {}: {}.\n\n![Instructions by number of live slots](tests/figures/slots.svg)\n",
        table::markdown(figures),
        peer::SOURCE,
        kvm.join("; ")
    )
}

fn replaced(text: &str, section: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some([before, BEGIN, section, END, after].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_begins_with_the_machine() {
        let section = section(&[], "bochs, generous");
        assert!(section.starts_with("Machine: bochs, generous.\n\n| scenario"), "{section}");
    }

    #[test]
    fn only_what_lies_between_the_marks_changes() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replaced(&text, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        assert_eq!(replaced("a\nb\n", "new\n"), None);
    }
}
