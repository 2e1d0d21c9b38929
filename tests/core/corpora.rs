//! Test data that others wrote, read from the folder that `SPIGATE_CORPORA` names and never
//! copied here. Without the variable these tests say so and pass; with it, a missing file fails.
//!
//! Most oracles are more lenient than spigate. Each test states the exact rule by which ours
//! differs and counts both classes, so that no case is skipped unseen.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use spigate::dialect::ActionKind;
use spigate::dialect::canonical::{Encoding, Sink as _};
use spigate::dialect::field::{Decoded, FieldType};
use spigate::dialect::mac::{MacAlgorithm, SigningKey, Tag, TagEncoding};
use spigate::dialect::reply::ReplyContract;
use spigate::json::{self, JsonError};
use spigate::query::{Params, QueryError};

use crate::support::{NO_LIMIT, canonical, dialect, pairs, reference_read, sorted};

/// The folder of the corpora, or `None` where the run has none.
fn corpora() -> Option<PathBuf> {
    let folder = std::env::var_os("SPIGATE_CORPORA").map(PathBuf::from).filter(|folder| folder.is_dir());
    if folder.is_none() {
        println!("skipped: corpora (SPIGATE_CORPORA is not set)");
    }
    folder
}

fn read<T: DeserializeOwned>(folder: &Path, file: &str) -> T {
    let path = folder.join(file);
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names and contents of a folder's files.
fn documents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut documents: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect();
    documents.sort();
    documents
}

fn reply_contract() -> ReplyContract {
    dialect("qingcloud-appcenter").action_of(ActionKind::Create).unwrap().reply.clone()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MacVectors {
    number_of_tests: usize,
    test_groups: Vec<MacGroup>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MacGroup {
    tag_size: usize,
    tests: Vec<MacCase>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MacCase {
    tc_id: u32,
    key: String,
    msg: String,
    tag: String,
    result: String,
}

#[test]
fn wycheproof_macs_verify_as_stated_and_truncated_ones_never() {
    let Some(folder) = corpora() else { return };
    let vectors: MacVectors = read(&folder, "wycheproof/hmac_sha256_test.json");
    let (mut full, mut truncated, mut refused) = (0, 0, 0);
    for group in vectors.test_groups {
        for case in group.tests {
            let id = case.tc_id;
            let key = SigningKey::from_bytes(MacAlgorithm::HmacSha256, &unhex(&case.key)).unwrap();
            let message = unhex(&case.msg);
            let sign = || {
                key.sign(|sink| {
                    sink.put(&message);
                    Ok::<(), ()>(())
                })
            };
            let verify = |tag: &Tag| {
                key.verify(tag, |sink| {
                    sink.put(&message);
                    Ok::<(), ()>(())
                })
            };
            let given = TagEncoding::Hex.decode(&case.tag).unwrap();
            assert_eq!(given.as_bytes().len() * 8, group.tag_size, "{id}");
            let valid = match case.result.as_str() {
                "valid" => true,
                "invalid" => false,
                other => panic!("{id}: unknown result {other}"),
            };
            let ours = sign().unwrap();
            assert_eq!(ours.as_bytes().starts_with(given.as_bytes()), valid, "{id}");
            let is_full = group.tag_size == 256;
            assert_eq!(verify(&given).unwrap(), valid && is_full, "{id}");
            match (valid, is_full) {
                (true, true) => full += 1,
                (true, false) => truncated += 1,
                (false, _) => refused += 1,
            }
        }
    }
    assert_eq!(full + truncated + refused, vectors.number_of_tests);
    assert!(full > 0 && truncated > 0 && refused > 0, "{full} full, {truncated} truncated, {refused} refused");
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Documents that RFC 8259 leaves to the reader. All others of their kind are refused.
const ACCEPTED_BY_CHOICE: &[&str] = &[
    "i_number_double_huge_neg_exp.json",
    "i_number_real_underflow.json",
    "i_number_too_big_neg_int.json",
    "i_number_too_big_pos_int.json",
    "i_number_very_big_negative_int.json",
];

#[test]
fn json_documents_are_accepted_refused_or_decided_on_purpose() {
    let Some(folder) = corpora() else { return };
    let contract = reply_contract();
    let (mut must, mut must_not, mut free) = (0, 0, 0);
    let mut duplicates = Vec::new();
    let mut accepted_by_choice = Vec::new();
    for (name, document) in documents(&folder.join("jsontestsuite/test_parsing")) {
        let verdict = json::is_object(&document);
        let reply = contract.judge(&document);
        // Both readers walk the same way; a reply that is no JSON must be called so.
        match (&verdict, &reply) {
            (Err(JsonError::Empty), Err(violation)) => assert_eq!(&*violation.rule, "empty_body", "{name}"),
            (Err(JsonError::Invalid), Err(violation)) => assert_eq!(&*violation.rule, "invalid_json", "{name}"),
            (Err(JsonError::DuplicateKey), Err(violation)) => assert_eq!(&*violation.rule, "duplicate_key", "{name}"),
            (Err(_), Ok(judgement)) => panic!("{name}: judged {judgement:?}"),
            (Ok(false), reply) => assert_eq!(&*reply.clone().unwrap_err().rule, "not_an_object", "{name}"),
            // None of these objects has a `success`.
            (Ok(true), reply) => assert_eq!(&*reply.clone().unwrap_err().rule, "success_missing", "{name}"),
        }
        match &name[..2] {
            "y_" => {
                must += 1;
                match verdict {
                    Ok(_) => {}
                    Err(JsonError::DuplicateKey) => duplicates.push(name),
                    Err(error) => panic!("{name}: refused: {error}"),
                }
            }
            "n_" => {
                must_not += 1;
                assert!(matches!(verdict, Err(JsonError::Invalid | JsonError::Empty)), "{name}: {verdict:?}");
            }
            "i_" => {
                free += 1;
                if verdict.is_ok() {
                    accepted_by_choice.push(name);
                }
            }
            _ => panic!("{name}: of no known kind"),
        }
    }
    assert!(must > 0 && must_not > 0 && free > 0, "{must} must parse, {must_not} must not, {free} are free");
    assert_eq!(duplicates, ["y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"]);
    // The rest of the i_ files is refused: numbers no double holds, lone surrogates, broken or
    // other encodings, a byte order mark, and nesting beyond 128.
    assert_eq!(accepted_by_choice, ACCEPTED_BY_CHOICE);
    assert!(free > ACCEPTED_BY_CHOICE.len());
}

#[test]
fn json_that_readers_disagree_on_is_refused_or_kept_as_it_came() {
    let Some(folder) = corpora() else { return };
    let (mut refused, mut kept) = (0, 0);
    for (name, document) in documents(&folder.join("jsontestsuite/test_transform")) {
        let expected = match name.as_str() {
            // A signer and a reader may have meant another of the two values.
            "object_same_key_different_values.json"
            | "object_same_key_same_value.json"
            | "object_same_key_unclear_values.json" => Err(JsonError::DuplicateKey),
            // Lone surrogates, escaped or as bytes. A replacement character would be another text
            // than the one that was sent.
            name if name.contains("invalid_codepoint") => Err(JsonError::Invalid),
            // Composed and decomposed letters are different keys: nobody normalizes.
            "object_key_nfc_nfd.json" | "object_key_nfd_nfc.json" => Ok(true),
            _ => Ok(false),
        };
        assert_eq!(json::is_object(&document), expected, "{name}");
        if expected.is_ok() {
            // Dropping white space must not cost a number a digit, nor a string a NUL.
            let text = String::from_utf8(document).unwrap();
            assert_eq!(json::compact(&text), text.trim(), "{name}");
            kept += 1;
        } else {
            refused += 1;
        }
    }
    assert!(refused > 0 && kept > 0, "{refused} refused, {kept} kept");
}

#[derive(Deserialize)]
struct UrlencodedCase {
    input: String,
    output: Vec<(String, String)>,
}

#[test]
fn queries_are_read_as_the_url_standard_does_or_refused() {
    let Some(folder) = corpora() else { return };
    let cases: Vec<UrlencodedCase> = read(&folder, "wpt/urlencoded-parser-data.json");
    let (mut agreed, mut bad_escape, mut not_utf8) = (0, 0, 0);
    for UrlencodedCase { input, output } in cases {
        let ours = Params::parse(input.as_bytes(), NO_LIMIT);
        // The oracle keeps a broken escape as it stands and replaces invalid UTF-8. Those two
        // are all we refuse here: the data has no control characters.
        assert!(!output.iter().any(|(name, value)| [name, value].iter().any(|text| text.contains(['\0', '\r', '\n']))));
        let replaced = output.iter().any(|(name, value)| name.contains('\u{fffd}') || value.contains('\u{fffd}'));
        if has_broken_escape(&input) {
            assert_eq!(ours.unwrap_err(), QueryError::BadEscape, "{input}");
            bad_escape += 1;
        } else if replaced {
            assert!(!input.contains('\u{fffd}') && !input.contains("%EF%BF%BD"), "{input}: a real one");
            assert_eq!(ours.unwrap_err(), QueryError::NotUtf8, "{input}");
            not_utf8 += 1;
        } else {
            assert_eq!(pairs(ours.unwrap().received()), output, "{input}");
            agreed += 1;
        }
    }
    assert!(agreed > 0 && bad_escape > 0 && not_utf8 > 0, "{agreed} agreed, {bad_escape} escapes, {not_utf8} UTF-8");
}

fn has_broken_escape(text: &str) -> bool {
    text.split('%').skip(1).any(|rest| {
        let digits = rest.as_bytes().get(..2);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

#[test]
fn base64_that_we_accept_means_what_the_standard_says() {
    let Some(folder) = corpora() else { return };
    let cases: Vec<(String, Option<Vec<u8>>)> = read(&folder, "wpt/base64.json");
    let (mut accepted, mut stricter, mut refused_by_both) = (0, 0, 0);
    for (text, oracle) in cases {
        let field = FieldType::Base64Text.decode(&text);
        let signature = TagEncoding::Base64.decode(&text).map(|tag| tag.as_bytes().to_vec());
        // The one spelling of these bytes: padded, no white space, no bits left over.
        let exact = oracle.as_ref().filter(|bytes| encode_base64(bytes) == text);
        assert_eq!(signature.as_ref(), exact, "{text:?} as a signature");
        match exact {
            Some(bytes) => {
                let expected = String::from_utf8(bytes.clone()).map(Decoded::Text);
                assert_eq!(field, expected.map_err(|_| "does not decode to valid UTF-8"), "{text:?}");
                accepted += 1;
            }
            None => {
                assert_eq!(field, Err("is not standard padded base64"), "{text:?}");
                *if oracle.is_some() { &mut stricter } else { &mut refused_by_both } += 1;
            }
        }
    }
    assert!(accepted > 0 && stricter > 0 && refused_by_both > 0, "{accepted}, {stricter}, {refused_by_both}");
}

/// The textbook encoder: the oracle of exactness must not be the crate under test.
fn encode_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let sextet = (bits >> (18 - 6 * at)) & 63;
            text.push(if at <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    text
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PercentCase {
    Case { input: String, output: PercentOutput },
    Comment(String),
}

#[derive(Deserialize)]
struct PercentOutput {
    #[serde(rename = "utf-8")]
    utf8: String,
}

#[test]
fn values_are_encoded_as_the_url_standard_does() {
    let Some(folder) = corpora() else { return };
    let cases: Vec<PercentCase> = read(&folder, "wpt/percent-encoding.json");
    let mut compared = 0;
    for case in cases {
        let (input, output) = match case {
            PercentCase::Case { input, output } => (input, output.utf8),
            PercentCase::Comment(comment) => {
                assert!(comment.ends_with('.'), "{comment}: neither case nor comment");
                continue;
            }
        };
        // A URL keeps more of ASCII than a canonical string does, so only what is outside the
        // two sets' difference can be compared; here that is everything.
        assert!(input.chars().all(|char| char.is_ascii_alphanumeric() || char.is_ascii_control() || !char.is_ascii()));
        for encoding in [Encoding::Rfc3986, Encoding::Form] {
            let pair = [(input.clone(), input.clone())];
            assert_eq!(canonical(encoding, &pair).unwrap(), format!("{output}={output}"), "{input:?}");
        }
        compared += 1;
    }
    assert!(compared > 0);
}

#[derive(Deserialize)]
#[serde(untagged)]
enum UrlCase {
    Case {
        href: Option<String>,
    },
    #[expect(dead_code, reason = "comments are told from cases by their type")]
    Comment(String),
}

#[test]
fn queries_of_urls_survive_their_canonical_form() {
    let Some(folder) = corpora() else { return };
    let cases: Vec<UrlCase> = read(&folder, "wpt/urltestdata.json");
    let (mut read_back, mut refused) = (0, 0);
    for case in cases {
        let UrlCase::Case { href: Some(href) } = case else { continue };
        let before_fragment = href.split('#').next().unwrap_or_default();
        let Some((_, query)) = before_fragment.split_once('?') else { continue };
        let expected = reference_read(query.as_bytes());
        let Ok(params) = Params::parse(query.as_bytes(), NO_LIMIT) else {
            assert_eq!(expected, None, "{query}");
            refused += 1;
            continue;
        };
        let received = pairs(params.received());
        assert_eq!(Some(&received), expected.as_ref(), "{query}");
        for encoding in [Encoding::Rfc3986, Encoding::Form] {
            let written = canonical(encoding, &received).unwrap();
            let again = Params::parse(written.as_bytes(), NO_LIMIT).unwrap();
            assert_eq!(pairs(again.received()), sorted(&received), "{query}");
        }
        read_back += 1;
    }
    assert!(read_back > 0 && refused > 0, "{read_back} read back, {refused} refused");
}
