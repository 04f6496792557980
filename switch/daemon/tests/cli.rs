//! The command line as a user types it: its help, held still by golden files, and its exit statuses without a daemon.
//!
//! After a wanted change of the help run the tests once with `QVS_BLESS=1` and read the difference.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn qvs(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
    for variable in ["QVS_URL", "QVS_TENANT", "QVS_TOKEN", "QVS_CACERT"] {
        command.env_remove(variable);
    }
    command.args(args).output().unwrap()
}

/// A directory of its own for a test, with this settings file in it.
fn settings(name: &str, text: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("qvs-cli-{name}"));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("qvs.toml");
    std::fs::write(&file, text.replace("DIR", directory.to_str().unwrap())).unwrap();
    file
}

#[test]
fn the_help_of_every_command_is_as_written_down() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help");
    let mut changed = Vec::new();
    for command in [
        "",
        "run",
        "demo",
        "plug",
        "unplug",
        "show",
        "trace",
        "capture",
        "rebalance",
        "token",
        "store",
        "store export",
        "store import",
        "check",
        "net",
        "net list",
        "net show",
        "net create",
        "net rename",
        "net delete",
        "port",
        "port list",
        "port show",
        "port create",
        "port allow",
        "port up",
        "port down",
        "port delete",
        "attach",
        "attach show",
        "attach plug",
        "attach unplug",
        "completions",
        "manual",
    ] {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).filter(|arg| !arg.is_empty()).collect();
        let output = qvs(&args);
        assert!(output.status.success(), "{command}");
        let text = String::from_utf8(output.stdout).unwrap();
        let file = golden
            .join(format!("{}.txt", if command.is_empty() { "qvs".to_owned() } else { command.replace(' ', "-") }));
        if std::env::var_os("QVS_BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        } else if std::fs::read_to_string(&file).unwrap_or_default() != text {
            changed.push(file);
        }
    }
    assert!(changed.is_empty(), "the help differs from {changed:?}");
}

#[test]
fn wrong_usage_and_wrong_settings_exit_with_2() {
    let file = settings("wrong", "[api]\nlissten = \"x\"\n");
    let file = file.to_str().unwrap();
    for args in [
        &["frobnicate"][..],
        &["plug", "vm1"],
        &["show", "ports", "--config", file],
        &["capture", "vm1", "--filter", "port http"],
        &["run", "--config", file],
        &["check", "--config", file],
        &["run", "--config", "/nonexistent/qvs.toml"],
    ] {
        let output = qvs(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    let message = String::from_utf8(qvs(&["run", "--config", file]).stderr).unwrap();
    assert!(message.starts_with(&format!("qvs: {file}:2: unknown field `lissten`")), "{message}");
    assert_eq!(message.lines().count(), 1, "one line saying why: {message}");
}

#[test]
fn what_only_the_host_can_show_to_be_wrong_is_a_wrong_setting_too() {
    for (name, text, expected) in [
        ("cpu", "[switch]\nworkers = [1023]", ":5: switch.workers: CPU 1023 is outside the allowed set"),
        ("group", "[admin]\ngroup = \"no such group\"", ":5: admin.group: there is no group"),
        ("owner", "[vhost]\nowner = \"no such user\"", ":5: vhost.owner: there is no user"),
    ] {
        let file = settings(name, &format!("state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n\n{text}\n"));
        let output = qvs(&["run", "--config", file.to_str().unwrap()]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(expected), "{message}");
        assert!(!file.with_file_name("state").exists(), "nothing was made before the settings were checked");
    }
}

#[test]
fn without_a_daemon_commands_say_so_and_exit_with_1() {
    for args in [
        &["show", "ports", "--admin", "/nonexistent/admin.sock"][..],
        &["plug", "vm1", "--tap", "t", "--admin", "/nonexistent/admin.sock"],
        &["unplug", "vm1", "--admin", "/nonexistent/admin.sock"],
        &["trace", "vm1", "ff", "--admin", "/nonexistent/admin.sock"],
        &["capture", "vm1", "--admin", "/nonexistent/admin.sock"],
        &["rebalance", "--admin", "/nonexistent/admin.sock"],
    ] {
        let output = qvs(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.starts_with("qvs: no daemon answers at /nonexistent/admin.sock"), "{message}");
        assert_eq!(message.lines().count(), 1);
    }
}

#[test]
fn tenants_commands_say_in_one_line_why_nobody_was_asked() {
    let directory = settings("tenant", "").with_file_name("");
    let token = directory.join("token");
    let write = |text: &str, mode: u32| {
        std::fs::write(&token, text).unwrap();
        std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let list = ["net", "list", "--tenant", "t", "--token-file", token.to_str().unwrap(), "--url"];
    let url = "http://127.0.0.1:1";
    for (text, mode, url, status, expected) in [
        ("secret\n", 0o600, url, 1, "qvs: http://127.0.0.1:1: it cannot be reached: Connection refused"),
        ("secret\n", 0o644, url, 2, "mode 0644"),
        ("two lines\n", 0o600, url, 2, "holds no token"),
        ("", 0o600, url, 2, "holds no token"),
        ("secret", 0o600, "ftp://127.0.0.1", 2, "must be a URL like"),
        ("secret", 0o600, "https://localhost/dev/null", 2, "qvs: /nonexistent: "),
    ] {
        write(text, mode);
        let (actual, said) = told(&[&list[..], &[url, "--cacert", "/nonexistent"]].concat());
        assert_eq!(actual, Some(status), "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let output = qvs(&["net", "list", "--url", url]);
    assert_eq!(output.status.code(), Some(2), "no tenant is named");
}

#[test]
fn completions_know_every_command() {
    for (shell, sign) in [("bash", "complete -F _qvs"), ("zsh", "#compdef qvs"), ("fish", "complete -c qvs")] {
        let (status, script) = told(&["completions", shell]);
        assert_eq!(status, Some(0));
        for word in [sign, "capture", "vhost-user", "attach", "unplug", "token-file", "quantum-essex"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let directory = settings("manual", "").with_file_name("pages");
    std::fs::create_dir_all(&directory).unwrap();
    assert_eq!(told(&["manual", directory.to_str().unwrap()]), (Some(0), String::new()));
    for (page, word) in [("qvs.1", "capture"), ("qvs-plug.1", "vhost"), ("qvs-port-create.1", "attach")] {
        let text = std::fs::read_to_string(directory.join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains(word), "{page}: {text}");
    }
    assert_eq!(told(&["manual", "/nonexistent"]).0, Some(1));
}

#[test]
fn check_tells_every_failure_with_its_remedy() {
    let file = settings("check", "state_dir = \"/dev/null/state\"\nrun_dir = \"DIR/run\"\n");
    let output = qvs(&["check", "--config", file.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let state = findings.as_array().unwrap().iter().find(|finding| finding["name"] == "state_dir").unwrap();
    assert_eq!(state["grade"], "fail");
    assert!(state["remedy"].as_str().unwrap().contains("set state_dir"));
}

/// What a command that may fail printed: its status, and its output or its one line of error.
fn told(args: &[&str]) -> (Option<i32>, String) {
    let output = qvs(args);
    let text = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_store_is_exported_and_imported_and_nothing_is_overwritten_unasked() {
    let file = settings("store", "state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n");
    let directory = file.parent().unwrap();
    let _ = std::fs::remove_dir_all(directory.join("state"));
    let (backup, again) = (directory.join("backup.jsonl"), directory.join("again.jsonl"));
    let _ = std::fs::remove_file(&again);
    let text = r#"{"store":{"format":"qvs-store","version":1}}
{"network":{"id":"n","tenant":"red","name":"blue","serial":0}}
{"port":{"id":"p","network":"n","state":"ACTIVE","attachment":"vif","serial":1}}
{"end":{"records":2}}
"#;
    std::fs::write(&backup, text).unwrap();
    let store = |what: &str, file_: &Path, more: &[&str]| {
        told(&[&["store", what, file_.to_str().unwrap(), "--config", file.to_str().unwrap()], more].concat())
    };
    let state = directory.join("state/state.redb");

    let (status, said) = store("export", &again, &[]);
    assert_eq!((status, said), (Some(1), format!("qvs: {}: there is no store\n", state.display())));
    assert!(!state.exists());
    let (status, said) = store("import", &backup, &["--dry-run"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.starts_with("would write 1 network, 1 port (1 attached), 0 plugs"), "{said}");
    assert!(!state.exists());

    let (status, said) = store("import", &backup, &[]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.starts_with("1 network, 1 port (1 attached), 0 plugs"), "{said}");
    for more in [&[][..], &["--dry-run"]] {
        let (status, said) = store("import", &backup, more);
        assert_eq!(status, Some(1));
        assert!(said.contains("the store holds 2 records already"), "{said}");
        assert_eq!(said.contains("would write 1 network"), !more.is_empty(), "{said}");
    }
    assert_eq!(store("import", &backup, &["--replace"]).0, Some(0));

    assert_eq!(store("export", &again, &[]).0, Some(0));
    assert_eq!(std::fs::read_to_string(&again).unwrap(), text);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&again).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let (status, said) = store("export", &again, &[]);
    assert_eq!(status, Some(1));
    assert!(said.ends_with("again.jsonl is there already and is not overwritten\n"), "{said}");

    std::fs::write(&again, &text[..text.len() - 30]).unwrap();
    let (status, said) = store("import", &again, &["--replace"]);
    assert_eq!(status, Some(1));
    assert!(said.contains("the backup is cut off"), "{said}");
    assert_eq!(store("export", &directory.join("state/third.jsonl"), &[]).0, Some(0), "what was there is there still");
}

#[test]
fn a_database_of_the_original_is_taken_over_after_a_look() {
    let file = settings("essex", "state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n");
    let directory = file.parent().unwrap();
    let _ = std::fs::remove_dir_all(directory.join("state"));
    let dump = directory.join("quantum.sql");
    let text = "CREATE TABLE networks (uuid VARCHAR(255), tenant_id VARCHAR(255), name VARCHAR(255));
        INSERT INTO networks VALUES('n','acme','blue');
        CREATE TABLE ports (uuid VARCHAR(255), network_id VARCHAR(255), interface_id VARCHAR(255), state VARCHAR(8));
        INSERT INTO ports VALUES('p','n','vif','ACTIVE'),('q','gone',NULL,'DOWN');";
    std::fs::write(&dump, text).unwrap();
    let import = |more: &[&str]| {
        let args = ["store", "import", "--from", "quantum-essex", dump.to_str().unwrap(), "--config"];
        told(&[&args[..], &[file.to_str().unwrap()], more].concat())
    };
    let (status, said) = import(&["--dry-run"]);
    assert_eq!(status, Some(0), "{said}");
    let expected = "tenant \"acme\": networks 1, ports 1\nport q is left out: its network gone is gone\n\
        every network stays within one host: segments.default is \"local\"\nwould write 1 network, ";
    assert!(said.starts_with(expected), "{said}");
    assert!(!directory.join("state").exists());
    assert_eq!(import(&[]).0, Some(0));
    let backup = directory.join("state/backup.jsonl");
    let (status, said) = told(&["store", "export", backup.to_str().unwrap(), "--config", file.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{said}");
    let text = std::fs::read_to_string(&backup).unwrap();
    assert!(
        text.contains(r#"{"port":{"id":"p","network":"n","state":"ACTIVE","attachment":"vif","serial":1}}"#),
        "{text}"
    );
}

/// What a store that is a file gets.
const HEAD: &str = r#"{"store":{"format":"qvs-store","version":1}}"#;
/// A TAP that was made by a daemon.
const TAP: &str = r#"{"plug":{"interface":"vm1","device":{"kind":"tap","name":"tap7","netns":"blue"},"macs":[],"mtu":null,"tenant":null,"is_automatic":false,"made":"there"}}"#;

#[test]
fn networks_of_the_original_get_the_segments_of_the_settings_and_plugs_stay() {
    let file = settings(
        "essex-segments",
        "state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n[[uplink]]\nphysical_network = \"p\"\ninterface = \"e0\"\n\
         [segments]\ndefault = \"vlan\"\nvlan = \"p:100-101\"\n",
    );
    let directory = file.parent().unwrap();
    let _ = std::fs::remove_dir_all(directory.join("state"));
    let store = |args: &[&str]| told(&[&["store"], args, &["--config", file.to_str().unwrap()]].concat());
    let plugs = directory.join("plugs.jsonl");
    std::fs::write(&plugs, format!("{HEAD}\n{TAP}\n{{\"end\":{{\"records\":1}}}}\n")).unwrap();
    let (status, said) = store(&["import", plugs.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{said}");

    let dump = directory.join("quantum.sql");
    let rows = |count: usize| (0..count).map(|at| format!("('n{at}','acme')")).collect::<Vec<_>>().join(",");
    let write = |count| {
        let text = format!("CREATE TABLE networks (uuid x, tenant_id y); INSERT INTO networks VALUES {};", rows(count));
        std::fs::write(&dump, text).unwrap();
    };
    let import = ["import", "--from", "quantum-essex", dump.to_str().unwrap()];
    write(3);
    for more in [&[][..], &["--dry-run"]] {
        let (status, said) = store(&[&import[..], more].concat());
        assert!(
            status == Some(1) && said.contains("has 3 networks and the settings have segments of type vlan for 2"),
            "{said}"
        );
    }
    write(2);
    let (status, said) = store(&import);
    assert!(status == Some(0) && !said.contains("within one host"), "{said}");
    assert!(said.contains("2 networks, 0 ports (0 attached), 1 plug,"), "{said}");
    let (status, said) = store(&import);
    assert!(status == Some(1) && said.contains("the store holds 2 records already"), "{said}");
    assert_eq!(store(&[&import[..], &["--replace"]].concat()).0, Some(0));
    let written = directory.join("state/written.jsonl");
    assert_eq!(store(&["export", written.to_str().unwrap()]).0, Some(0));
    let text = std::fs::read_to_string(&written).unwrap();
    for line in [
        r#"{"network":{"id":"n0","tenant":"acme","name":null,"segment":{"type":"vlan","physical_network":"p","segmentation_id":100},"serial":0}}"#,
        r#""segmentation_id":101},"serial":1}}"#,
        TAP,
    ] {
        assert!(text.contains(line), "{text}");
    }

    // What a backup has in place of a TAP's record is told with how to remove that.
    std::fs::write(&plugs, format!("{HEAD}\n{{\"end\":{{\"records\":0}}}}\n")).unwrap();
    let orphan = "TAP tap7 of \"vm1\" is not in the file: remove it yourself by `ip -n blue link del tap7`\n";
    for more in [&["--dry-run"][..], &[]] {
        let (status, said) = store(&[&["import", plugs.to_str().unwrap(), "--replace"], more].concat());
        assert!(status == Some(0) && said.starts_with(orphan), "{said}");
    }
}

#[test]
fn a_state_in_etcd_is_neither_exported_nor_imported_and_what_to_do_is_said() {
    let file = settings("store-etcd", "[store]\nurl = \"etcd:http://127.0.0.1:1\"\n[node]\nhost = \"a\"\n");
    let store = |args: &[&str]| told(&[&["store"], args, &["--config", file.to_str().unwrap()]].concat());
    for (args, said) in [
        (&["export", "/no/file"][..], "save it by `etcdctl snapshot save`"),
        (
            &["import", "/no/file"],
            "bring it back by `etcdctl snapshot restore`; a file that `qvs store export` wrote cannot be put there",
        ),
        (
            &["import", "/no/file", "--from", "quantum-essex"],
            "the original's records cannot be put there, only into a store that is a file",
        ),
    ] {
        assert_eq!(store(args), (Some(1), format!("qvs: the state is in etcd (store.url): {said}\n")));
    }
}

#[test]
fn whatever_becomes_of_a_command_on_a_store_its_files_are_the_owner_s_of_their_directory() {
    let file = settings("store-owner", "state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n");
    let directory = file.parent().unwrap();
    let state = directory.join("state");
    let _ = std::fs::remove_dir_all(&state);
    std::fs::create_dir(&state).unwrap();
    // Root works for a daemon that is somebody else; who is not has files of his own only.
    let owner = match std::fs::metadata(&state).unwrap().uid() {
        0 => {
            std::os::unix::fs::chown(&state, Some(65534), Some(65534)).unwrap();
            65534
        }
        own => own,
    };
    let store = |args: &[&str]| told(&[&["store"], args, &["--config", file.to_str().unwrap()]].concat());
    let backup = directory.join("backup.jsonl");
    let network = r#"{"network":{"id":"n","tenant":"red","name":null,"serial":0}}"#;
    std::fs::write(&backup, format!("{HEAD}\n{network}\n{{\"end\":{{\"records\":1}}}}\n")).unwrap();
    let import = ["import", backup.to_str().unwrap()];
    let looked = |what: &str, names: &[&str]| {
        let mut found: Vec<_> = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap()).collect();
        found.sort_by_key(std::fs::DirEntry::file_name);
        let found: Vec<_> = found
            .iter()
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().uid()))
            .collect();
        let expected: Vec<_> = names.iter().map(|name| ((*name).to_owned(), owner)).collect();
        assert_eq!(found, expected, "after {what}");
    };
    // A name in the way, so that nothing can be made.
    let fresh = state.join("state.redb.new");
    std::fs::create_dir(&fresh).unwrap();
    std::os::unix::fs::chown(&fresh, Some(owner), None).unwrap();
    assert_eq!(store(&import).0, Some(1));
    looked("an import that failed", &["state.redb.new", "state.redb.pid"]);
    std::fs::remove_dir(&fresh).unwrap();
    let both = ["state.redb", "state.redb.pid"];
    assert_eq!(store(&import).0, Some(0));
    looked("an import", &both);
    assert_eq!(store(&import).0, Some(1));
    for args in [&["export", directory.join("no/file").to_str().unwrap()][..], &["import", import[1], "--dry-run"]] {
        std::fs::remove_file(state.join("state.redb.pid")).unwrap();
        assert_eq!(store(args).0, Some(1));
        looked(args[0], &both);
    }
}

#[test]
fn a_database_of_the_original_itself_is_read_by_sqlite_s_own_program() {
    let file = settings("sqlite", "state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n");
    let directory = file.parent().unwrap();
    let database = directory.join("-quantum.sqlite");
    std::fs::write(&database, "SQLite format 3\0").unwrap();
    let tools = directory.join("tools");
    std::fs::create_dir_all(&tools).unwrap();
    let import = |sqlite: &str| {
        let tool = tools.join("sqlite3");
        let _ = std::fs::remove_file(&tool);
        if !sqlite.is_empty() {
            // Copied by another process: a child of another test that is just starting would have a file that was written here
            // open for writing, and the kernel executes no such file.
            let text = directory.join("sqlite3.sh");
            std::fs::write(&text, format!("#!/bin/sh\n{sqlite}\n")).unwrap();
            std::fs::set_permissions(&text, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            assert!(Command::new("cp").args([&text, &tool]).status().unwrap().success());
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
        command.current_dir(directory).env("PATH", &tools);
        command.args(["store", "import", "--dry-run", "--from", "quantum-essex", "--config"]).arg(&file);
        let output = command.args(["--", "-quantum.sqlite"]).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (status, said) = import("");
    assert!(status == Some(1) && said.contains("install it (apt install sqlite3)"), "{said}");
    // A program that answers as that one does, to the words that it understands.
    let asked = format!("-batch -init /dev/null -readonly {} PRAGMA integrity_check .dump", database.display());
    let dump = "CREATE TABLE networks (uuid x, tenant_id y); INSERT INTO networks VALUES ('n','acme');";
    let (status, said) = import(&format!("[ \"$*\" = '{asked}' ] && echo ok && echo \"{dump}\""));
    assert!(status == Some(0) && said.contains("would write 1 network,"), "{said}");
    let (status, said) = import(&format!("echo '*** in database main ***'; echo \"{dump}\""));
    assert!(status == Some(1) && said.contains("no whole database in it: *** in database main ***"), "{said}");
}
