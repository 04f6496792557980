//! An etcd of one member for a bench, with its data on the disk and synced, as it is in earnest.

use anyhow::{Context, Result, ensure};
use api::etcd::EtcdConfig;
use api::watched::Rights;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest start.
const START_MAX: Duration = Duration::from_secs(30);

/// It is gone when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    dir: PathBuf,
}

impl Server {
    /// Starts one at a free port of this address, in the namespace of the calling thread.
    pub(crate) fn start(program: &Path, ip: IpAddr) -> Result<Server> {
        let free = || TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr());
        let (listen, peer) = (free()?, format!("http://{}", free()?));
        let url = format!("http://{listen}");
        let dir = std::env::temp_dir().join(format!("qvs-cloud-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let child = Command::new(program)
            .args(["--name", "b", "--quota-backend-bytes", "8000000000", "--data-dir"])
            .arg(dir.join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("b={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} (Debian: etcd-server)", program.display()))?;
        let server = Server { child, url, dir };
        let begin = Instant::now();
        while std::net::TcpStream::connect(listen).is_err() {
            ensure!(begin.elapsed() < START_MAX, "etcd does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// How to reach it.
    pub(crate) fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![self.url.clone()],
            ca: PathBuf::new(),
            identity: None,
            user: None,
            rights: Rights::OwnerOnly,
        }
    }

    /// A directory of its own, which goes with it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
