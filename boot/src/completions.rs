//! Completions of the command line for shells.
//!
//! The launcher has no program of its own on the path: `cargo boot` is an alias. So the scripts complete `cargo boot --…` (the alias takes
//! options without a `--` before them) and, where somebody starts it by its file, `cargo-boot --…`.

use std::io::{self, Write};

use clap::{Command, ValueEnum};
use clap_complete::{Shell as Generator, generate};

/// The name of the launcher's program.
const PROGRAM: &str = "cargo-boot";

/// The shells that there are completions for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// To be sourced, from ~/.bashrc for instance.
    Bash,
    /// A file _cargo-boot in a directory of $fpath; cargo's own completions hand the words of `cargo boot` on to it.
    Zsh,
    /// A file in ~/.config/fish/conf.d.
    Fish,
}

impl Shell {
    /// The script for a command line.
    pub fn script(self, line: Command) -> String {
        let script = generated(
            line,
            match self {
                Self::Bash => Generator::Bash,
                Self::Zsh => Generator::Zsh,
                Self::Fish => Generator::Fish,
            },
        );
        match self {
            Self::Bash => script + BASH_ALIAS,
            Self::Zsh => script,
            Self::Fish => format!("{script}{}", fish_alias(&script)),
        }
    }

    /// Writes the script for a command line to standard output.
    ///
    /// # Errors
    /// Standard output takes no more.
    pub fn print(self, line: Command) -> io::Result<()> {
        let mut output = io::stdout().lock();
        output.write_all(self.script(line).as_bytes())?;
        output.flush()
    }
}

/// What clap makes of a command line, for the program's own name.
fn generated(line: Command, shell: Generator) -> String {
    let mut script = Vec::new();
    generate(shell, &mut line.name(PROGRAM).bin_name(PROGRAM), PROGRAM, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Bash completes by a command's first word alone. So this puts itself before what completes `cargo`, keeps the words of `cargo boot`, with
/// or without `--`, and passes all others on.
const BASH_ALIAS: &str = r#"
_cargo__boot_alias() {
    if [[ "${COMP_WORDS[1]}" == boot && COMP_CWORD -gt 1 ]]; then
        local skip=2
        [[ "${COMP_WORDS[2]}" == -- && COMP_CWORD -gt 2 ]] && skip=3
        COMP_WORDS=(cargo-boot "${COMP_WORDS[@]:skip}")
        COMP_CWORD=$((COMP_CWORD - skip + 1))
        _cargo__boot cargo-boot "$2" "${COMP_WORDS[COMP_CWORD - 1]}"
    elif [[ -n "$_cargo__boot_others" ]]; then
        "$_cargo__boot_others" "$@"
    fi
}
declare -F _completion_loader > /dev/null && _completion_loader cargo
[[ "$(complete -p cargo 2> /dev/null)" =~ -F\ ([^ ]+) && "${BASH_REMATCH[1]}" != _cargo__boot_alias ]] &&
    _cargo__boot_others="${BASH_REMATCH[1]}"
complete -F _cargo__boot_alias -o bashdefault -o default cargo
"#;

/// The same options again, for `cargo` where its subcommand is `boot`.
fn fish_alias(script: &str) -> String {
    let of_program = format!("complete -c {PROGRAM} ");
    let of_cargo = "complete -c cargo -n '__fish_seen_subcommand_from boot' ";
    let name = "complete -c cargo -n '__fish_use_subcommand' -f -a boot -d 'Boot imsvisor on a machine'\n";
    // A value's list may span lines, so the text is taken as a whole.
    format!("\n{name}{}", script.replace(&of_program, of_cargo))
}

#[cfg(test)]
mod tests {
    use std::process;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::Options;

    /// What bash offers for the last of these words, after what `before` has set up.
    fn bash(before: &str, words: &[&str]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("completions.bash");
        std::fs::write(&script, Shell::Bash.script(Options::command())).unwrap();
        // As bash itself calls the function: the command, the word, the word before it.
        let program = r#"eval "$1"; source "$2"; shift 2; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            [[ "$(complete -p "$1")" =~ -F\ ([^ ]+) ]]
            "${BASH_REMATCH[1]}" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}""#;
        let mut bash = process::Command::new("bash");
        bash.args(["--norc", "-c", program, "bash", before]).arg(&script).args(words);
        let output = bash.output().expect("bash");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_the_alias_and_the_program_and_leaves_cargos_other_commands_alone() {
        for words in [&["cargo", "boot", "--mac"][..], &["cargo", "boot", "--", "--mac"], &["cargo-boot", "--mac"]] {
            assert_eq!(bash("", words), ["--machine"], "{words:?}");
        }
        assert_eq!(bash("", &["cargo", "boot", "--quiet", "--machine", "b"]), ["bochs"]);
        assert_eq!(bash("", &["cargo", "build", "--mac"]), [""]);
        let others = "_others() { COMPREPLY=(\"of $1\"); }; complete -F _others cargo";
        assert_eq!(bash(others, &["cargo", "build", "--mac"]), ["of cargo"]);
        assert_eq!(bash(others, &["cargo", "boot", "--mac"]), ["--machine"]);
    }

    #[test]
    fn zsh_and_fish_know_each_option_and_each_machine() {
        let zsh = Shell::Zsh.script(Options::command());
        assert!(zsh.starts_with("#compdef cargo-boot\n"), "{zsh}");
        let fish = Shell::Fish.script(Options::command());
        for option in Options::command().get_arguments().filter_map(clap::Arg::get_long) {
            assert!(zsh.contains(&format!("--{option}")), "{option}");
            for command in ["cargo-boot", "cargo -n '__fish_seen_subcommand_from boot'"] {
                let of = |line: &str| {
                    line.starts_with(&format!("complete -c {command} ")) && line.contains(&format!(" -l {option}"))
                };
                assert!(fish.lines().any(of), "{command} {option}");
            }
        }
        assert!(zsh.contains("nested"), "{zsh}");
        assert_eq!(fish.matches("nested\\t").count(), 2, "a list of values is whole for both commands\n{fish}");
    }
}
