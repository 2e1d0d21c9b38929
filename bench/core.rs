//! The pure core by itself: reading the published create example's query, building its canonical
//! form, the MAC and its comparison. `core ROUNDS` prints how long that took; the script runs it
//! under valgrind with two numbers of rounds, and what differs is instructions and allocations of
//! one round. No allocator but the system's, so that valgrind sees every allocation.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on must stop")]
#![allow(clippy::print_stdout, reason = "the script that starts this reads it there")]

use std::hint::black_box;
use std::time::Instant;

use spigate::dialect::builtin;
use spigate::query::{Lookup, Params};

fn main() {
    let rounds: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("core ROUNDS");
    let dialect = &builtin::load().unwrap()[0];
    let published = &dialect.published[0];
    let key = dialect.signing_key(&published.key).unwrap();
    let query = published.query.as_bytes();
    let begun = Instant::now();
    for _ in 0..rounds {
        let params = Params::parse(black_box(query), 64).unwrap();
        let Lookup::Once(text) = params.get(&dialect.signature.parameter) else { panic!("unsigned") };
        let tag = dialect.signature.output.decode(text).unwrap();
        assert!(dialect.verify(black_box(&key), &tag, "GET", &params).unwrap());
    }
    println!("{}", begun.elapsed().as_nanos());
}
