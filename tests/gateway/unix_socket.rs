//! A backend on a Unix socket of the same machine: the sidecar case.

use std::path::Path;

use tokio::net::{TcpStream, UnixListener};

use crate::support::Directory;
use crate::support::backend::{Backend, CREATED};
use crate::support::gateway::Setup;
use crate::support::order::{action, create};

/// Passes what comes at a socket on to a backend; ends with the test.
pub(crate) fn at_socket(path: &Path, backend: &Backend) {
    let (listener, authority) = (UnixListener::bind(path).unwrap(), backend.authority());
    tokio::spawn(async move {
        loop {
            let (mut here, _) = listener.accept().await.unwrap();
            let authority = authority.clone();
            tokio::spawn(async move {
                let mut there = TcpStream::connect(authority).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
            });
        }
    });
}

#[tokio::test]
async fn a_backend_on_a_unix_socket_is_called_like_any_other() {
    let (directory, backend) = (Directory::new(), Backend::confirming().await);
    let socket = directory.path().join("app.sock");
    let url = format!("http://unix:{}:/internal/spi?from=spigate", socket.display());
    let gateway = Setup::to(url).backend("keep_alive = \"60s\"").start().await;
    // It is not there yet.
    let early = create();
    let reply = gateway.order(&early).await;
    reply.assert_rejected(502, "backend_unreachable");
    assert_eq!(gateway.access_line(&reply).await["outcome"], "failed");
    assert!(!gateway.output().contains("app.sock"), "{}", gateway.output());

    at_socket(&socket, &backend);
    gateway.order(&early).await.assert_is(CREATED);
    let seen = backend.only_request();
    assert_eq!((seen.target.as_str(), seen.header("host")), ("/internal/spi?from=spigate", Some("localhost")));
    gateway.order(&action("TestConnection")).await;
    assert_eq!((backend.count(), backend.connections()), (2, 1));
}

#[tokio::test]
async fn what_names_no_socket_is_a_problem_of_the_configuration() {
    for (url, problem) in [
        ("unix:/run/app.sock:/spi", "a Unix socket is http://unix:/run/app.sock:/path"),
        ("http://unix:app.sock:/spi", "must name a Unix socket by its whole path"),
        ("http://unix:/run/app.sock:spi", "must have a path after the Unix socket"),
    ] {
        let checked = Setup::to(url).check();
        assert_eq!(checked.code, 1, "{}", checked.text);
        assert!(checked.text.contains("apps[0].backend.url: ") && checked.text.contains(problem), "{}", checked.text);
    }
}
