//! What the pure core costs in instructions, for the platform's published create example: the same
//! number on every run and nearly the same on every machine, so that a change can be held to it.
//! Needs valgrind, and `gungraun-runner` of the version in Cargo.lock; `scripts/instructions` has
//! both ready. Valgrind's processor has no instructions for SHA-256: of what verifying costs here,
//! most is what they save.
//!
//! Each limit is what was measured and a tenth more. Who makes something cheaper lowers it.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that cannot be set up must stop")]

use std::hint::black_box;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use spigate::dialect::mac::{SigningKey, Tag};
use spigate::dialect::reply::{Judgement, ReplyContract, Violation};
use spigate::dialect::request::{ContractError, SpiRequest, Strictness};
use spigate::dialect::{ActionKind, Dialect, builtin};
use spigate::query::{Lookup, Params, QueryError};

/// Kept to the end of the process: taking it apart is not what is counted.
fn dialect() -> &'static Dialect {
    Box::leak(Box::new(builtin::load().unwrap().swap_remove(0)))
}

fn query() -> String {
    dialect().published[0].query.clone()
}

fn params() -> Params {
    Params::parse(query().as_bytes(), 64).unwrap()
}

fn signed() -> (&'static Dialect, SigningKey, Tag, Params) {
    let (dialect, params) = (dialect(), params());
    let key = dialect.signing_key(&dialect.published[0].key).unwrap();
    let Lookup::Once(text) = params.get(&dialect.signature.parameter) else { panic!("unsigned") };
    let tag = dialect.signature.output.decode(text).unwrap();
    (dialect, key, tag, params)
}

fn request() -> (&'static Dialect, Params) {
    (dialect(), params())
}

fn reply() -> (&'static ReplyContract, String) {
    let contract = &dialect().action_of(ActionKind::Create).unwrap().reply;
    let body =
        contract.sample.replace("{new_id}", "a0ec8245-d3f4-11eb-b8c6-acde48001122").replace("{password}", "secret");
    (contract, body)
}

fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark(config = at_most(6_800))]
#[bench::published(query())]
fn parse(query: String) -> Result<Params, QueryError> {
    black_box(Params::parse(black_box(query.as_bytes()), 64))
}

#[library_benchmark(config = at_most(26_400))]
#[bench::published(signed())]
fn canonicalize_and_verify((dialect, key, tag, params): (&'static Dialect, SigningKey, Tag, Params)) -> bool {
    black_box(dialect.verify(black_box(&key), &tag, "GET", black_box(&params))).unwrap()
}

#[library_benchmark(config = at_most(7_700))]
#[bench::published(request())]
fn request_contract((dialect, params): (&'static Dialect, Params)) -> Result<SpiRequest, ContractError> {
    black_box(dialect.check_request(black_box(params), None, Strictness::Lenient))
}

#[library_benchmark(config = at_most(5_000))]
#[bench::sample(reply())]
fn reply_contract((contract, body): (&'static ReplyContract, String)) -> Result<Judgement, Violation> {
    black_box(contract.judge(black_box(body.as_bytes())))
}

library_benchmark_group!(name = core, benchmarks = [parse, canonicalize_and_verify, request_contract, reply_contract]);

main!(library_benchmark_groups = core);
