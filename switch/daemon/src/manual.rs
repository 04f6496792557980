//! `qvs manual`: the pages that man(1) shows, made from the command line itself.

use crate::cli::Cli;
use clap::CommandFactory;
use std::io;
use std::path::Path;

/// Writes a page for `qvs` and one for each command, `qvs-plug.1` and so on.
///
/// # Errors
/// If the directory cannot be written.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), directory)
}
