//! The rules of the house that the compiler does not know: who may know whom, where `unsafe` lives, what words are not
//! used, and that the documents tell the truth about files.
//!
//! Rules about code look at code: comments and texts are blanked first, and so are the tests at the end of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use tests::process::{cargo_metadata, repository};

/// Files longer than this are explained in ARCHITECTURE.md.
const LINES_MAX: usize = 500;

/// Where `unsafe` may be at all (ARCHITECTURE.md says where it is).
const UNSAFE_ADDRESSES: &[&str] = &[
    "switch/src/segment.rs",
    "switch/src/pool.rs",
    "switch/src/tap.rs",
    "switch/src/af_xdp.rs",
    "switch/src/af_xdp/bpf.rs",
    "switch/src/af_packet.rs",
    "switch/src/affinity.rs",
    "switch/src/sigbus.rs",
    "vhost/src/socket.rs",
    "vhost/src/memory.rs",
    "vhost/src/memory/driver.rs",
    "vhost/src/memory/inflight.rs",
    "vhost/src/memory/log.rs",
    "vhost/src/ring/split.rs",
    "vhost/src/ring/packed.rs",
];

/// A word that is not used, where, and what to use instead.
struct Ban {
    word: &'static str,
    below: &'static [&'static str],
    except: &'static [&'static str],
    instead: &'static str,
}

/// The crates that make up the program.
const PRODUCT: &[&str] = &["switch/", "vhost/", "pipelines/", "api/"];
/// Those of them that are libraries.
const LIBRARIES: &[&str] = &["switch/src/", "vhost/src/", "pipelines/src/", "api/src/"];

const BANS: &[Ban] = &[
    Ban {
        word: "Instant::now",
        below: &["switch/src/", "vhost/src/", "pipelines/src/"],
        // The driver side is a test's and a load generator's, and waits for its peer.
        except: &["switch/src/clock.rs", "vhost/src/driver"],
        instead: "time comes in as an argument, from switch/src/clock.rs",
    },
    Ban {
        word: "SystemTime",
        below: PRODUCT,
        except: &["switch/daemon/src/"],
        instead: "time comes in as an argument",
    },
    Ban {
        word: "std::sync::atomic",
        below: &["switch/src/"],
        // The others share with system calls and a signal handler, which no model can hold.
        except: &[
            "switch/src/sync.rs",
            "switch/src/poll.rs",
            "switch/src/switch.rs",
            "switch/src/sigbus.rs",
            "switch/src/af_xdp.rs",
        ],
        instead: "crate::sync, so that the model checker sees it",
    },
    Ban { word: "println!", below: LIBRARIES, except: &[], instead: "tracing, at state changes" },
    Ban {
        word: "Command::new",
        below: PRODUCT,
        except: &["switch/daemon/src/demo/", "switch/daemon/src/backup/sqlite.rs"],
        instead: "a system call: the daemon never runs another program",
    },
    Ban { word: "#[ignore", below: &[""], except: &[], instead: "assert today's answer and say so" },
    Ban { word: "static mut", below: &[""], except: &[], instead: "an atomic, or an argument" },
    Ban { word: "todo!", below: &[""], except: &[], instead: "the thing itself" },
    Ban { word: "unimplemented!", below: &[""], except: &[], instead: "the thing itself" },
    Ban { word: "dbg!", below: &[""], except: &[], instead: "tracing" },
];

/// Every file of ours with this ending, by its path from the root. Builds and hidden folders are left out.
fn files(ending: &str) -> BTreeMap<String, String> {
    fn walk(dir: &Path, ending: &str, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).expect("our own directory").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if name.starts_with('.') || name == "target" || name == "corpus" || name == "artifacts" {
                continue;
            }
            if path.is_dir() {
                walk(&path, ending, found);
            } else if name.ends_with(ending) {
                let short = path.strip_prefix(repository()).expect("below the root").to_string_lossy().into_owned();
                // A file may vanish between listing and reading while somebody works here.
                if let Ok(text) = fs::read_to_string(&path) {
                    found.insert(short, text);
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(repository(), ending, &mut found);
    found
}

fn document(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The code without comments and texts: both become spaces, lines stay.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    let blank = |out: &mut Vec<u8>, part: &[u8]| {
        out.extend(part.iter().map(|&byte| if byte == b'\n' { b'\n' } else { b' ' }));
    };
    while at < bytes.len() {
        let rest = &bytes[at..];
        let len = if rest.starts_with(b"//") {
            rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            rest.windows(2).position(|pair| pair == b"*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(len) = raw_text_len(rest).filter(|_| !follows_a_name(bytes, at)) {
            len
        } else if rest[0] == b'"' {
            text_len(rest)
        } else if rest.starts_with(b"'\"'") || rest.starts_with(b"'\\") {
            // A character; a lifetime has no second quote and needs no care.
            rest[2..].iter().position(|&byte| byte == b'\'').map_or(1, |end| end + 3)
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        blank(&mut out, &rest[..len]);
        at += len;
    }
    String::from_utf8(out).expect("only whole comments and texts were blanked")
}

fn follows_a_name(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

/// Length of a text in quotes with escapes.
fn text_len(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Length of `r"…"`, `r#"…"#`, with or without `b` before it.
fn raw_text_len(bytes: &[u8]) -> Option<usize> {
    let start = if bytes.starts_with(b"br") { 2 } else { 1 };
    if !bytes.starts_with(b"r") && start == 1 {
        return None;
    }
    let hashes = bytes[start..].iter().take_while(|&&byte| byte == b'#').count();
    if bytes.get(start + hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.resize(hashes + 1, b'#');
    let body = start + hashes + 1;
    bytes[body..].windows(end.len()).position(|window| window == end).map(|at| body + at + end.len())
}

/// Whether a whole file is test code.
fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "benches" || part == "fuzz")
        || path.starts_with("api/src/plugin/conformance")
        || ["tests.rs", "testing.rs", "port_contract.rs", "fuzzing.rs", "model.loom.rs"]
            .iter()
            .any(|name| path.ends_with(&format!("/{name}")))
}

/// The code of a file up to its own test module, which stands last.
fn product_code(text: &str) -> String {
    let mut code = code(text);
    let tests =
        ["#[cfg(test)]\nmod tests {", "#[cfg(all(test, not(loom)))]\nmod tests {", "#[cfg(all(test, loom))]\nmod "];
    if let Some(at) = tests.iter().filter_map(|head| code.find(head)).min() {
        code.truncate(at);
    }
    code
}

fn has_word(code: &str, word: &str) -> bool {
    let is_part = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    code.match_indices(word).any(|(at, _)| {
        let bytes = code.as_bytes();
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        !is_part(before) && (word.ends_with('!') || !is_part(bytes.get(at + word.len())))
    })
}

#[test]
fn crates_know_only_those_the_arrows_allow() {
    let packages = cargo_metadata()["packages"].as_array().unwrap();
    let names: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let allowed: BTreeMap<&str, &[&str]> = [
        ("switch", &[][..]),
        ("vhost", &["switch"][..]),
        ("pipelines", &["switch"][..]),
        ("api", &["switch"][..]),
        ("xtask", &[][..]),
    ]
    .into();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let Some(allowed) = allowed.get(name) else { continue };
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            assert!(
                !names.contains(other) || other == name || allowed.contains(&other),
                "{name} must not know {other}"
            );
        }
    }
    for name in allowed.keys() {
        assert!(names.contains(name), "no package {name}");
    }
}

#[test]
fn the_top_level_folders_are_those_of_the_house() {
    let mut folders: Vec<String> = fs::read_dir(repository())
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    folders.sort();
    assert_eq!(folders, ["api", "benches", "pipelines", "switch", "tests", "tools", "vhost"]);
}

#[test]
fn unsafe_lives_at_its_addresses_and_architecture_names_them() {
    let actual: BTreeSet<String> =
        files(".rs").into_iter().filter(|(_, text)| has_word(&code(text), "unsafe")).map(|(path, _)| path).collect();
    for path in &actual {
        assert!(
            UNSAFE_ADDRESSES.contains(&path.as_str()),
            "{path} has unsafe code; its addresses are {UNSAFE_ADDRESSES:?}"
        );
    }
    let text = document("ARCHITECTURE.md");
    let start = text.find("`unsafe` has these addresses").expect("ARCHITECTURE.md lists the addresses");
    let paragraph = text[start..].split("\n\n").next().unwrap();
    // What stands in brackets tells of addresses that turned out to need none.
    let list = paragraph.split('(').next().unwrap();
    let listed: BTreeSet<String> = quoted(list).into_iter().filter(|word| word.ends_with(".rs")).collect();
    assert_eq!(actual, listed, "left: files with unsafe code; right: ARCHITECTURE.md's list");
}

#[test]
fn crates_that_need_no_unsafe_forbid_it() {
    for path in ["api/src/lib.rs", "pipelines/src/lib.rs", "switch/daemon/src/main.rs"] {
        assert!(document(path).contains("#![forbid(unsafe_code)]"), "{path}");
    }
}

#[test]
fn banned_words_are_not_used() {
    let mut faults = Vec::new();
    for (path, text) in files(".rs") {
        let product = if is_test_file(&path) { String::new() } else { product_code(&text) };
        let all = code(&text);
        for ban in BANS {
            let is_everywhere = ban.below == [""];
            let concerned = ban.below.iter().any(|below| path.starts_with(below))
                && !ban.except.iter().any(|except| path.starts_with(except));
            let code = if is_everywhere { &all } else { &product };
            if concerned && has_word(code, ban.word) {
                faults.push(format!("{path}: {}; instead: {}", ban.word, ban.instead));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_stage_decides_in_one_function_and_runs_in_another() {
    let mut stages = 0;
    for (path, text) in files(".rs") {
        let code = code(&text);
        if path.starts_with("pipelines/src/") && !is_test_file(&path) && code.contains("\nfn run(scope: &Scope<'_>") {
            stages += 1;
            assert!(code.contains("\npub fn decide("), "{path} has `fn run` and no `fn decide`");
        }
    }
    assert!(stages >= 4, "only {stages} stages found: has `fn run` another shape now?");
}

#[test]
fn every_source_file_opens_with_what_it_is() {
    let without: Vec<String> =
        files(".rs").into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| path).collect();
    assert!(without.is_empty(), "no `//!` first: {without:?}");
}

#[test]
fn long_files_are_explained() {
    let architecture = document("ARCHITECTURE.md");
    // Being named as an address of `unsafe` explains no length.
    let explained = &architecture[architecture.find("## Long files").expect("a section on long files")..];
    let unexplained: Vec<String> = files(".rs")
        .into_iter()
        .filter(|(path, text)| text.lines().count() > LINES_MAX && !explained.contains(&format!("`{path}`")))
        .map(|(path, text)| format!("{path} ({} lines)", text.lines().count()))
        .collect();
    assert!(unexplained.is_empty(), "over {LINES_MAX} lines and not explained in ARCHITECTURE.md: {unexplained:#?}");
}

#[test]
fn every_dependency_has_its_reason() {
    let cargo: toml::Table = document("Cargo.toml").parse().unwrap();
    let architecture = document("ARCHITECTURE.md");
    let table = &architecture[architecture.find("## Dependencies").expect("a section on dependencies")..];
    let ours = ["api", "pipelines", "switch", "vhost"];
    let asked_for = [
        "af_xdp",
        "crossbeam",
        "core_affinity",
        "etherparse",
        "hashbrown",
        "axum",
        "tokio",
        "serde",
        "criterion",
        "tun-tap",
    ];
    let dependencies = cargo["workspace"]["dependencies"].as_table().unwrap();
    let names = dependencies.keys().map(String::as_str).filter(|name| !ours.contains(name)).chain(asked_for);
    let is_word_part = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '-';
    let words: BTreeSet<&str> = table.split(|letter| !is_word_part(letter)).collect();
    let missing: Vec<&str> = names.filter(|name| !words.contains(name)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md gives no reason for {missing:?}");
}

/// What stands between single backquotes on one line.
fn quoted(text: &str) -> Vec<String> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn paths_in_documents_exist() {
    let tops = ["api/", "benches/", "pipelines/", "switch/", "tests/", "tools/", "vhost/"];
    let mut gone = Vec::new();
    for (document, text) in files(".md") {
        for word in quoted(&text) {
            let is_path = tops.iter().any(|top| word.starts_with(top)) && !word.contains(|c: char| " *{<…".contains(c));
            // A path may carry a line or an item behind a colon.
            let path = word.split(':').next().unwrap();
            if is_path && !repository().join(path).exists() {
                gone.push(format!("{document}: {word}"));
            }
        }
    }
    assert!(gone.is_empty(), "{gone:#?}");
}

#[test]
fn no_file_names_a_path_of_somebodys_machine() {
    // Put together here, so that this file does not hold them.
    let homes = [["/home", "/"], ["/root", "/"], ["/work", "/"], ["/Users", "/"]].map(|parts| parts.concat());
    let mut found = Vec::new();
    for ending in [".rs", ".md", ".toml", ".sh", ".service", ".json", ".txt", ".xml"] {
        for (path, text) in files(ending) {
            for home in &homes {
                // a second slash before it would make it part of an address, and a letter part of a word.
                let named = text.match_indices(home.as_str()).any(|(at, _)| {
                    text[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric() && before != '/')
                });
                if named {
                    found.push(format!("{path}: {home}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// A text with every run of white space as one space: the README indents what it quotes.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_readme_quotes_the_lines_that_guests_are_booted_with() {
    let readme = squeezed(&document("README.md"));
    for name in ["qemu-server.txt", "qemu-client.txt", "libvirt-server.xml", "libvirt-client.xml", "libvirt-memory.xml"]
    {
        let quoted = document(&format!("tests/golden/readme/{name}"));
        assert!(readme.contains(&squeezed(&quoted)), "README.md does not show {name}:\n{quoted}");
    }
}

#[test]
fn libvirts_mode_is_the_opposite_of_the_switchs_role() {
    let server = document("tests/golden/readme/libvirt-server.xml");
    let client = document("tests/golden/readme/libvirt-client.xml");
    // Where the switch listens, QEMU must connect again by itself after a restart of the switch.
    assert!(server.contains("mode='client'") && server.contains("<reconnect enabled='yes'"), "{server}");
    assert!(client.contains("mode='server'") && !client.contains("reconnect"), "{client}");
}

#[test]
fn ci_runs_the_one_test_command_and_nothing_else() {
    let script = document(".ci/run");
    let lines: Vec<&str> = script.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert_eq!(lines, ["exec cargo xtask test"]);
}

#[test]
fn blanking_leaves_code_and_its_lines() {
    let text =
        "let a = \"un\\\"safe\"; // unsafe\n/* unsafe\n*/ let b = r#\"x\"unsafe\"#; let c: &'a str = '\"'; unsafe {}\n";
    let code = code(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(code.matches("unsafe").count(), 1);
    assert!(has_word(&code, "unsafe") && !has_word("#![forbid(unsafe_code)]", "unsafe"));
}
