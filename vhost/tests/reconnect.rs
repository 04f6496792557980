//! A switch that connects: to a socket that is not there yet, or not any more.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{TestPlace, backend_config, frame, socket_path, until};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use switch::port::{Device, Link};
use vhost::backend::{Backend, Role};
use vhost::driver::{Driver, DriverConfig};

#[test]
fn a_port_comes_up_by_itself_after_its_socket_was_absent_and_then_dead_and_does_so_again() {
    let path = socket_path();
    let place = Arc::new(TestPlace::default());
    let backend = Backend::start(backend_config(Role::Client, path.clone()), place.clone()).unwrap();
    for round in 0..2 {
        until("the missing socket is told", || backend.state().reason.contains("No such file"));
        drop(UnixListener::bind(&path).unwrap());
        until("the dead socket is told", || backend.state().reason.contains("refused"));
        assert_eq!((backend.state().is_ready, backend.state().link), (false, Link::Down));
        std::fs::remove_file(&path).unwrap();

        let mut config = DriverConfig::new(&path);
        config.is_listening = true;
        let mut driver = Driver::new(config).unwrap();
        driver.start().unwrap();
        until("the port is up", || backend.state().link == Link::Up);
        assert_eq!((backend.state().is_ready, backend.state().reason.as_str()), (true, ""));
        assert_eq!(backend.counters().sessions, round + 1);
        let sent = frame(round as u32, 60);
        assert_eq!(driver.sender.send_burst(&[&sent]), 1);
        assert_eq!(place.round().0[0].0, sent);
        assert_eq!(place.send(&[&sent]).packets, 1);
        assert_eq!(driver.receiver.recv_burst(9, |_, bytes| assert_eq!(bytes, sent)), 1);
    }
}
