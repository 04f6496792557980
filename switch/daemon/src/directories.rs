//! The directories that the daemon keeps its things in: made where they are missing, and open to the groups of the settings.
//!
//! A directory that is there already may be another start's, systemd's (`RuntimeDirectory=`) or the operator's. One that is
//! ours and closed to others gets the group; any other stays as it is, and so does what has no group of the settings.

use crate::settings::Settings;
use anyhow::{Context, Result};
use std::fs::{DirBuilder, Metadata, Permissions, metadata, set_permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

/// Where ports write down where packed rings stand. On tmpfs, as is fit for what means nothing after a boot.
pub(crate) fn rings_dir(settings: &Settings) -> PathBuf {
    settings.run_dir.join("rings")
}

/// Makes the directories that are missing: state 0700, sockets 0750 and of the group that must reach into them.
///
/// # Errors
/// The line to print.
pub(crate) fn make(settings: &Settings, admin: Option<u32>, vhost: Option<u32>) -> Result<()> {
    let run_dir = &settings.run_dir;
    provide(&settings.state_dir, 0o700, None)?;
    provide(run_dir, 0o750, admin.or(vhost))?;
    if admin.is_some() && vhost.is_some() && admin != vhost {
        tracing::warn!(
            run_dir = %run_dir.display(),
            "admin.group and vhost.group differ: only one group can reach into run_dir; set vhost.dir or admin.socket elsewhere"
        );
    }
    provide(&settings.vhost.dir, 0o750, vhost)?;
    provide(&rings_dir(settings), 0o700, None)?;
    if let Some(parent) = settings.admin.socket.parent().filter(|parent| parent != run_dir) {
        // One elsewhere that is there is not for the socket alone.
        let group = admin.filter(|_| !parent.is_dir() || parent.starts_with(run_dir));
        provide(parent, 0o750, group)?;
    }
    Ok(())
}

fn provide(path: &Path, mode: u32, group: Option<u32>) -> Result<()> {
    if let Some(found) = metadata(path).ok().filter(Metadata::is_dir) {
        return group.map_or(Ok(()), |group| open_to(path, &found, group));
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        DirBuilder::new().recursive(true).create(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    let made = DirBuilder::new().mode(mode).create(path);
    made.with_context(|| format!("making {}", path.display()))?;
    if let Some(group) = group {
        give(path, group)?;
    }
    // The umask may have taken the group's rights away.
    set_mode(path, mode)
}

/// Lets a group into a directory of ours that not everybody may enter.
fn open_to(path: &Path, found: &Metadata, group: u32) -> Result<()> {
    let mode = found.mode() & 0o7777;
    if found.uid() != rustix::process::geteuid().as_raw() || mode & 0o001 != 0 {
        return Ok(());
    }
    if found.gid() != group {
        give(path, group)?;
    }
    if mode & 0o050 != 0o050 {
        set_mode(path, mode | 0o050)?;
    }
    Ok(())
}

fn give(path: &Path, group: u32) -> Result<()> {
    let shown = path.display();
    chown(path, None, Some(group)).with_context(|| {
        format!("giving {shown} its group {group}, which the daemon's user must be in (systemd: SupplementaryGroups=)")
    })
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    set_permissions(path, Permissions::from_mode(mode)).with_context(|| format!("giving {} its mode", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_ours_that_are_there_already_are_opened_to_the_groups_of_the_settings() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let base = std::env::temp_dir().join(format!("qvs-directories-{}", std::process::id()));
        let ours = |name: &str, mode| {
            let path = base.join(name);
            DirBuilder::new().recursive(true).create(&path).unwrap();
            set_mode(&path, mode).unwrap();
            path
        };
        let look = |path: &Path| metadata(path).map(|found| (found.gid(), found.mode() & 0o7777)).unwrap();
        let (run, vhost) = (ours("run", 0o750), ours("run/vhost", 0o700));
        let (elsewhere, wide) = (ours("elsewhere", 0o700), ours("wide", 0o755));
        let text = format!("state_dir = {:?}\nrun_dir = {run:?}\n", base.join("state"));
        let settings = Settings::parse(&text, "x").unwrap();
        make(&settings, None, None).unwrap();
        assert_eq!((look(&run).1, look(&vhost).1), (0o750, 0o700), "without a group nothing is changed");
        make(&settings, None, Some(4711)).unwrap();
        assert_eq!((look(&run), look(&vhost)), ((4711, 0o750), (4711, 0o750)));
        make(&settings, Some(4712), Some(4711)).unwrap();
        assert_eq!((look(&run), look(&vhost)), ((4712, 0o750), (4711, 0o750)));

        let before = (look(&elsewhere), look(&wide));
        let text = format!("{text}[admin]\nsocket = {:?}\n[vhost]\ndir = {wide:?}\n", elsewhere.join("admin.sock"));
        make(&Settings::parse(&text, "x").unwrap(), Some(4712), Some(4711)).unwrap();
        assert_eq!((look(&elsewhere), look(&wide)), before, "one that others use too, or that everybody may enter");

        chown(&vhost, Some(4713), None).unwrap();
        make(&settings, None, Some(4714)).unwrap();
        assert_eq!(look(&vhost), (4711, 0o750), "one of another user");
        std::fs::remove_dir_all(&base).unwrap();
    }
}
