//! What the pure core costs for the platform's published create example: reading the query,
//! verifying the signature, checking the contract, judging the reply.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that cannot be set up must stop")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use spigate::dialect::request::Strictness;
use spigate::dialect::{ActionKind, builtin};
use spigate::query::{Lookup, Params};

fn core(criterion: &mut Criterion) {
    let dialect = &builtin::load().unwrap()[0];
    let published = &dialect.published[0];
    let key = dialect.signing_key(&published.key).unwrap();
    let query = published.query.as_bytes();
    let params = Params::parse(query, 64).unwrap();
    let Lookup::Once(text) = params.get(&dialect.signature.parameter) else { panic!("unsigned") };
    let tag = dialect.signature.output.decode(text).unwrap();

    criterion.bench_function("parse", |bench| bench.iter(|| Params::parse(black_box(query), 64)));
    criterion.bench_function("canonicalize and verify", |bench| {
        bench.iter(|| dialect.verify(black_box(&key), &tag, "GET", black_box(&params)));
    });
    criterion.bench_function("parse, canonicalize and verify", |bench| {
        bench.iter(|| {
            let params = Params::parse(black_box(query), 64).unwrap();
            dialect.verify(black_box(&key), &tag, "GET", &params)
        });
    });
    criterion.bench_function("request contract", |bench| {
        bench.iter_batched(
            || params.clone(),
            |params| dialect.check_request(params, None, Strictness::Lenient),
            criterion::BatchSize::SmallInput,
        );
    });
    let contract = &dialect.action_of(ActionKind::Create).unwrap().reply;
    let reply =
        contract.sample.replace("{new_id}", "a0ec8245-d3f4-11eb-b8c6-acde48001122").replace("{password}", "secret");
    criterion.bench_function("reply contract", |bench| bench.iter(|| contract.judge(black_box(reply.as_bytes()))));
}

criterion_group!(benches, core);
criterion_main!(benches);
