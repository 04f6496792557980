//! A store as text: one JSON object a line, to be kept elsewhere and read back, by this version or a later one.
//!
//! The first line names the format and its version, the last one counts the lines between; a file that was cut is noticed by
//! its want. Between them come networks, ports, plugs and extras, each under its own name, with the fields of its record.
//! Like records, lines gain fields and lose none, and a reader ignores those it does not know. Sealed secrets stay sealed:
//! without the key, which is not in here, they are useless.
//!
//! A backup is checked whole before anything is written, and written in one transaction.

use super::lock::PidLock;
use super::schema::{self, EXTRAS, Found, NETWORKS, PLUGS, PORTS};
use super::{Store, StoreError, file, read_all, records};
use crate::address_pair::AddressPairs;
use crate::hex;
use crate::host::{DeviceSpec, Plug};
use crate::model::{AdminState, Inconsistent, LogicalPort, Model, Network, SERIAL_MAX, TEXT_BYTES_MAX};
use crate::network_type::NetworkType;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, WriteTransaction};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io::{self, BufRead, Write};
use std::path::Path;

/// The version of the format written here.
pub const BACKUP_VERSION: u64 = 1;
const FORMAT: &str = "qvs-store";
/// Characters of an interface's id that are told of one that cannot be.
const SHOWN_CHARS_MAX: usize = 64;

/// Everything a store holds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Backup {
    /// Tenants' networks.
    pub networks: Vec<Network>,
    /// Their ports.
    pub ports: Vec<LogicalPort>,
    /// Operators' plugs.
    pub plugs: Vec<Plug>,
    /// What extensions keep, by kind and key.
    pub extras: BTreeMap<(String, String), Vec<u8>>,
}

/// Why a text is no backup, or could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The first line is not that of a backup.
    #[error("this is no backup of a store: its first line must name the format {FORMAT:?}")]
    NoBackup,
    /// A newer program wrote it.
    #[error("the backup has version {found}, this program knows up to {BACKUP_VERSION}: use the newer program")]
    Newer {
        /// Its version.
        found: u64,
    },
    /// A line is not what it should be.
    #[error("line {line}: {why}")]
    BadLine {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The last line is missing or counts otherwise.
    #[error("the backup is cut off: it has {found} records and no last line that says so")]
    CutOff {
        /// Records there are.
        found: u64,
    },
    /// Its records contradict each other.
    #[error("the backup contradicts itself: {0}")]
    Inconsistent(#[from] Inconsistent),
}

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Store(Head),
    Network(NetworkLine),
    Port(PortLine),
    Plug(Plug),
    Extra(ExtraLine),
    End(End),
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct NetworkLine {
    id: String,
    tenant: String,
    name: Option<String>,
    #[serde(default, skip_serializing_if = "NetworkType::is_local")]
    segment: NetworkType,
    serial: u64,
}

#[derive(Serialize, Deserialize)]
struct PortLine {
    id: String,
    network: String,
    state: AdminState,
    attachment: Option<String>,
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    allowed_address_pairs: AddressPairs,
    serial: u64,
}

/// What an extension keeps: text where it is text.
#[derive(Serialize, Deserialize)]
struct ExtraLine {
    kind: String,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct End {
    records: u64,
}

impl Backup {
    /// How many records there are.
    pub fn len(&self) -> usize {
        self.networks.len() + self.ports.len() + self.plugs.len() + self.extras.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lines(&self) -> impl Iterator<Item = Line> + '_ {
        let network = |network: &Network| {
            Line::Network(NetworkLine {
                id: network.id.to_string(),
                tenant: network.tenant.to_string(),
                name: network.name.as_ref().map(ToString::to_string),
                segment: network.network_type.clone(),
                serial: network.serial,
            })
        };
        let port = |port: &LogicalPort| {
            Line::Port(PortLine {
                id: port.id.to_string(),
                network: port.network.to_string(),
                state: port.state,
                attachment: port.attachment.as_ref().map(ToString::to_string),
                allowed_address_pairs: port.pairs.clone(),
                serial: port.serial,
            })
        };
        let extra = |((kind, key), value): (&(String, String), &Vec<u8>)| {
            let text = String::from_utf8(value.clone()).ok();
            let hex = text.is_none().then(|| hex::encode(value));
            Line::Extra(ExtraLine { kind: kind.clone(), key: key.clone(), text, hex })
        };
        let head = Line::Store(Head { format: FORMAT.to_owned(), version: BACKUP_VERSION });
        std::iter::once(head)
            .chain(self.networks.iter().map(network))
            .chain(self.ports.iter().map(port))
            .chain(self.plugs.iter().cloned().map(Line::Plug))
            .chain(self.extras.iter().map(extra))
            .chain([Line::End(End { records: self.len() as u64 })])
    }

    /// Writes it as text.
    ///
    /// # Errors
    /// What the writer said.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for line in self.lines() {
            serde_json::to_writer(&mut *out, &line)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    /// [`BackupError`]
    pub fn read(text: &mut impl BufRead) -> Result<Backup, BackupError> {
        let mut backup = Backup::default();
        let mut is_ended = false;
        for (at, text) in text.lines().enumerate() {
            let bad = |why: String| BackupError::BadLine { line: at + 1, why };
            let text = match text {
                Err(error) if error.kind() == io::ErrorKind::InvalidData && at > 0 => {
                    return Err(bad(error.to_string()));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(BackupError::NoBackup),
                text => text?,
            };
            if is_ended {
                return Err(bad("comes after the last line".to_owned()));
            }
            match (at, serde_json::from_str(&text)) {
                (0, Ok(Line::Store(head))) if head.format == FORMAT => match head.version {
                    BACKUP_VERSION => {}
                    found => return Err(BackupError::Newer { found }),
                },
                (0, _) => return Err(BackupError::NoBackup),
                (_, Ok(Line::End(end))) if end.records == backup.len() as u64 => is_ended = true,
                (_, Ok(Line::End(_))) => return Err(BackupError::CutOff { found: backup.len() as u64 }),
                (_, Ok(line)) => backup.enter(line).map_err(bad)?,
                // A last line without its end is the mark of a file that was cut, and not of one that is wrong.
                (_, Err(error)) if error.is_eof() => return Err(BackupError::CutOff { found: backup.len() as u64 }),
                (_, Err(error)) => return Err(bad(error.to_string())),
            }
        }
        if !is_ended {
            return Err(if backup.is_empty() {
                BackupError::NoBackup
            } else {
                BackupError::CutOff { found: backup.len() as u64 }
            });
        }
        backup.check()?;
        Ok(backup)
    }

    fn enter(&mut self, line: Line) -> Result<(), String> {
        match line {
            Line::Network(line) => self.networks.push(Network {
                id: line.id.into(),
                tenant: line.tenant.into(),
                name: line.name.map(Into::into),
                network_type: line.segment,
                serial: line.serial,
            }),
            Line::Port(line) => self.ports.push(LogicalPort {
                id: line.id.into(),
                network: line.network.into(),
                state: line.state,
                attachment: line.attachment.map(Into::into),
                pairs: line.allowed_address_pairs,
                serial: line.serial,
            }),
            Line::Plug(plug) => self.plugs.push(plug),
            Line::Extra(line) => {
                let value = match (line.text, line.hex) {
                    (Some(text), None) => Some(text.into_bytes()),
                    (None, Some(digits)) => hex::decode(&digits),
                    _ => None,
                };
                let value = value.ok_or("an extra must have either text or hex")?;
                if self.extras.insert((line.kind, line.key), value).is_some() {
                    return Err("it comes twice".to_owned());
                }
            }
            Line::Store(_) | Line::End(_) => return Err("is not the line that belongs here".to_owned()),
        }
        Ok(())
    }

    /// Whether its records make a store.
    ///
    /// # Errors
    /// [`Inconsistent`]
    pub fn check(&self) -> Result<(), Inconsistent> {
        let networks = self.networks.iter().map(|network| network.serial);
        let mut serials: Vec<u64> = networks.chain(self.ports.iter().map(|port| port.serial)).collect();
        serials.sort_unstable();
        if let Some(pair) = serials.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Inconsistent::SerialTwice { serial: pair[0] });
        }
        if let Some(&serial) = serials.last().filter(|serial| **serial > SERIAL_MAX) {
            return Err(Inconsistent::SerialTooHigh { serial });
        }
        self.check_plugs()?;
        Model::from_records(self.networks.clone(), self.ports.clone()).map(drop)
    }

    /// The host checks more when it plugs; this is what its state relies on when it is loaded.
    fn check_plugs(&self) -> Result<(), Inconsistent> {
        let (mut interfaces, mut devices) = (HashSet::new(), HashMap::new());
        for plug in &self.plugs {
            let texts = texts(plug);
            if let Some(&(what, _)) = texts.iter().find(|(_, text)| !is_usable(text)) {
                let interface = plug.interface.chars().take(SHOWN_CHARS_MAX).collect();
                return Err(Inconsistent::BadPlug { interface, what });
            }
            if !interfaces.insert(&plug.interface) {
                return Err(Inconsistent::PluggedTwice { interface: plug.interface.clone() });
            }
            if let Some(first) = devices.insert(device(plug), &plug.interface) {
                let (first, second) = (first.clone(), plug.interface.clone());
                return Err(Inconsistent::DeviceTwice { device: device(plug).1.to_owned(), first, second });
            }
        }
        Ok(())
    }
}

/// The texts of a plug, and what they are.
fn texts(plug: &Plug) -> Vec<(&'static str, &str)> {
    let mut texts = vec![("an id", &*plug.interface)];
    texts.extend(plug.tenant.as_deref().map(|tenant| ("a tenant", tenant)));
    texts.extend(plug.macs.iter().map(|mac| ("a MAC", mac.as_str())));
    match &plug.device {
        DeviceSpec::VhostUser { path, .. } => texts.push(("a path", path)),
        DeviceSpec::Tap { name, netns, .. } | DeviceSpec::Device { name, netns, .. } => {
            texts.push(("a device", name));
            texts.extend(netns.as_deref().map(|netns| ("a namespace", netns)));
        }
        DeviceSpec::Vlan { parent, .. } => texts.push(("a parent", parent)),
    }
    texts
}

fn is_usable(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.contains('\0')
}

/// What only one plug can have: a socket by its path, an interface by its name in a namespace, a VLAN of a parent.
fn device(plug: &Plug) -> (&'static str, &str, Option<&str>, u16) {
    match &plug.device {
        DeviceSpec::VhostUser { path, .. } => ("socket", path, None, 0),
        DeviceSpec::Tap { name, netns, .. } | DeviceSpec::Device { name, netns, .. } => {
            ("interface", name, netns.as_deref(), 0)
        }
        DeviceSpec::Vlan { parent, vlan } => ("VLAN", parent, None, vlan.get()),
    }
}

impl fmt::Display for Backup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        let attached = self.ports.iter().filter(|port| port.attachment.is_some()).count();
        write!(
            out,
            "{}, {} ({attached} attached), {}, {} of extensions",
            of(self.networks.len(), "network", "networks"),
            of(self.ports.len(), "port", "ports"),
            of(self.plugs.len(), "plug", "plugs"),
            of(self.extras.len(), "record", "records"),
        )
    }
}

impl Store {
    /// Everything in the store, of one moment, in the order of creation.
    ///
    /// # Errors
    /// [`StoreError::BadRecord`] for a damaged file, else what redb said.
    pub fn export(&self) -> Result<Backup, StoreError> {
        let mut guard = self.lock();
        let transaction = self.ready(&mut guard)?.begin_read()?;
        gather(
            &transaction.open_table(NETWORKS)?,
            &transaction.open_table(PORTS)?,
            &transaction.open_table(PLUGS)?,
            &transaction.open_table(EXTRAS)?,
        )
    }

    /// Everything in the store at `path`, as [`Store::export`] would tell it after the migration to this program's schema, which
    /// is not done: the file stays what it is.
    ///
    /// # Errors
    /// As for [`Store::open`] and [`Store::export`]; also if there is no file.
    pub fn look(path: &Path) -> Result<Backup, StoreError> {
        let _lock = PidLock::take(path)?;
        let database = file::open_existing(path)?;
        let found = schema::look(&database)?;
        let transaction = database.begin_write()?;
        let looked = match found {
            Found::Nothing => Ok(Backup::default()),
            Found::Current => gather_within(&transaction),
            Found::Older(from) => schema::migrate_within(&transaction, from).and_then(|()| gather_within(&transaction)),
        };
        transaction.abort()?;
        looked
    }

    /// Puts a backup in place of everything there is, in one transaction.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`] if there is something and `is_replacing` is not set, [`StoreError::Inconsistent`] if the
    /// backup makes no store, else what redb said; the store is then as it was.
    pub fn import(&self, backup: &Backup, is_replacing: bool) -> Result<(), StoreError> {
        backup.check()?;
        self.write(|transaction| {
            if !is_replacing {
                let records = transaction.open_table(NETWORKS)?.len()?
                    + transaction.open_table(PORTS)?.len()?
                    + transaction.open_table(PLUGS)?.len()?
                    + transaction.open_table(EXTRAS)?.len()?;
                if records > 0 {
                    return Err(StoreError::NotEmpty { records });
                }
            }
            transaction.delete_table(NETWORKS)?;
            transaction.delete_table(PORTS)?;
            transaction.delete_table(PLUGS)?;
            transaction.delete_table(EXTRAS)?;
            let mut networks = transaction.open_table(NETWORKS)?;
            for network in &backup.networks {
                networks.insert(&*network.id, records::of_network(network).as_slice())?;
            }
            let mut ports = transaction.open_table(PORTS)?;
            for port in &backup.ports {
                ports.insert(&*port.id, records::of_port(port).as_slice())?;
            }
            let mut plugs = transaction.open_table(PLUGS)?;
            for plug in &backup.plugs {
                plugs.insert(&*plug.interface, records::of_plug(plug).as_slice())?;
            }
            let mut extras = transaction.open_table(EXTRAS)?;
            for ((kind, key), value) in &backup.extras {
                extras.insert((kind.as_str(), key.as_str()), value.as_slice())?;
            }
            Ok(())
        })
    }
}

fn gather_within(transaction: &WriteTransaction) -> Result<Backup, StoreError> {
    gather(
        &transaction.open_table(NETWORKS)?,
        &transaction.open_table(PORTS)?,
        &transaction.open_table(PLUGS)?,
        &transaction.open_table(EXTRAS)?,
    )
}

/// What these tables hold, in the order of creation.
fn gather(
    networks: &impl ReadableTable<&'static str, &'static [u8]>,
    ports: &impl ReadableTable<&'static str, &'static [u8]>,
    plugs: &impl ReadableTable<&'static str, &'static [u8]>,
    extras: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
) -> Result<Backup, StoreError> {
    let mut backup = Backup {
        networks: read_all(networks, records::network)?,
        ports: read_all(ports, records::port)?,
        plugs: read_all(plugs, records::plug)?,
        extras: BTreeMap::new(),
    };
    backup.networks.sort_by_key(|network| network.serial);
    backup.ports.sort_by_key(|port| port.serial);
    for entry in extras.iter()? {
        let (key, value) = entry?;
        let (kind, key) = key.value();
        backup.extras.insert((kind.to_owned(), key.to_owned()), value.value().to_vec());
    }
    Ok(backup)
}

#[cfg(test)]
mod tests;
