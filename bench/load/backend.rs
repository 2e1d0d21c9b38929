//! `load backend --port PORT [--reply-bytes N]`: answers every request with success at once, and
//! does as little as it can otherwise.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::Options;
use crate::reply::{Template, order_in};
use crate::wire::{Got, content_length, end_of_head, read_some};

const LISTENER: u64 = 0;

struct Peer {
    stream: TcpStream,
    input: Vec<u8>,
    /// What the socket did not take yet.
    output: Vec<u8>,
}

pub(crate) fn main(options: &Options<'_>) {
    let port = u16::try_from(options.number("port", 0)).unwrap();
    let template = Template::new(usize::try_from(options.number("reply-bytes", 350)).unwrap());
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", template.len());
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    // A proxy may open its connections all at once.
    rustix::net::listen(&listener, 4096).unwrap();
    listener.set_nonblocking(true).unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    let poll = epoll::create(CreateFlags::CLOEXEC).unwrap();
    epoll::add(&poll, &listener, EventData::new_u64(LISTENER), EventFlags::IN).unwrap();
    let mut peers: HashMap<u64, Peer> = HashMap::new();
    let mut last = LISTENER;
    let mut events = Vec::with_capacity(256);
    loop {
        epoll::wait(&poll, spare_capacity(&mut events), None).unwrap();
        for event in events.drain(..) {
            let id = event.data.u64();
            if id == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).unwrap();
                    stream.set_nodelay(true).unwrap();
                    last += 1;
                    epoll::add(&poll, &stream, EventData::new_u64(last), EventFlags::IN).unwrap();
                    peers.insert(last, Peer { stream, input: Vec::with_capacity(4096), output: Vec::new() });
                }
            } else if let Some(peer) = peers.get_mut(&id)
                && !peer.turn(&head, &template)
            {
                peers.remove(&id);
            } else if let Some(peer) = peers.get(&id) {
                // Told of room in the socket only while there is something to write.
                let flags = if peer.output.is_empty() { EventFlags::IN } else { EventFlags::OUT };
                let told = event.flags;
                if told.contains(EventFlags::OUT) || !peer.output.is_empty() {
                    epoll::modify(&poll, &peer.stream, EventData::new_u64(id), flags).unwrap();
                }
            }
        }
    }
}

impl Peer {
    /// Reads and answers. Whether the connection lives on.
    fn turn(&mut self, head: &str, template: &Template) -> bool {
        if self.output.is_empty() {
            match read_some(&self.stream, &mut self.input) {
                Ok(Got::All) => {}
                Ok(Got::End) | Err(_) => return false,
            }
            let Some(body) = end_of_head(&self.input) else { return true };
            let whole = body + content_length(&self.input[..body]).unwrap_or(0);
            if self.input.len() < whole {
                return true;
            }
            let order = order_in(&self.input[..whole]);
            self.input.clear();
            for part in [head.as_bytes(), &template.before, &order, &template.after] {
                self.output.extend_from_slice(part);
            }
        }
        match self.stream.write(&self.output) {
            Ok(written) if written == self.output.len() => self.output.clear(),
            Ok(written) => drop(self.output.drain(..written)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        true
    }
}
