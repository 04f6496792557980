//! `qvs check`: can this host run the switch, and if not, what to do about it.
//!
//! Each finding is one line with its remedy. Three grades: `ok`; `warn`, where something works less well or only a part does
//! not work; `fail`, where guests or TAPs cannot be switched at all. It looks and tries, and changes nothing; what cannot
//! be found out is a warning that says so.

mod api;

use crate::cli::CheckArgs;
use crate::identity::wall_clock;
use crate::settings::{Settings, Workers};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use switch::mac_table::MacTable;

/// Open files that one port may need: socket, kicks, calls, memory regions.
const FILES_PER_PORT: u64 = 24;
/// Ports for which there should be files.
const PORTS_PLANNED: u64 = 1000;
/// `CAP_NET_ADMIN` (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
/// `CAP_NET_RAW`
const CAP_NET_RAW: u32 = 13;
/// `CAP_IPC_LOCK`
const CAP_IPC_LOCK: u32 = 14;
/// `CAP_BPF`
const CAP_BPF: u32 = 39;
/// `CAP_SYS_ADMIN`
const CAP_SYS_ADMIN: u32 = 21;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Grade {
    /// As it should be.
    Ok,
    /// Something works less well.
    Warn,
    /// Guests or TAPs cannot be switched.
    Fail,
}

/// One thing looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How it is.
    pub(crate) grade: Grade,
    /// What was found.
    pub(crate) found: String,
    /// What to do; empty if nothing.
    pub(crate) remedy: String,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, grade: Grade::Ok, found: found.into(), remedy: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { name, grade: Grade::Warn, found: found.into(), remedy: remedy.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { name, grade: Grade::Fail, found: found.into(), remedy: remedy.into() }
    }
}

/// Looks at the host; answers the text to print and whether the switch can do its job here.
///
/// # Errors
/// If the settings are wrong: the one line to print.
pub(crate) fn check(args: &CheckArgs) -> Result<(String, bool), crate::settings::SettingsError> {
    let settings = Settings::load(args.config.as_deref())?;
    let findings = findings(&settings);
    let is_able = findings.iter().all(|finding| finding.grade != Grade::Fail);
    let text = if args.json {
        serde_json::to_string_pretty(&findings).expect("findings are plain text") + "\n"
    } else {
        findings.iter().map(line).collect()
    };
    Ok((text, is_able))
}

fn line(finding: &Finding) -> String {
    let Finding { name, grade, found, remedy } = finding;
    let grade = match grade {
        Grade::Ok => "ok  ",
        Grade::Warn => "warn",
        Grade::Fail => "FAIL",
    };
    match remedy.as_str() {
        "" => format!("{grade}  {name}: {found}\n"),
        remedy => format!("{grade}  {name}: {found}\n      remedy: {remedy}\n"),
    }
}

fn findings(settings: &Settings) -> Vec<Finding> {
    let capabilities = fs::read_to_string("/proc/self/status").ok().and_then(|status| effective_capabilities(&status));
    vec![
        capability(capabilities, CAP_NET_ADMIN),
        packets(capabilities),
        xdp(capabilities),
        tun(),
        namespaces(capabilities),
        cpus(settings),
        isolation(settings),
        hugepages(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), settings.mac.max),
        memlock(capabilities),
        files(),
        directory("state_dir", &settings.state_dir, 0o700),
        directory("run_dir", &settings.run_dir, 0o750),
        directory("vhost.dir", &settings.vhost.dir, 0o750),
        aio(),
        api::identity(settings),
        api::tls(settings, wall_clock()),
        api::seal_key(settings),
        api::metrics(settings),
        api::quotas(settings),
    ]
}

/// `CapEff` of `/proc/self/status`.
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn has(capabilities: Option<u64>, capability: u32) -> bool {
    capabilities.is_none_or(|set| set & (1 << capability) != 0)
}

/// All that the switch may make use of, as its unit has it.
const ALL: &str = "CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_IPC_LOCK CAP_SYS_ADMIN";

fn capability(capabilities: Option<u64>, wanted: u32) -> Finding {
    const NAME: &str = "CAP_NET_ADMIN";
    match capabilities {
        None => Finding::warn(NAME, "/proc/self/status does not tell", "mount /proc"),
        Some(_) if has(capabilities, wanted) => Finding::ok(NAME, "held: TAPs can be made"),
        Some(_) => Finding::fail(
            NAME,
            "missing: no TAP can be made",
            format!("run as root, or let systemd give it: AmbientCapabilities={ALL}"),
        ),
    }
}

fn packets(capabilities: Option<u64>) -> Finding {
    const NAME: &str = "CAP_NET_RAW";
    if has(capabilities, CAP_NET_RAW) {
        return Finding::ok(NAME, "interfaces made by others can be plugged");
    }
    Finding::warn(
        NAME,
        "missing: no interface that others made can be plugged (plug --device)",
        format!("AmbientCapabilities={ALL} if that is wanted"),
    )
}

fn xdp(capabilities: Option<u64>) -> Finding {
    const NAME: &str = "AF_XDP";
    let needed = [
        (CAP_NET_RAW, "CAP_NET_RAW"),
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (CAP_BPF, "CAP_BPF"),
        (CAP_IPC_LOCK, "CAP_IPC_LOCK"),
    ];
    let is_missing = |&&(number, _): &&(u32, &str)| {
        // What may be done with CAP_BPF may be done with CAP_SYS_ADMIN too.
        !(has(capabilities, number) || number == CAP_BPF && has(capabilities, CAP_SYS_ADMIN))
    };
    let missing: Vec<&str> = needed.iter().filter(is_missing).map(|&(_, name)| name).collect();
    if missing.is_empty() {
        return Finding::ok(NAME, "interfaces can be plugged by it");
    }
    Finding::warn(
        NAME,
        format!("without {} no interface can be plugged by it (plug --device --driver af_xdp)", missing.join(" and ")),
        format!("AmbientCapabilities={ALL} if that is wanted"),
    )
}

fn tun() -> Finding {
    const NAME: &str = "/dev/net/tun";
    match fs::File::options().read(true).write(true).open(NAME) {
        Ok(_) => Finding::ok(NAME, "can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Finding::fail(
            NAME,
            "is not there: no TAP can be made",
            "modprobe tun; in a container pass the device (--device /dev/net/tun)",
        ),
        Err(error) => {
            Finding::fail(NAME, error.to_string(), "chmod 0666 /dev/net/tun, or allow the device in the container")
        }
    }
}

fn namespaces(capabilities: Option<u64>) -> Finding {
    const NAME: &str = "namespaces";
    if has(capabilities, CAP_SYS_ADMIN) {
        return Finding::ok(NAME, "other network namespaces can be entered");
    }
    Finding::warn(
        NAME,
        "without CAP_SYS_ADMIN no TAP or device of another network namespace can be had (plug --netns)",
        format!("AmbientCapabilities={ALL} if that is wanted"),
    )
}

fn cpus(settings: &Settings) -> Finding {
    const NAME: &str = "CPUs";
    let (allowed, auto) = match (switch::affinity::allowed_cpus(), switch::affinity::cpus_auto()) {
        (Ok(allowed), Ok(auto)) => (allowed, auto),
        (Err(error), _) | (_, Err(error)) => {
            return Finding::fail(NAME, error.to_string(), "allow sched_getaffinity(2) in the container");
        }
    };
    match settings.worker_cpus(&allowed, &auto) {
        Err(error) => {
            Finding::fail(NAME, error.to_string(), "change switch.workers, or the allowed set (taskset, AllowedCPUs=)")
        }
        Ok(cpus) if allowed.len() == 1 => Finding::warn(
            NAME,
            format!("one CPU is allowed; worker on {cpus:?}"),
            "guests and the switch share it: give the host another CPU",
        ),
        Ok(cpus) => Finding::ok(NAME, format!("allowed {}; workers on {cpus:?}", ranges(&allowed))),
    }
}

/// `0-3,8` for 0, 1, 2, 3, 8.
fn ranges(cpus: &[usize]) -> String {
    let parts = cpus.chunk_by(|one, next| one + 1 == *next).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    parts.collect::<Vec<_>>().join(",")
}

fn isolation(settings: &Settings) -> Finding {
    const NAME: &str = "isolated CPUs";
    let isolated = fs::read_to_string("/sys/devices/system/cpu/isolated").unwrap_or_default();
    match (isolated.trim(), &settings.switch.workers) {
        ("", Workers::Auto) => Finding::ok(NAME, "none; fine for adaptive polling"),
        ("", Workers::Cpus(cpus)) => Finding::warn(
            NAME,
            format!("none; other threads may run on the workers' CPUs {cpus:?}"),
            "for steady latency boot with isolcpus= and nohz_full= of these CPUs",
        ),
        (list, _) => Finding::ok(NAME, list),
    }
}

/// Guests with memory in hugepages are switched faster; guests with memfd memory are switched too. The MAC table takes some
/// at start.
fn hugepages(meminfo: &str, mac_max: usize) -> Finding {
    const NAME: &str = "hugepages";
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
    };
    let bytes = MacTable::bytes_for(mac_max) as u64;
    match (field("HugePages_Total"), field("HugePages_Free"), field("Hugepagesize")) {
        (Some(total), Some(free), Some(kib)) if total > 0 => {
            let wanted = bytes.div_ceil(kib * 1024);
            let table = match free {
                _ if kib != 2048 => "the MAC table lies elsewhere: it takes pages of 2 MiB".to_owned(),
                free if free < wanted => {
                    format!("the MAC table lies elsewhere: it would take {wanted} when the switch starts")
                }
                _ => format!("the MAC table takes {wanted} when the switch starts"),
            };
            Finding::ok(NAME, format!("{free} of {total} free, {} MiB each; {table}", kib / 1024))
        }
        _ => Finding::warn(
            NAME,
            "none; guests must have shared memory of memfd or /dev/shm, and lose some speed",
            "sysctl vm.nr_hugepages=N, and QEMU with memory-backend-file on /dev/hugepages",
        ),
    }
}

fn memlock(capabilities: Option<u64>) -> Finding {
    const NAME: &str = "locked memory";
    match getrlimit(Resource::Memlock).current {
        None => Finding::ok(NAME, "unlimited"),
        Some(_) if has(capabilities, CAP_IPC_LOCK) => Finding::ok(NAME, "not limited: CAP_IPC_LOCK is held"),
        Some(bytes) => Finding::ok(NAME, format!("{} KiB; enough, nothing is locked but for AF_XDP", bytes / 1024)),
    }
}

fn files() -> Finding {
    const NAME: &str = "open files";
    let limit = getrlimit(Resource::Nofile).maximum;
    let wanted = PORTS_PLANNED * FILES_PER_PORT;
    match limit {
        Some(limit) if limit < wanted => Finding::warn(
            NAME,
            format!("at most {limit}: enough for about {} ports", limit / FILES_PER_PORT),
            format!("LimitNOFILE={wanted} in the unit, or ulimit -Hn {wanted}"),
        ),
        Some(limit) => Finding::ok(NAME, format!("at most {limit}")),
        None => Finding::ok(NAME, "unlimited"),
    }
}

/// A directory must be there with no wider rights than it should have, or it must be possible to make it.
fn directory(name: &'static str, path: &Path, mode: u32) -> Finding {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            Finding::fail(name, format!("{shown} is no directory"), format!("mv {shown} away, or set {name}"))
        }
        Ok(_) if !is_writable(path) => Finding::fail(
            name,
            format!("{shown} cannot be written by uid {}", rustix::process::geteuid().as_raw()),
            format!("chown it to the switch's user, or set {name}"),
        ),
        Ok(found) => match found.permissions().mode() & 0o777 {
            rights if rights & !mode != 0 => Finding::warn(
                name,
                format!("{shown} has mode {rights:04o}, wider than {mode:04o} (owner {})", found.uid()),
                format!("chmod {mode:04o} {shown}"),
            ),
            rights => Finding::ok(name, format!("{shown}, mode {rights:04o}")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = path.ancestors().skip(1).find(|parent| parent.exists()).unwrap_or(Path::new("/"));
            if is_writable(parent) {
                Finding::ok(name, format!("{shown} will be made, mode {mode:04o}"))
            } else {
                Finding::fail(
                    name,
                    format!("{shown} is not there and cannot be made in {}", parent.display()),
                    format!("install -d -m {mode:04o} -o USER {shown}, or set {name}"),
                )
            }
        }
        Err(error) => {
            Finding::fail(name, format!("{shown}: {error}"), format!("give the switch's user access, or set {name}"))
        }
    }
}

fn is_writable(path: &Path) -> bool {
    use rustix::fs::Access;
    rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// Guests' disks share the host's asynchronous I/O contexts; the switch itself needs none.
fn aio() -> Finding {
    const NAME: &str = "AIO contexts";
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match (number("/proc/sys/fs/aio-nr"), number("/proc/sys/fs/aio-max-nr")) {
        (Some(used), Some(max)) if used.saturating_mul(10) > max.saturating_mul(9) => Finding::warn(
            NAME,
            format!("{used} of {max} in use: QEMU with aio=native may fail to start; the switch needs none"),
            format!("sysctl fs.aio-max-nr={}", max.saturating_mul(2)),
        ),
        (Some(used), Some(max)) => Finding::ok(NAME, format!("{used} of {max} in use; the switch needs none")),
        _ => Finding::ok(NAME, "not told by this kernel; the switch needs none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_kernel_s_own_words() {
        let set = effective_capabilities("Name:\tqvs\nCapEff:\t0000000000001000\nCapBnd:\tff\n");
        assert_eq!(set, Some(1 << CAP_NET_ADMIN));
        assert!(has(set, CAP_NET_ADMIN) && !has(set, CAP_SYS_ADMIN));
        assert_eq!(capability(set, CAP_NET_ADMIN).grade, Grade::Ok);
        assert_eq!(capability(Some(0), CAP_NET_ADMIN).grade, Grade::Fail);
    }

    #[test]
    fn cpu_lists_are_short() {
        assert_eq!(ranges(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn hugepages_are_told_with_their_size_and_what_the_switch_takes() {
        let found = |meminfo: &str| {
            let finding = hugepages(meminfo, 131_072);
            assert_eq!(finding.grade, Grade::Ok);
            finding.found
        };
        let text = "HugePages_Total:     512\nHugePages_Free:      500\nHugepagesize:       2048 kB\n";
        assert_eq!(found(text), "500 of 512 free, 2 MiB each; the MAC table takes 2 when the switch starts");
        let few = found(&text.replace("500", "1"));
        assert!(few.starts_with("1 of 512 free, 2 MiB each; the MAC table lies elsewhere: it would take 2"), "{few}");
        let large = found(&text.replace("2048 kB", "1048576 kB"));
        assert!(large.ends_with("1024 MiB each; the MAC table lies elsewhere: it takes pages of 2 MiB"), "{large}");
        assert_eq!(hugepages("HugePages_Total: 0\n", 1).grade, Grade::Warn);
        assert_eq!(hugepages("", 1).grade, Grade::Warn);
    }

    #[test]
    fn a_directory_is_fine_absent_but_not_as_a_file_or_too_wide() {
        let base = std::env::temp_dir().join(format!("qvs-check-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        assert_eq!(directory("run_dir", &base.join("a/b"), 0o750).grade, Grade::Ok);
        fs::write(base.join("file"), "").unwrap();
        assert_eq!(directory("run_dir", &base.join("file"), 0o750).grade, Grade::Fail);
        fs::create_dir(base.join("wide")).unwrap();
        fs::set_permissions(base.join("wide"), fs::Permissions::from_mode(0o777)).unwrap();
        let finding = directory("run_dir", &base.join("wide"), 0o750);
        assert_eq!(finding.grade, Grade::Warn);
        assert!(finding.remedy.starts_with("chmod 0750 "));
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn every_failure_has_a_remedy() {
        let settings = Settings::parse("state_dir = \"/dev/null/state\"", "x").unwrap();
        let findings = findings(&settings);
        assert!(findings.iter().any(|finding| finding.grade == Grade::Fail));
        assert!(findings.iter().all(|finding| (finding.grade == Grade::Ok) == finding.remedy.is_empty()));
    }
}
