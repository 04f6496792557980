//! The directories that the daemon keeps its things in: made where they are missing, and open to the groups of the settings.
//!
//! A directory that is there already may be another start's, systemd's (`RuntimeDirectory=`) or the operator's. One that is
//! ours, closed to others and written by us alone gets the group; any other stays as it is, and so does what has no group of
//! the settings. Somebody may be able to put a link in a directory's place, so none is followed, and all is done to the
//! open directory.

use crate::settings::Settings;
use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
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
    if path.is_dir() {
        return group.map_or(Ok(()), |group| open_to(path, group));
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        DirBuilder::new().recursive(true).create(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    let made = DirBuilder::new().mode(mode).create(path);
    made.with_context(|| format!("making {}", path.display()))?;
    let directory = open(path).with_context(|| format!("opening {}", path.display()))?;
    if let Some(group) = group {
        give(&directory, path, group)?;
    }
    // The umask may have taken the group's rights away.
    set_mode(&directory, path, mode)
}

/// Lets a group into a directory of ours that not everybody may enter and only we may write.
fn open_to(path: &Path, group: u32) -> Result<()> {
    // A link is not ours to follow, and what we may not read is not ours.
    let Ok(directory) = open(path) else { return Ok(()) };
    let found = directory.metadata().with_context(|| format!("looking at {}", path.display()))?;
    let mode = found.mode() & 0o7777;
    if found.uid() != rustix::process::geteuid().as_raw() || mode & 0o023 != 0 {
        return Ok(());
    }
    if found.gid() != group {
        give(&directory, path, group)?;
    }
    if mode & 0o050 != 0o050 {
        set_mode(&directory, path, mode | 0o050)?;
    }
    Ok(())
}

fn open(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn give(directory: &File, path: &Path, group: u32) -> Result<()> {
    let shown = path.display();
    fchown(directory, None, Some(group)).with_context(|| {
        format!("giving {shown} its group {group}, which the daemon's user must be in (systemd: SupplementaryGroups=)")
    })
}

fn set_mode(directory: &File, path: &Path, mode: u32) -> Result<()> {
    let set = directory.set_permissions(Permissions::from_mode(mode));
    set.with_context(|| format!("giving {} its mode", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{metadata, set_permissions};
    use std::os::unix::fs::{chown, symlink};

    #[test]
    fn directories_of_ours_that_are_there_already_are_opened_to_the_groups_of_the_settings() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let base = std::env::temp_dir().join(format!("qvs-directories-{}", std::process::id()));
        let ours = |name: &str, mode| {
            let path = base.join(name);
            DirBuilder::new().recursive(true).create(&path).unwrap();
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
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

        let shared = ours("run/shared", 0o3770);
        let (link, before) = (run.join("link"), (look(&elsewhere), look(&shared)));
        symlink(&elsewhere, &link).unwrap();
        for dir in [&link, &shared] {
            let text = format!("state_dir = {:?}\nrun_dir = {run:?}\n[vhost]\ndir = {dir:?}\n", base.join("state"));
            make(&Settings::parse(&text, "x").unwrap(), None, Some(4711)).unwrap();
        }
        assert_eq!((look(&elsewhere), look(&shared)), before, "what a link leads to, or one that a group may write");
        std::fs::remove_dir_all(&base).unwrap();
    }
}
