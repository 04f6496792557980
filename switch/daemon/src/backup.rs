//! `qvs store`: takes the state of a daemon that does not run away as text, and brings it back.
//!
//! It works on the store's file itself, so the daemon must not: the store's lock says who has it. A file that is there is
//! never overwritten, a store that holds something only if that is said, and nothing is written before all was read and
//! checked. Run as root it leaves what it makes to the owner of the directory, who may be a daemon without privileges.

mod sqlite;

use crate::cli::{ExportArgs, ImportArgs, Origin, StoreCommand};
use crate::settings::Settings;
use crate::{FAILED, Outcome, WRONG};
use api::store::{Backup, Essex, Store, StoreError};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::Path;

/// Does what the command says; answers what was done.
pub(crate) fn store(command: &StoreCommand) -> Outcome {
    match command {
        StoreCommand::Export(args) => export(args),
        StoreCommand::Import(args) => import(args),
    }
}

fn failed(why: impl std::fmt::Display) -> (u8, String) {
    (FAILED, why.to_string())
}

fn settings(file: Option<&Path>) -> Result<Settings, (u8, String)> {
    Settings::load(file).map_err(|error| (WRONG, error.to_string()))
}

/// What is in etcd is saved and brought back by etcd's own means.
fn is_in_file(settings: &Settings) -> Result<(), (u8, String)> {
    match settings.store.etcd() {
        Some(_) => Err(failed("the state is in etcd (store.url): save it by `etcdctl snapshot save`")),
        None => Ok(()),
    }
}

fn open(path: &Path) -> Result<Store, (u8, String)> {
    Store::open(path).map_err(|error| match error {
        StoreError::InUse { .. } => failed(format!("{error}; stop that first")),
        error => failed(error),
    })
}

fn export(args: &ExportArgs) -> Outcome {
    let settings = settings(args.config.as_deref())?;
    is_in_file(&settings)?;
    let path = settings.store.path();
    if !path.exists() {
        return Err(failed(format!("{}: there is no store", path.display())));
    }
    let backup = open(path)?.export().map_err(failed)?;
    let file = args.file.display();
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file);
    let out = out.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => failed(format!("{file} is there already and is not overwritten")),
        _ => failed(format!("{file}: {error}")),
    })?;
    if let Err(error) = write(&backup, &out) {
        // Half a backup is worth nothing, and the disk may be full.
        let _ = std::fs::remove_file(&args.file);
        return Err(failed(format!("{file}: {error}")));
    }
    Ok(format!("{backup} written to {file}\n"))
}

fn write(backup: &Backup, out: &File) -> std::io::Result<()> {
    let mut text = BufWriter::new(out);
    backup.write(&mut text)?;
    text.flush()?;
    out.sync_all()
}

fn import(args: &ImportArgs) -> Outcome {
    let settings = settings(args.config.as_deref())?;
    let (backup, notes) =
        read(&args.file, args.from).map_err(|error| failed(format!("{}: {error:#}", args.file.display())))?;
    is_in_file(&settings)?;
    let path = settings.store.path();
    if args.dry_run {
        let before = if path.exists() { open(path)?.export().map_err(failed)? } else { Backup::default() };
        if !before.is_empty() && !args.replace {
            let why = StoreError::NotEmpty { records: before.len() as u64 };
            return Err(failed(format!("{notes}would write {backup}, but {}: {why}", path.display())));
        }
        let instead = if before.is_empty() { String::new() } else { format!(", in place of {before}") };
        return Ok(format!("{notes}would write {backup} to {}{instead}\n", path.display()));
    }
    let store = open(path)?;
    store.import(&backup, args.replace).map_err(failed)?;
    drop(store);
    hand_over(path).map_err(|error| failed(format!("imported, but {}: {error}", path.display())))?;
    Ok(format!("{notes}{backup} written to {}\n", path.display()))
}

/// Reads a file; answers what is in it, and lines to be said of it.
fn read(file: &Path, origin: Origin) -> anyhow::Result<(Backup, String)> {
    match origin {
        Origin::Qvs => Ok((Backup::read(&mut BufReader::new(File::open(file)?))?, String::new())),
        Origin::QuantumEssex => {
            let bytes = std::fs::read(file)?;
            let essex = Essex::read(&if bytes.starts_with(sqlite::HEAD) { sqlite::dump(file)? } else { bytes })?;
            let tenant = |(tenant, (networks, ports)): (_, (usize, usize))| {
                format!("tenant {tenant:?}: networks {networks}, ports {ports}\n")
            };
            let tenants = essex.by_tenant().into_iter().map(tenant);
            let notes = essex.notes.iter().map(|note| format!("{note}\n"));
            Ok((essex.backup.clone(), tenants.chain(notes).collect()))
        }
    }
}

/// Gives the store's files to the owner of their directory, if we are root and they are not his.
fn hand_over(path: &Path) -> std::io::Result<()> {
    let Some(directory) = path.parent().filter(|_| rustix::process::geteuid().is_root()) else { return Ok(()) };
    let owner = std::fs::metadata(directory)?;
    for file in [path, &path.with_added_extension("pid")] {
        chown(file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}
