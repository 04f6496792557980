//! The running daemon held against its own OpenAPI description by schemathesis, with both plugins, and with tokens.
//!
//! It makes requests from the description, valid and invalid, follows what was made from one operation to the next, and
//! finds answers that the description does not have: statuses, media types, headers, bodies; requests that should have been
//! refused and were not; and any 5xx. `QVS_SCHEMATHESIS` names the Python environment it is installed in; `QVS_SEED=N`
//! starts it with that seed, and `QVS_EXAMPLES=N` has it make up N requests for an operation.

use std::path::Path;
use std::process::Command;
use std::thread;
use tests::daemon::{Daemon, program};
use tests::http::Connection;
use tests::process::TempDir;

/// Requests that are made up for an operation, besides its examples and the limits of its parameters. More would take
/// longer than a chapter should.
const MADE_UP: &str = "3";
/// The checks that are of other services than this one: a wrong method is 404 here and never 405, a path of ids that are not
/// there is no success, and there is one owner.
const NOT_HERE: &str =
    "unsupported_method,allow_header_conformance,positive_data_acceptance,object_level_authorization";
/// The tenant of the description's examples, whose token is used where there are tokens.
const TENANT: &str = api::v1::reference::TENANT;
/// Our faults have statuses of their own.
const SETTINGS: &str = "[checks]\nnegative_data_rejection.expected-statuses = [\"4xx\"]\n";
/// XML has no types that a text could violate, so no invalid body is made in it; and what says it is XML must be.
const HOOKS: &str = "
import schemathesis
from xml.etree import ElementTree

@schemathesis.hook
def filter_case(context, case):
    is_negative = case.meta is not None and case.meta.generation.mode.is_negative
    return not (is_negative and case.media_type == 'application/xml')

@schemathesis.check
def xml_is_xml(context, response, case):
    content_type = (response.headers.get('content-type') or [''])[0]
    if content_type.startswith('application/xml') and response.content:
        ElementTree.fromstring(response.content)
";

fn hold(driver: &str, identity: &str, environment: &Path, seed: &str) {
    let dir = TempDir::new();
    let (has_tokens, before) = (identity == "tokens", dir.join("before.toml"));
    std::fs::write(&before, format!("state_dir = {:?}", dir.join("state"))).unwrap();
    let token = has_tokens.then(|| {
        let made = Command::new(program()).args(["token", TENANT, "--config"]).arg(before).output().unwrap();
        String::from_utf8(made.stdout).unwrap().trim_end().to_owned()
    });
    let settings = format!("[plugin]\ndriver = \"{driver}\"\n[identity]\nmode = \"{identity}\"");
    let daemon = Daemon::start_in(dir, &settings);
    let mut connection = Connection::open(daemon.api()).unwrap();
    let description = connection.request("GET", "/openapi.json", None).unwrap().json();
    let paths = description["paths"].as_object().expect("a description has paths").values();
    let count: usize = paths.map(|path| path.as_object().unwrap().len()).sum();
    let dir = TempDir::new();
    std::fs::write(dir.join("settings.toml"), SETTINGS).unwrap();
    std::fs::write(dir.join("hooks.py"), HOOKS).unwrap();
    let mut command = Command::new(environment.join("bin/st"));
    command.current_dir(dir.path()).env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONPATH", dir.path());
    command.args(["--config-file", "settings.toml", "run", &format!("http://{}/openapi.json", daemon.api())]);
    let exclude = if has_tokens { NOT_HERE.to_owned() } else { format!("{NOT_HERE},ignored_auth") };
    command.args(["--checks", "all", "--exclude-checks", &exclude, "--seed", seed]);
    let examples = std::env::var("QVS_EXAMPLES").unwrap_or_else(|_| MADE_UP.to_owned());
    command.args(["--max-examples", &examples, "--generation-database", "none", "--no-color"]);
    // A slow machine says nothing of the daemon.
    command.args(["--suppress-health-check", "too_slow", "--request-timeout", "60"]);
    command.args(token.iter().flat_map(|token| ["--header".to_owned(), format!("X-Auth-Token: {token}")]));
    let output = command.output().expect("schemathesis is installed");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{driver}, {identity}, seed {seed}:\n{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // All but the one by which it got the description.
    let tested = told.lines().find_map(|line| line.trim().strip_prefix("Tested:")).map(str::trim);
    assert!(count > 50 && tested == Some(&(count - 1).to_string()), "{driver}: not all of {count} operations:\n{told}");
    Connection::open(daemon.api()).unwrap().request("GET", "/openapi.json", None).expect("it is still there");
}

#[test]
fn the_daemon_answers_as_its_description_says_with_either_plugin_and_with_tokens() {
    let environment =
        std::env::var_os("QVS_SCHEMATHESIS").expect("`cargo xtask test openapi` installs and names schemathesis");
    let seed = std::env::var("QVS_SEED").unwrap_or_else(|_| "1".to_owned());
    thread::scope(|scope| {
        for (driver, identity) in [("native", "noauth"), ("fake", "noauth"), ("native", "tokens")] {
            let (environment, seed) = (Path::new(&environment), &seed);
            scope.spawn(move || hold(driver, identity, environment, seed));
        }
    });
}
