//! `qvs store`: takes the state of a daemon that does not run away as text, and brings it back.
//!
//! It works on the store's file itself, so the daemon must not: the store's lock says who has it. A file that is there is
//! never overwritten, a store that holds something only if that is said, and nothing is written before all was read and
//! checked. Run as root it leaves what it makes to the owner of the directory, who may be a daemon without privileges, however
//! it ends; and it follows no link there.

mod sqlite;

use crate::cli::{ExportArgs, ImportArgs, Origin, StoreCommand};
use crate::cluster::BOOTS;
use crate::settings::Settings;
use crate::{FAILED, Outcome, WRONG};
use api::host::{DeviceSpec, Plug};
use api::network_type::SegmentRules;
use api::store::{Backup, Essex, Store, StoreError};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
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
fn is_in_file(settings: &Settings, instead: &str) -> Result<(), (u8, String)> {
    match settings.store.etcd() {
        Some(_) => Err(failed(format!("the state is in etcd (store.url): {instead}"))),
        None => Ok(()),
    }
}

fn told(error: StoreError) -> (u8, String) {
    match error {
        StoreError::InUse { .. } => failed(format!("{error}; stop that first")),
        error => failed(error),
    }
}

fn export(args: &ExportArgs) -> Outcome {
    let settings = settings(args.config.as_deref())?;
    is_in_file(&settings, "save it by `etcdctl snapshot save`")?;
    let path = settings.store.path();
    if !path.exists() {
        return Err(failed(format!("{}: there is no store", path.display())));
    }
    let backup = handed_over(path, || Store::look(path).map_err(told))?;
    let file = args.file.display();
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file);
    let out = out.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => failed(format!("{file} is there already and is not overwritten")),
        _ => failed(format!("{file}: {error}")),
    })?;
    if let Err(error) = write(&backup, &out, &args.file) {
        // Half a backup is worth nothing, and the disk may be full.
        let _ = std::fs::remove_file(&args.file);
        return Err(failed(format!("{file}: {error}")));
    }
    Ok(format!("{backup} written to {file}\n"))
}

/// Writes a backup; it and its name are on the disk when this returns.
fn write(backup: &Backup, out: &File, path: &Path) -> std::io::Result<()> {
    let mut text = BufWriter::new(out);
    backup.write(&mut text)?;
    text.flush()?;
    out.sync_all()?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn import(args: &ImportArgs) -> Outcome {
    let settings = settings(args.config.as_deref())?;
    let instead = match args.from {
        Origin::Qvs => {
            "bring it back by `etcdctl snapshot restore`; a file that `qvs store export` wrote cannot be put there"
        }
        Origin::QuantumEssex => "the original's records cannot be put there, only into a store that is a file",
    };
    is_in_file(&settings, instead)?;
    let (backup, notes) = read(&args.file, args.from, &settings.segments.rules())
        .map_err(|error| failed(format!("{}: {error:#}", args.file.display())))?;
    let path = settings.store.path();
    if args.dry_run {
        let before = match path.exists() {
            true => handed_over(path, || Store::look(path).map_err(told))?,
            false => Backup::default(),
        };
        let Import { backup, notes, records } = Import::over(&before, backup, notes, args.from);
        if records > 0 && !args.replace {
            let why = StoreError::NotEmpty { records };
            return Err(failed(format!("{notes}would write {backup}, but {}: {why}", path.display())));
        }
        let instead = if before.is_empty() { String::new() } else { format!(", in place of {before}") };
        return Ok(format!("{notes}would write {backup} to {}{instead}\n", path.display()));
    }
    // What is written is said, and what is left to do, also if it could not be handed over then.
    let mut said = String::new();
    let outcome = handed_over(path, || {
        let store = Store::open(path).map_err(told)?;
        let import = Import::over(&store.export().map_err(failed)?, backup, notes, args.from);
        if import.records > 0 && !args.replace {
            return Err(failed(StoreError::NotEmpty { records: import.records }));
        }
        // What there is was counted above, and the store is ours meanwhile.
        store.import(&import.backup, true).map_err(failed)?;
        said = format!("{}{} written to {}\n", import.notes, import.backup, path.display());
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(said),
        Err((code, why)) => Err((code, format!("{said}{why}"))),
    }
}

/// What an import comes to.
struct Import {
    /// What is to be in the store.
    backup: Backup,
    /// Lines to be said of it.
    notes: String,
    /// Records that go by it.
    records: u64,
}

impl Import {
    /// An import over a store that holds `before`. The original knew no plugs: its records come to those that are there.
    fn over(before: &Backup, mut backup: Backup, mut notes: String, origin: Origin) -> Import {
        let mut records = before.len();
        match origin {
            Origin::QuantumEssex => {
                records -= before.plugs.len();
                backup.plugs.clone_from(&before.plugs);
            }
            Origin::Qvs => notes.extend(orphans(&before.plugs, &backup.plugs)),
        }
        // They name what a host has in a cloud; the file may be from another.
        backup.extras.retain(|(kind, key), _| (kind.as_str(), key.as_str()) != BOOTS);
        Import { backup, notes, records: records as u64 }
    }
}

/// The TAPs whose record goes: a line each, how they are removed, which nobody else will do.
fn orphans<'a>(before: &'a [Plug], after: &'a [Plug]) -> impl Iterator<Item = String> + 'a {
    let is_kept = |plug: &Plug| after.iter().any(|other| other.made == plug.made && other.device == plug.device);
    before.iter().filter(move |plug| plug.made.is_some() && !is_kept(plug)).filter_map(|plug| match &plug.device {
        DeviceSpec::Tap { name, netns, .. } => {
            let remove = match netns {
                None => format!("ip link del {name}"),
                Some(path) if path.starts_with('/') => format!("nsenter --net={path} ip link del {name}"),
                Some(netns) => format!("ip -n {netns} link del {name}"),
            };
            Some(format!("TAP {name} of {:?} is not in the file: remove it yourself by `{remove}`\n", &*plug.interface))
        }
        _ => None,
    })
}

/// Reads a file; answers what is in it, and lines to be said of it.
fn read(file: &Path, origin: Origin, rules: &SegmentRules) -> anyhow::Result<(Backup, String)> {
    match origin {
        Origin::Qvs => Ok((Backup::read(&mut BufReader::new(File::open(file)?))?, String::new())),
        Origin::QuantumEssex => {
            let bytes = std::fs::read(file)?;
            let dump = if bytes.starts_with(sqlite::HEAD) { sqlite::dump(file)? } else { bytes };
            let essex = Essex::read(&dump, rules)?;
            let tenant = |(tenant, (networks, ports)): (_, (usize, usize))| {
                format!("tenant {tenant:?}: networks {networks}, ports {ports}\n")
            };
            let tenants = essex.by_tenant().into_iter().map(tenant);
            let notes = essex.notes.iter().map(|note| format!("{note}\n"));
            Ok((essex.backup.clone(), tenants.chain(notes).collect()))
        }
    }
}

/// Does something with the store at `path` and gives what it made there to the owner of the directory, however that ended.
pub(crate) fn handed_over<T>(path: &Path, work: impl FnOnce() -> Result<T, (u8, String)>) -> Result<T, (u8, String)> {
    let outcome = work();
    let handed = hand_over(path).map_err(|error| failed(format!("giving {} its owner: {error}", path.display())));
    outcome.and_then(|value| handed.map(|()| value))
}

/// Gives the store's files to the owner of their directory, if we are root and they are not his.
fn hand_over(path: &Path) -> std::io::Result<()> {
    let Some(directory) = path.parent().filter(|_| rustix::process::geteuid().is_root()) else { return Ok(()) };
    let (Ok(owner), Some(name)) = (std::fs::metadata(directory), path.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(());
    };
    for entry in std::fs::read_dir(directory)? {
        let file = entry?.file_name();
        let is_ours = |rest: &str| matches!(rest, "" | ".pid" | ".new") || rest.starts_with(".schema-");
        if file.to_str().and_then(|file| file.strip_prefix(name)).is_some_and(is_ours) {
            give(&directory.join(file), owner.uid(), owner.gid())?;
        }
    }
    Ok(())
}

/// Gives a file to a user who may write its directory: so no link to what is not his is followed, neither symbolic nor hard.
fn give(file: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::LOOP) => return Ok(()),
        file => file?,
    };
    let found = file.metadata()?;
    if found.uid() != uid && found.is_file() && found.nlink() == 1 {
        fchown(&file, Some(uid), Some(gid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_starts_of_the_host_that_was_exported_are_not_imported() {
        let extra = |kind: &str, key: &str| ((kind.to_owned(), key.to_owned()), b"[]".to_vec());
        let extras = [extra(BOOTS.0, BOOTS.1), extra("credential", "id")].into();
        let import =
            Import::over(&Backup::default(), Backup { extras, ..Backup::default() }, String::new(), Origin::Qvs);
        assert_eq!(import.backup.extras, [extra("credential", "id")].into());
    }

    #[test]
    fn an_import_that_cannot_be_handed_over_says_what_it_did_and_what_is_left_to_do() {
        let dir = std::env::temp_dir().join(format!("qvs-import-{}", std::process::id()));
        let state = dir.join("state");
        std::fs::create_dir_all(&state).unwrap();
        let config = dir.join("qvs.toml");
        std::fs::write(&config, format!("state_dir = {state:?}\nrun_dir = {:?}\n", dir.join("run"))).unwrap();
        let path = state.join("state.redb");
        let device = DeviceSpec::Tap { name: "tap0".to_owned(), netns: None, queues: 1 };
        let plug = Plug { made: Some("here".to_owned()), ..Plug::new("vm", device) };
        Store::open(&path).unwrap().put_plug(&plug).unwrap();
        let file = dir.join("backup");
        Backup::default().write(&mut File::create(&file).unwrap()).unwrap();
        // For root it is a file of the store that cannot be opened, so that it cannot be given to anybody.
        let _socket = UnixListener::bind(state.join("state.redb.new")).unwrap();
        let args = ImportArgs { file, from: Origin::Qvs, replace: true, dry_run: false, config: Some(config) };
        let outcome = import(&args);
        assert_eq!(outcome.is_err(), rustix::process::geteuid().is_root(), "{outcome:?}");
        let said = outcome.unwrap_or_else(|(_, why)| why);
        assert!(said.contains("ip link del tap0") && said.contains("written to"), "{said}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
