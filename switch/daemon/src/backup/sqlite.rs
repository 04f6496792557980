//! A SQLite database as its dump. SQLite's own tool makes it, so that no C library has to be linked for what is done once: the
//! one program that a command of ours runs, and the daemon none.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a database begins with.
pub(super) const HEAD: &[u8] = b"SQLite format 3\0";
/// What `PRAGMA integrity_check` says of a database that is whole.
const WHOLE: &[u8] = b"ok\n";

/// The dump of a SQLite database, found to be whole, by SQLite's own tool, which writes nothing to it.
pub(super) fn dump(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut sqlite = Command::new("sqlite3");
    // No start-up file; absolute, so that no name is taken for an option.
    sqlite.args(["-batch", "-init", "/dev/null", "-readonly"]).arg(std::path::absolute(file)?);
    sqlite.args(["PRAGMA integrity_check", ".dump"]);
    let output = sqlite.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!(
            "this is a SQLite database, and the program sqlite3 that reads one is not there: install it (apt install sqlite3)"
        ),
        _ => anyhow::anyhow!("sqlite3: {error}"),
    })?;
    if let Some(dump) = output.stdout.strip_prefix(WHOLE).filter(|_| output.status.success()) {
        return Ok(dump.to_owned());
    }
    let said = [output.stderr, output.stdout].concat();
    let first = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
    anyhow::bail!("sqlite3 finds no whole database in it: {first}")
}
