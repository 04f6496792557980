//! `qvs token`: makes a token and adds its hash to the file of tokens.
//!
//! The file is replaced whole: the daemon may read it at any moment, and a disk that is full must not cost the tokens that
//! are there. It stays its owner's, and a new one is the daemon's user's, so that root may make tokens for a daemon that
//! is not root.

use crate::cli::TokenArgs;
use crate::identity::{rights_of_secrets, wall_clock};
use crate::settings::{IdentityMode, Settings};
use crate::{FAILED, Outcome, WRONG};
use anyhow::Context;
use api::identity::tokens::{NewToken, check_text_of_file, make};
use api::watched::{FileError, Rights, read};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

/// What a file that is new begins with.
const HEAD: &str = "# Tokens of the Quantum API, made by `qvs token`; only their hashes are here. To revoke one, take out its entry.\n";

/// Makes a token; answers it, as a line.
pub(crate) fn token(args: &TokenArgs) -> Outcome {
    let settings = Settings::load(args.config.as_deref()).map_err(|error| (WRONG, error.to_string()))?;
    let new = NewToken {
        user: args.user.as_deref().unwrap_or(&args.tenant).into(),
        project: args.tenant.as_str().into(),
        roles: args.role.iter().map(|role| role.as_str().into()).collect(),
        expires: args.days.map(|days| wall_clock() + i64::from(days) * 86_400),
    };
    let (token, entry) = make(&new).map_err(|why| (FAILED, why))?;
    let path = &settings.identity.tokens;
    add(path, rights_of_secrets(&settings), &entry).map_err(|error| (FAILED, format!("{error:#}")))?;
    if settings.identity.mode != IdentityMode::Tokens {
        // Nothing can be done about a closed standard error.
        let _ = writeln!(
            std::io::stderr(),
            "qvs: {} has it, but identity.mode is not \"tokens\": nobody will ask for it",
            path.display()
        );
    }
    Ok(format!("{token}\n"))
}

/// Adds an entry to the file of tokens, which must have these rights.
fn add(path: &Path, rights: Rights, entry: &str) -> anyhow::Result<()> {
    let directory = path.parent().context("the file of tokens is in no directory")?;
    if !directory.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    // From reading to replacing alone, or of two that add at once one is lost. The directory is locked, because the file is
    // another one each time.
    let alone = File::open(directory).and_then(|directory| directory.lock().map(|()| directory));
    let _alone = alone.with_context(|| format!("locking {}", directory.display()))?;
    let before = match read(path, rights) {
        Ok(text) => text,
        Err(FileError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => HEAD.to_owned(),
        Err(error) => return Err(error.into()),
    };
    let text = format!("{}\n\n{entry}", before.trim_end());
    check_text_of_file(&text).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
    // Beside it, so that it can take its place in one step; of a name nobody else uses.
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let replaced = write(&beside, path, directory, rights, &text);
    if replaced.is_err() {
        // The error that matters is the first.
        let _ = std::fs::remove_file(&beside);
    }
    replaced.with_context(|| format!("writing {}", path.display()))
}

fn write(beside: &Path, path: &Path, directory: &Path, rights: Rights, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    let (user, group) = match (std::fs::metadata(path), rights) {
        (Err(_), Rights::OwnerOnlyOf(user)) => (user, None),
        (found, _) => {
            let owner = found.or_else(|_| std::fs::metadata(directory))?;
            (owner.uid(), Some(owner.gid()))
        }
    };
    if user != file.metadata()?.uid() {
        fchown(&file, Some(user), group)?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(beside, path)?;
    File::open(directory)?.sync_all()
}
