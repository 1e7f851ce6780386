//! The documents' figures: the main rows in the README, all of them in a page of their own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Figure, peer, table};

const BEGIN: &str = "<!-- figures: begin (cargo bench -- --update) -->\n";
const END: &str = "<!-- figures: end -->\n";

/// The page of all figures, in the workspace.
const PAGE: &str = "tests/figures/README.md";

/// The rows that the README has: scenario, variant, live slots.
const MAIN: [(&str, &str, u64); 8] = [
    ("null-exit", "cpuid", 0),
    ("slot-write", "data", 8192),
    ("slot-write", "first-unmask", 16),
    ("retarget", "hypercall", 16),
    ("map-256", "hypercall", 256),
    ("interrupt-latency", "injected-running", 64),
    ("interrupt-stream", "injected", 64),
    ("interrupt-latency", "posted-running", 64),
];

/// Puts the figures between the marks of the workspace's README and of the page. Returns both files.
pub fn update(workspace: &Path, figures: &[Figure], machine: &str) -> Result<[PathBuf; 2]> {
    let main: Vec<Figure> = figures.iter().filter(|figure| is_main(figure)).cloned().collect();
    let readme = put(&workspace.join("README.md"), &format!("Machine: {machine}.\n\n{}", table::markdown(&main)))?;
    let page = put(&workspace.join(PAGE), &section(figures, machine))?;
    Ok([readme, page])
}

fn is_main(figure: &Figure) -> bool {
    MAIN.contains(&(&figure.scenario, &figure.variant, figure.slots))
}

fn put(file: &Path, section: &str) -> Result<PathBuf> {
    let name = || file.display().to_string();
    let text = fs::read_to_string(file).with_context(name)?;
    let text = replaced(&text, section).with_context(|| format!("{} has no place for the figures", name()))?;
    fs::write(file, text).with_context(name)?;
    Ok(file.to_owned())
}

fn section(figures: &[Figure], machine: &str) -> String {
    let kvm: Vec<_> =
        peer::KVM.iter().map(|peer| format!("{}: {}", peer.what, table::grouped(peer.instructions))).collect();
    format!(
        "Machine: {machine}.\n\n{}\nFor comparison, {}: {}.\n\n![Instructions by number of live slots](slots.svg)\n",
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

    /// A row that is renamed must not vanish from the README without a word.
    #[test]
    fn the_documents_have_their_marks_and_every_main_row() {
        let workspace = crate::bench::paths().unwrap().workspace.clone();
        let between = |file: &str| {
            let text = fs::read_to_string(workspace.join(file)).unwrap();
            let (_, rest) = text.split_once(BEGIN).unwrap();
            rest.split_once(END).unwrap().0.to_owned()
        };
        for (file, most) in [("README.md", MAIN.len()), (PAGE, usize::MAX)] {
            let section = between(file);
            for (scenario, variant, slots) in MAIN {
                assert!(
                    section.contains(&format!("\n| {scenario} | {variant} | {slots} |")),
                    "{file}: {scenario} {variant}"
                );
            }
            assert!(section.lines().filter(|line| line.starts_with("| ")).count() <= most.saturating_add(1), "{file}");
        }
    }
}
