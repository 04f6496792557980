//! Every chore of this repository, one entry: `cargo xtask`.
//!
//! It needs nothing but Rust to build. What a chapter of the tests needs besides is found, and installed as root, by the
//! chapter's own list. Tests run in namespaces of their own, so that no setting of the host has to be restored.

mod chapters;
mod compare;
mod deb;
mod host;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Every chore of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run the tests, all chapters or one; installs the Debian packages they need if run as root
    Test {
        /// The chapter to run alone
        #[arg(value_enum)]
        chapter: Option<chapters::Chapter>,
        /// Install and download nothing: a chapter that lacks something fails
        #[arg(long)]
        no_install: bool,
    },
    /// Run the long forms of the seeded tests: random input, kills, configuration changes
    Soak {
        /// How long in all
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// Install and download nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Measure the switch beside its peers; all together write benches/results/latest.md; 25 minutes, as root
    #[command(disable_help_flag = true)]
    Compare {
        /// What to measure; --help tells
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Build the Debian package under target/debian
    Deb,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().chore {
        Chore::Test { chapter, no_install } => chapters::test(chapter, !no_install),
        Chore::Soak { minutes, no_install } => chapters::soak(minutes, !no_install),
        Chore::Compare { words } => compare::compare(&words),
        Chore::Deb => deb::build().map(|path| {
            println!("{}", path.display());
            true
        }),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
