//! `tests/vectors/signing.json`: requests with published or constructed signatures.

use serde::Deserialize;
use spigate::query::{Lookup, Params};

use crate::support::dialect;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    dialect: String,
    key: String,
    method: String,
    query: String,
    string_to_sign: String,
    signature: String,
    accept: bool,
}

#[test]
fn every_case_is_signed_and_judged_as_stated() {
    let vectors: Vectors = serde_json::from_str(include_str!("../vectors/signing.json")).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for case in vectors.cases {
        let name = &case.name;
        let dialect = dialect(&case.dialect);
        let key = dialect.signing_key(&case.key).unwrap();
        let params = Params::parse(case.query.as_bytes(), 64).unwrap();
        assert_eq!(params.get(&dialect.signature.parameter), Lookup::Once(&case.signature), "{name}");
        assert_eq!(dialect.canonical_string(&case.method, &params).unwrap(), case.string_to_sign, "{name}");

        // What a refused signature was made for is not what the query says, so ours differs.
        let ours = dialect.sign(&key, &case.method, &params).unwrap();
        assert_eq!(ours == case.signature, case.accept, "{name}: signing gave {ours}");
        let tag = dialect.signature.output.decode(&case.signature).unwrap();
        assert_eq!(dialect.verify(&key, &tag, &case.method, &params).unwrap(), case.accept, "{name}");
        *if case.accept { &mut accepted } else { &mut refused } += 1;
    }
    assert!(accepted > 0 && refused > 0, "{accepted} accepting and {refused} refusing cases");
}
