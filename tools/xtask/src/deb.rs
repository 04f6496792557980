//! The Debian package: the program, its unit, its example settings and its documents.
//!
//! Built with `dpkg-deb`, which every Debian has, and with nothing of debhelper. What libc the program needs is read from
//! the program itself. The same commit gives the same bytes: times are the commit's, owners are root.

use crate::host::{cargo, output, repository, run, target_dir, version_of};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files of the package: source in the repository, place, permissions.
const FILES: &[(&str, &str, u32)] = &[
    ("tools/packaging/qvs.service", "usr/lib/systemd/system/qvs.service", 0o644),
    ("tools/packaging/qvs.tmpfiles", "usr/lib/tmpfiles.d/qvs.conf", 0o644),
    ("tools/packaging/qvs.toml", "etc/qvs/qvs.toml", 0o644),
    ("tools/packaging/copyright", "usr/share/doc/qvs/copyright", 0o644),
    ("README.md", "usr/share/doc/qvs/README.md", 0o644),
    ("ARCHITECTURE.md", "usr/share/doc/qvs/ARCHITECTURE.md", 0o644),
    ("CHANGELOG.md", "usr/share/doc/qvs/CHANGELOG.md", 0o644),
    ("CONTRIBUTING.md", "usr/share/doc/qvs/CONTRIBUTING.md", 0o644),
    // What these refer to, where they say it is.
    ("api/REFERENCE.md", "usr/share/doc/qvs/api/REFERENCE.md", 0o644),
    ("api/DEVIATIONS.md", "usr/share/doc/qvs/api/DEVIATIONS.md", 0o644),
    ("api/openapi.json", "usr/share/doc/qvs/api/openapi.json", 0o644),
    ("api/src/policy/default.toml", "usr/share/doc/qvs/api/src/policy/default.toml", 0o644),
    ("switch/COUNTERS.md", "usr/share/doc/qvs/switch/COUNTERS.md", 0o644),
    ("tools/packaging/qvs.toml", "usr/share/doc/qvs/tools/packaging/qvs.toml", 0o644),
    ("benches/results/cloud.md", "usr/share/doc/qvs/benches/results/cloud.md", 0o644),
    ("benches/results/cycles.md", "usr/share/doc/qvs/benches/results/cycles.md", 0o644),
    ("benches/results/latest.md", "usr/share/doc/qvs/benches/results/latest.md", 0o644),
    ("benches/results/latest.svg", "usr/share/doc/qvs/benches/results/latest.svg", 0o644),
    ("benches/results/store.md", "usr/share/doc/qvs/benches/results/store.md", 0o644),
    ("benches/results/uplink.md", "usr/share/doc/qvs/benches/results/uplink.md", 0o644),
    ("tools/packaging/postinst", "DEBIAN/postinst", 0o755),
    ("tools/packaging/prerm", "DEBIAN/prerm", 0o755),
    ("tools/packaging/postrm", "DEBIAN/postrm", 0o755),
];

/// What shells complete commands by: the shell, and the place of the script that the program prints for it.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/qvs"),
    ("zsh", "usr/share/zsh/vendor-completions/_qvs"),
    ("fish", "usr/share/fish/vendor_completions.d/qvs.fish"),
];

/// Where the program writes the pages that man(1) shows.
const MANUAL: &str = "usr/share/man/man1";

/// Debian's name of the architecture that programs are built for here.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("Debian's name of {other} is not known here"),
    }
}

/// Builds the release program and the package; answers where it is.
pub(crate) fn build() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--quiet", "-p", "qvs"]))?;
    let program = target_dir()?.join("release/qvs");
    let version = version_of("qvs")?;
    let architecture = architecture()?;
    let name = format!("qvs_{version}_{architecture}");
    let dir = target_dir()?.join("debian");
    let stage = dir.join(&name);
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("cannot clear {}", stage.display()))?;
    }
    install(&program, &stage.join("usr/bin/qvs"), 0o755)?;
    for &(source, place, mode) in FILES {
        install(&repository().join(source), &stage.join(place), mode)?;
    }
    for &(shell, place) in COMPLETIONS {
        let script = output(Command::new(&program).args(["completions", shell]))?;
        make_parents(&stage.join(place))?;
        write(&stage.join(place), &script)?;
    }
    make_parents(&stage.join(MANUAL).join("qvs.1"))?;
    output(Command::new(&program).arg("manual").arg(stage.join(MANUAL)))?;
    for page in fs::read_dir(stage.join(MANUAL))? {
        fs::set_permissions(page?.path(), fs::Permissions::from_mode(0o644))?;
    }
    let size_kib = size_of(&stage)?.div_ceil(1024);
    let libc = newest_glibc(&fs::read(&program)?);
    let control = format!(
        "Package: qvs\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: the authors of qvs <root@localhost>\n\
         Installed-Size: {size_kib}\nDepends: libc6 (>= {libc}), libgcc-s1, passwd\nSection: net\nPriority: optional\n\
         Description: userspace virtual switch with the Quantum networking API\n \
         Switches the frames of VMs (vhost-user) and host processes (TAP) on pinned poll-mode\n \
         workers; tenants command their isolated networks by the OpenStack Quantum REST API.\n"
    );
    write(&stage.join("DEBIAN/control"), &control)?;
    write(&stage.join("DEBIAN/conffiles"), "/etc/qvs/qvs.toml\n")?;
    let package = dir.join(format!("{name}.deb"));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "--build"]).arg(&stage).arg(&package);
    command.env("SOURCE_DATE_EPOCH", commit_time().unwrap_or_else(|| "0".to_owned()));
    output(&mut command)?;
    fs::remove_dir_all(&stage)?;
    Ok(package)
}

/// Builds the package, unpacks it and looks whether it holds what it should.
pub(crate) fn build_and_check() -> Result<()> {
    let package = build()?;
    let unpacked = target_dir()?.join("debian/unpacked");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    output(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(&unpacked))?;
    for &(source, place, mode) in FILES {
        let file = unpacked.join(place);
        let same = fs::read(&file).ok() == fs::read(repository().join(source)).ok();
        ensure!(same, "{place} of the package is not {source}");
        let actual = fs::metadata(&file)?.permissions().mode() & 0o7777;
        ensure!(actual == mode, "{place} has mode {actual:o}, not {mode:o}");
    }
    let version = output(Command::new(unpacked.join("usr/bin/qvs")).arg("--version"))?;
    ensure!(version.trim() == format!("qvs {}", version_of("qvs")?), "the packaged program says {version:?}");
    for &(shell, place) in COMPLETIONS {
        let script = fs::read_to_string(unpacked.join(place)).with_context(|| format!("the package lacks {place}"))?;
        ensure!(script.contains("token-file"), "{place} of the package completes no command of ours for {shell}");
    }
    let page =
        fs::read_to_string(unpacked.join(MANUAL).join("qvs-plug.1")).context("the package lacks man qvs-plug")?;
    ensure!(page.contains(".TH"), "man qvs-plug is no page");
    run(Command::new("bash").arg("-n").arg(unpacked.join(COMPLETIONS[0].1)))?;
    for field in ["Package", "Depends", "Installed-Size"] {
        let value = output(Command::new("dpkg-deb").arg("--field").arg(&package).arg(field))?;
        ensure!(!value.trim().is_empty(), "the package has no {field}");
    }
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("/bin/sh").arg("-n").arg(unpacked.join("DEBIAN").join(script)))?;
    }
    fs::remove_dir_all(&unpacked)?;
    println!("{} holds what it should", package.display());
    Ok(())
}

fn install(source: &Path, place: &Path, mode: u32) -> Result<()> {
    make_parents(place)?;
    fs::copy(source, place).with_context(|| format!("cannot copy {}", source.display()))?;
    fs::set_permissions(place, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Makes the directory of a file of the package, and those above it.
fn make_parents(place: &Path) -> Result<()> {
    let parent = place.parent().context("a file has a directory")?;
    fs::create_dir_all(parent)?;
    let mut dir = Some(parent);
    while let Some(path) = dir.filter(|path| !path.ends_with("debian")) {
        // Whatever the umask is here, directories of a package are open to read.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        dir = path.parent();
    }
    Ok(())
}

fn write(place: &Path, text: &str) -> Result<()> {
    fs::write(place, text).with_context(|| format!("cannot write {}", place.display()))?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

fn size_of(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let data = entry.metadata()?;
        total += if data.is_dir() { size_of(&entry.path())? } else { data.len() };
    }
    Ok(total)
}

/// The newest version among the `GLIBC_2.x` symbols that the program names.
fn newest_glibc(program: &[u8]) -> String {
    const KEY: &[u8] = b"GLIBC_2.";
    let minors = program.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY).filter_map(|(at, _)| {
        let digits = program[at + KEY.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        let text: String = digits.map(|&byte| char::from(byte)).collect();
        text.parse::<u32>().ok()
    });
    format!("2.{}", minors.max().unwrap_or(17))
}

fn commit_time() -> Option<String> {
    let mut command = Command::new("git");
    command.args(["log", "-1", "--format=%ct"]).current_dir(repository());
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_libc_symbol_decides() {
        assert_eq!(newest_glibc(b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0"), "2.34");
        assert_eq!(newest_glibc(b"static"), "2.17");
    }

    #[test]
    fn the_package_has_every_document_that_its_readme_names() {
        let readme = fs::read_to_string(repository().join("README.md")).unwrap();
        let named = readme.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        let is_document = |word: &&str| {
            let endings = [".md", ".toml", ".svg", ".json"];
            word.contains('/')
                && !word.starts_with('/')
                && !word.contains(' ')
                && endings.iter().any(|ending| word.ends_with(ending))
        };
        for word in named.filter(is_document) {
            let place = format!("usr/share/doc/qvs/{word}");
            assert!(FILES.iter().any(|&(source, at, _)| source == word && at == place), "{word}");
        }
    }

    /// What a key of a section of the unit says, all times.
    fn of_the_unit(section: &str, key: &str) -> Vec<String> {
        let unit = fs::read_to_string(repository().join("tools/packaging/qvs.service")).unwrap();
        let section = unit.split("\n[").find_map(|text| text.strip_prefix(section)?.strip_prefix("]\n")).unwrap();
        let values = section.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.map(str::to_owned).collect()
    }

    #[test]
    fn the_switch_is_started_however_often_it_ends_and_what_others_have_in_run_stays() {
        assert_eq!(of_the_unit("Unit", "StartLimitIntervalSec"), ["0"]);
        assert_eq!(of_the_unit("Service", "Restart"), ["always"]);
        assert_eq!(of_the_unit("Service", "RuntimeDirectoryPreserve"), ["yes"]);
    }

    #[test]
    fn a_switch_that_does_not_come_up_leaves_no_package_half_configured() {
        for script in ["postinst", "prerm", "postrm"] {
            let text = fs::read_to_string(repository().join("tools/packaging").join(script)).unwrap();
            let calls: Vec<_> = text.lines().map(str::trim).filter(|line| line.starts_with("systemctl")).collect();
            assert!(!calls.is_empty() && calls.iter().all(|call| call.ends_with("|| true")), "{script}: {calls:?}");
        }
    }

    #[test]
    fn every_packaged_file_is_in_the_repository() {
        for (source, ..) in FILES {
            assert!(repository().join(source).exists(), "{source}");
        }
    }
}
