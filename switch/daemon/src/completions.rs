//! `qvs completions`: the script by which a shell completes `qvs` commands, made from the command line itself.

use crate::cli::{Cli, ShellArg};
use clap::CommandFactory;
use clap_complete::{Shell, generate};

/// The script for this shell.
pub(crate) fn script(shell: ShellArg) -> String {
    let shell = match shell {
        ShellArg::Bash => Shell::Bash,
        ShellArg::Zsh => Shell::Zsh,
        ShellArg::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "qvs", &mut script);
    String::from_utf8(script).expect("the command line is told in UTF-8")
}
