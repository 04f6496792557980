//! The server's bounds: how many of what, and how long for what.

use std::time::Duration;

/// How many and how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at a time. Who comes then takes the place of one that waits for a request; if all that could make
    /// room are busy some wait and others are hung up on. The runtime is to have as many blocking threads, so that a read never waits for a
    /// thread that waits for a disk.
    pub connections: usize,
    /// Of these, from one address (IPv6: 64 bits of it); who comes then takes the place of the one from there that waits
    /// longest without a request.
    pub peer_connections: usize,
    /// The same from loopback, where all clients of this host have one address: 500 of a busy service, and some left for others.
    pub loopback_connections: usize,
    /// Memory of large answers in all, those being made and those not yet taken by their clients, bytes: seven lists of
    /// 100,000 ports. A tenant, or an address where tenants are not known, has at most half of what others leave.
    pub answer_memory: usize,
    /// For such memory to become free, before a client is told to ask again.
    pub answer_wait: Duration,
    /// For the handshake of TLS.
    pub handshake_time: Duration,
    /// For a request's head, and for the next request on a kept connection.
    pub head_time: Duration,
    /// For a request's body.
    pub body_time: Duration,
    /// For a client that stopped reading its answer; one that reads a large one slowly has as long besides what 256 KiB a
    /// second take.
    pub write_time: Duration,
    /// Lines that the audit log has of strangers' writes from one address in [`Limits::stranger_time`]; of more, their number.
    pub stranger_lines: u32,
    /// See [`Limits::stranger_lines`].
    pub stranger_time: Duration,
    /// For requests in flight at shutdown. The daemon has 5 s in all.
    pub shutdown_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            peer_connections: 128,
            loopback_connections: 768,
            answer_memory: 128 << 20,
            answer_wait: Duration::from_secs(5),
            handshake_time: Duration::from_secs(10),
            head_time: Duration::from_secs(15),
            body_time: Duration::from_secs(10),
            write_time: Duration::from_secs(20),
            stranger_lines: 10,
            stranger_time: Duration::from_secs(10),
            shutdown_time: Duration::from_secs(4),
        }
    }
}
