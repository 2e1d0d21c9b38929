//! Connections that are idle. They are dropped long before a backend drops them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;

/// Idle connections to one URL.
pub(super) struct Pool {
    idle: Arc<Mutex<VecDeque<Idle>>>,
    /// Whether a sweeper looks after them.
    swept: Arc<AtomicBool>,
    keep_alive: Duration,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    pub(super) fn new(keep_alive: Duration) -> Self {
        Self { idle: Arc::default(), swept: Arc::default(), keep_alive }
    }

    /// The connection that was used last, if it can be used still.
    pub(super) fn check_out(&self) -> Option<Connection> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop_back()?;
            let Idle { mut connection, since } = idle;
            if since.elapsed() < self.keep_alive && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Takes a connection whose last reply was read to its end.
    pub(super) fn check_in(&self, connection: Connection) {
        if self.keep_alive.is_zero() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Connections enter an empty pool again only after the sweeper has left it.
        if idle.is_empty() && !self.swept.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::clone(&self.idle), Arc::clone(&self.swept), self.keep_alive));
        }
        idle.push_back(Idle { connection, since: Instant::now() });
    }
}

/// Closes connections that have been idle for `keep_alive`, until there are none.
///
/// A backend with a worker for each connection would else keep them busy with nothing.
async fn sweep(idle: Arc<Mutex<VecDeque<Idle>>>, swept: Arc<AtomicBool>, keep_alive: Duration) {
    loop {
        let next = {
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            // The oldest stand in front.
            while idle.front().is_some_and(|oldest| now >= oldest.since + keep_alive) {
                idle.pop_front();
            }
            match idle.front() {
                Some(oldest) => oldest.since + keep_alive,
                None => {
                    swept.store(false, Ordering::Relaxed);
                    return;
                }
            }
        };
        tokio::time::sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::backend::dial::Stream;
    use crate::server::stream::Socket;

    #[tokio::test]
    async fn of_many_connections_that_ended_none_is_used() {
        let pool = Pool::new(Duration::from_secs(3_600));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // More than the runtime lets a task poll at once.
        for _ in 0..300 {
            let connected = TcpStream::connect(listener.local_addr().unwrap());
            let (ours, theirs) = tokio::join!(connected, listener.accept());
            drop(theirs);
            let ours = ours.unwrap();
            // The end has come, and the runtime knows.
            ours.readable().await.unwrap();
            pool.check_in(Connection::new(Stream::Plain(Socket::Tcp(ours))));
        }
        tokio::task::yield_now().await;
        assert!(pool.check_out().is_none());
        let (ours, _theirs) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        pool.check_in(Connection::new(Stream::Plain(Socket::Tcp(ours.unwrap()))));
        assert!(pool.check_out().is_some());
    }
}
