//! Names of users and groups to numbers, from `/etc/passwd` and `/etc/group`.
//!
//! Accounts that only NSS knows (LDAP, systemd's dynamic users) are given by number: resolving them would need the C
//! library's loader to run foreign code in the switch.

/// A user's id: by name, or the number itself.
pub(crate) fn uid(name: &str) -> Result<u32, String> {
    resolve("user", name, "/etc/passwd")
}

/// A group's id: by name, or the number itself.
pub(crate) fn gid(name: &str) -> Result<u32, String> {
    resolve("group", name, "/etc/group")
}

fn resolve(kind: &str, name: &str, file: &str) -> Result<u32, String> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    find(&text, name).ok_or_else(|| format!("there is no {kind} {name:?} in {file}"))
}

/// The third field of the line whose first is `name` (passwd(5), group(5)).
fn find(text: &str, name: &str) -> Option<u32> {
    text.lines().map(|line| line.split(':')).find_map(|mut fields| {
        (fields.next() == Some(name)).then(|| fields.nth(1)).flatten().and_then(|id| id.parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found_and_strangers_are_not() {
        let text = "root:x:0:0:root:/root:/bin/sh\nqemu:x:107:64055::/:\nbroken\n";
        assert_eq!(find(text, "qemu"), Some(107));
        assert_eq!(find(text, "broken"), None);
        assert_eq!(find(text, "nobody"), None);
        assert_eq!(uid("4711"), Ok(4711));
        assert_eq!(uid("root"), Ok(0));
        assert!(gid("no such group").unwrap_err().contains("no such group"));
    }
}
