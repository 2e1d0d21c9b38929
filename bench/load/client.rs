//! `load client --port PORT --connections N --targets FILE …`: opens its connections, says
//! `ready`, and for each line `SECONDS RATE` on standard input loads the server once and prints
//! one line of JSON. Rate 0: each connection asks again as soon as it was answered. Another rate:
//! so many a second, whatever becomes of them, and the latency counts from the moment that a
//! request was due, so that a server which stalls cannot hide it.
//!
//! Every answer is checked: status, content type, and the body; see `Expected`. `--watch PID,…`:
//! the CPU time of these processes over exactly the slice is told, too.

use std::collections::VecDeque;
use std::io::BufRead as _;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::Options;
use crate::histogram::Histogram;
use crate::reply::{DIGITS, Template};
use crate::requests::Requests;
use crate::wire::{Connection, Got, content_length, end_of_head, header, trusting};

const TIMER: u64 = u64::MAX;
/// How long the server has at the end of a slice for what it still owes.
const LAST: Duration = Duration::from_secs(10);

/// What is right.
struct Expected {
    /// `--status N`, 200 by default.
    status: [u8; 3],
    body: Body,
}

enum Body {
    /// `--reply-bytes N`, 350 by default: the backend's, with the number of the request's order.
    Backend(Template),
    /// `--contains TEXT`: this stands in it.
    Contains(Vec<u8>),
}

impl Expected {
    fn new(options: &Options<'_>) -> Self {
        Self {
            status: options.get("status").unwrap_or("200").as_bytes().try_into().unwrap(),
            body: match options.get("contains") {
                Some(text) => Body::Contains(text.as_bytes().to_vec()),
                None => Body::Backend(Template::new(usize::try_from(options.number("reply-bytes", 350)).unwrap())),
            },
        }
    }

    fn is(&self, order: &[u8; DIGITS], head: &[u8], body: &[u8]) -> bool {
        head.get(9..12) == Some(&self.status)
            && header(head, "content-type") == Some(b"application/json")
            && match &self.body {
                Body::Backend(template) => template.is(order, body),
                Body::Contains(text) => memchr::memmem::find(body, text).is_some(),
            }
    }
}

/// One connection, and what it waits for.
struct Caller {
    connection: Connection,
    input: Vec<u8>,
    /// The request's place, and when it was due.
    asked: Option<(usize, Instant)>,
}

struct Client {
    poll: OwnedFd,
    timer: OwnedFd,
    callers: Vec<Caller>,
    /// In turn, so that all connections are used.
    idle: VecDeque<usize>,
    requests: Requests,
    expected: Expected,
    watched: Vec<u32>,
}

/// What one slice came to.
struct Slice {
    latencies: Histogram,
    answered: u64,
    wrong: u64,
    first_wrong: String,
}

pub(crate) fn main(options: &Options<'_>) {
    let port = u16::try_from(options.number("port", 0)).unwrap();
    let tls = options.get("trust").map(trusting);
    let poll = epoll::create(CreateFlags::CLOEXEC).unwrap();
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).unwrap();
    epoll::add(&poll, &timer, EventData::new_u64(TIMER), EventFlags::IN).unwrap();
    let callers: Vec<_> = (0..options.number("connections", 1))
        .map(|place| {
            let connection = Connection::open(port, tls.as_ref());
            epoll::add(&poll, connection.stream(), EventData::new_u64(place), EventFlags::IN).unwrap();
            Caller { connection, input: Vec::new(), asked: None }
        })
        .collect();
    let watched = options.get("watch").unwrap_or("").split(',').filter(|pid| !pid.is_empty());
    let mut client = Client {
        idle: (0..callers.len()).collect(),
        watched: watched.map(|pid| pid.parse().unwrap()).collect(),
        requests: Requests::new(options),
        expected: Expected::new(options),
        poll,
        timer,
        callers,
    };
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let (seconds, rate) = line.split_once(' ').expect("SECONDS RATE");
        client.slice(seconds.parse().unwrap(), rate.parse().unwrap());
    }
}

impl Client {
    fn slice(&mut self, seconds: f64, rate: f64) {
        let mut slice = Slice { latencies: Histogram::new(), answered: 0, wrong: 0, first_wrong: String::new() };
        self.requests.prepare();
        let spent = self.cpu_ticks();
        let begun = Instant::now();
        let end = begun + Duration::from_secs_f64(seconds);
        let mut due = VecDeque::new();
        let mut sent = 0_u32;
        let pause = if rate > 0.0 { Duration::from_secs_f64(1.0 / rate) } else { Duration::ZERO };
        if rate == 0.0 {
            for place in std::mem::take(&mut self.idle) {
                self.ask(place, begun);
            }
        }
        let mut events = Vec::with_capacity(1024);
        loop {
            let mut now = Instant::now();
            if rate > 0.0 {
                while now >= begun + pause * sent && begun + pause * sent < end {
                    due.push_back(begun + pause * sent);
                    sent += 1;
                }
                while !due.is_empty()
                    && let Some(place) = self.idle.pop_front()
                {
                    self.ask(place, due.pop_front().unwrap());
                }
            }
            if now >= end && due.is_empty() && self.idle.len() == self.callers.len() {
                break;
            }
            assert!(now < end + LAST, "answers are missing {LAST:?} after the end");
            let wake = if rate > 0.0 && now < end { (begun + pause * sent).min(end) } else { end.max(now) + LAST };
            self.wake_at(wake.saturating_duration_since(now));
            epoll::wait(&self.poll, spare_capacity(&mut events), None).unwrap();
            now = Instant::now();
            for event in events.drain(..) {
                if event.data.u64() == TIMER {
                    let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
                    continue;
                }
                let place = usize::try_from(event.data.u64()).unwrap();
                if self.hear(place, now, &mut slice) {
                    if rate == 0.0 && now < end {
                        self.ask(place, now);
                    } else {
                        self.idle.push_back(place);
                    }
                }
            }
        }
        let elapsed = begun.elapsed().as_secs_f64();
        let ticks = self.cpu_ticks() - spent;
        println!(
            "{{\"seconds\":{elapsed:.6},\"requests\":{},\"wrong\":{},\"first_wrong\":{:?},\"cpu_ticks\":{ticks},\
             \"p50_us\":{:.1},\"p90_us\":{:.1},\"p99_us\":{:.1},\"p999_us\":{:.1},\"max_us\":{:.1}}}",
            slice.answered,
            slice.wrong,
            slice.first_wrong,
            slice.latencies.micros(500),
            slice.latencies.micros(900),
            slice.latencies.micros(990),
            slice.latencies.micros(999),
            slice.latencies.max_micros(),
        );
    }

    /// Sends the next request, unless there is none left.
    fn ask(&mut self, place: usize, due: Instant) {
        let Some(request) = self.requests.take() else {
            self.idle.push_back(place);
            return;
        };
        let caller = &mut self.callers[place];
        caller.asked = Some((request, due));
        caller.connection.send(self.requests.bytes(request)).expect("the server closed a connection");
    }

    /// Reads what came. Whether the answer is whole now.
    fn hear(&mut self, place: usize, now: Instant, slice: &mut Slice) -> bool {
        let caller = &mut self.callers[place];
        let got = caller.connection.receive(&mut caller.input).expect("the server reset a connection");
        let Some((request, due)) = caller.asked else {
            panic!("the server {} unasked", if got == Got::End { "closed a connection" } else { "sent something" })
        };
        let whole = end_of_head(&caller.input).map(|body| {
            let length = content_length(&caller.input[..body]).expect("an answer without one Content-Length");
            (body, body + length)
        });
        let Some((body, whole)) = whole.filter(|(_, whole)| *whole <= caller.input.len()) else {
            assert!(got == Got::All, "the server closed a connection in an answer");
            return false;
        };
        slice.answered += 1;
        slice.latencies.add(now.saturating_duration_since(due));
        let (head, body) = (&caller.input[..body], &caller.input[body..]);
        if whole != caller.input.len() || !self.expected.is(&self.requests.order(request), head, body) {
            slice.wrong += 1;
            if slice.first_wrong.is_empty() {
                slice.first_wrong = readable(&caller.input);
            }
        }
        caller.input.clear();
        caller.asked = None;
        true
    }

    fn wake_at(&self, after: Duration) {
        let after = after.max(Duration::from_nanos(1));
        let value = Timespec { tv_sec: after.as_secs().try_into().unwrap(), tv_nsec: after.subsec_nanos().into() };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let time = Itimerspec { it_interval: never, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time).unwrap();
    }

    /// utime + stime of the watched processes, all their threads included.
    fn cpu_ticks(&self) -> u64 {
        self.watched.iter().map(|pid| ticks(&std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap())).sum()
    }
}

/// The beginning of a message, so that Rust and JSON quote it alike.
fn readable(bytes: &[u8]) -> String {
    let plain = |byte: &u8| if byte.is_ascii_graphic() || b" \r\n".contains(byte) { char::from(*byte) } else { '?' };
    bytes.iter().take(600).map(plain).collect()
}

fn ticks(stat: &str) -> u64 {
    // The name, which may hold spaces, is in the last pair of brackets.
    let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
    fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}
