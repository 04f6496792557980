//! The root file system of a test guest: a cpio archive (format "newc", kernel document
//! Documentation/driver-api/early-userspace/buffer-format.rst) with busybox, the kernel modules a guest needs and a few
//! programs of the host with their libraries.
//!
//! Nothing is installed for it: the kernel package is unpacked under `target/guest` by `cargo xtask test`, the programs
//! are the host's own. Modules are loaded by the init script in an order found here, because an unpacked package has
//! no `modules.dep`.

use crate::process::output_of;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A cpio archive being written.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
    names: BTreeSet<String>,
}

/// File type bits of a cpio mode.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(data.len()).expect("no file of a test guest has 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// A directory and those above it. `path` has no leading slash.
    pub fn directory(&mut self, path: &str) {
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let part = &path[..end];
            if !part.is_empty() && self.names.insert(part.to_owned()) {
                self.entry(part, DIRECTORY | 0o755, &[]);
            }
        }
    }

    fn parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    /// A file; a second one of the same name is left out.
    pub fn file(&mut self, path: &str, permissions: u32, data: &[u8]) {
        self.parent(path);
        if self.names.insert(path.to_owned()) {
            self.entry(path, REGULAR | permissions, data);
        }
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.parent(path);
        if self.names.insert(path.to_owned()) {
            self.entry(path, SYMLINK | 0o777, to.as_bytes());
        }
    }

    /// A program of the host with the libraries `ldd` names.
    ///
    /// # Panics
    /// If the program is not there.
    pub fn program(&mut self, host_path: &Path) {
        let put = |cpio: &mut Cpio, path: &Path| {
            let data = fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
            cpio.file(path.to_str().expect("UTF-8 path").trim_start_matches('/'), 0o755, &data);
        };
        put(self, host_path);
        // A line is `NAME => /path (0x…)` or `/path (0x…)`; the kernel's own `linux-vdso` has no path.
        for line in output_of("ldd", &[host_path]).lines() {
            if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
                put(self, Path::new(path));
            }
        }
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// A kernel package unpacked somewhere.
#[derive(Debug)]
pub struct Kernel {
    /// The bootable image.
    pub image: PathBuf,
    modules: BTreeMap<String, PathBuf>,
}

impl Kernel {
    /// Finds the kernel under `root`, which holds `boot` and `lib/modules`.
    ///
    /// # Panics
    /// If there is none: `cargo xtask test vm` fetches it.
    pub fn find(root: &Path) -> Kernel {
        let image = fs::read_dir(root.join("boot"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")));
        let Some(image) = image else {
            panic!("no guest kernel under {}; `cargo xtask test vm` fetches one", root.display())
        };
        let mut modules = BTreeMap::new();
        collect_modules(&root.join("lib/modules"), &mut modules);
        Kernel { image, modules }
    }

    /// The module files that `wanted` need, each after those it needs itself. Modules that are not there are taken to
    /// be built in.
    fn modules(&self, wanted: &[&str]) -> Vec<(String, Vec<u8>)> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.visit(name, &mut seen, &mut order);
        }
        order
    }

    /// Puts them into an archive, and the order in which they are to be loaded.
    pub fn put_modules(&self, wanted: &[&str], cpio: &mut Cpio) {
        let modules = self.modules(wanted);
        for (name, data) in &modules {
            cpio.file(&format!("modules/{name}.ko"), 0o644, data);
        }
        let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
        cpio.file("modules/order", 0o644, order.as_bytes());
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<(String, Vec<u8>)>) {
        let name = name.replace('-', "_");
        let Some(path) = self.modules.get(&name) else { return };
        if !seen.insert(name.clone()) {
            return;
        }
        let data = read_module(path);
        for needed in depends(&data) {
            self.visit(&needed, seen, order);
        }
        order.push((name, data));
    }
}

fn collect_modules(dir: &Path, modules: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_modules(&path, modules);
        } else if let Some((stem, _)) = name.split_once(".ko") {
            modules.insert(stem.replace('-', "_"), path);
        }
    }
}

/// The module's ELF file; newer Debian kernels compress them with xz.
fn read_module(path: &Path) -> Vec<u8> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let output = std::process::Command::new("xz").arg("-dc").arg(path).output().expect("xz-utils is installed");
        assert!(output.status.success(), "xz cannot read {}", path.display());
        return output.stdout;
    }
    fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The names in the module's own `depends=` line.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let text = &module[at + KEY.len()..];
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    let text = String::from_utf8_lossy(&text[..end]);
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_lists_each_directory_once_and_pads_to_four() {
        let mut cpio = Cpio::default();
        cpio.file("a/b/one", 0o644, b"12345");
        cpio.file("a/b/two", 0o755, b"");
        cpio.link("a/three", "b/one");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        let count = |needle: &[u8]| bytes.windows(needle.len()).filter(|window| *window == needle).count();
        assert_eq!(count(b"070701"), 6, "two directories, two files, a link, the trailer");
        assert_eq!(count(b"\0a/b\0"), 0, "names follow the header's digits, not a NUL");
        assert_eq!(count(b"12345\0\0\0"), 1);
    }

    #[test]
    fn a_modules_needs_are_read_from_its_own_text() {
        assert_eq!(depends(b"\x7fELF\0license=GPL\0depends=virtio,net-failover\0name=x\0"), ["virtio", "net-failover"]);
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"no such line").is_empty());
    }
}
