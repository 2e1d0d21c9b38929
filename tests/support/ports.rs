//! Ports for programs that cannot say which one they took, and for servers that go away and come
//! back.
//!
//! Included by more than one test target, with `#[path]`. They lie below those that the kernel
//! gives away by itself (`ip_local_port_range`), to connections and to listeners on port 0: what
//! other tests do in the meantime takes none of them, and who tries to connect to one while
//! nobody listens is not connected to itself.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// The first one, and how many there are.
const FIRST: u16 = 12_000;
const COUNT: u16 = 18_000;

/// A port on loopback where nobody listens. Each is given out once in a process.
pub(crate) fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another run at the same time begins elsewhere.
    let begin = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap();
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(number < COUNT, "no port is free");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + (begin + number) % COUNT));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
