//! Tenth stop: may the platform see this reply? Status, media type, then the dialect's contract.

use http::{HeaderValue, StatusCode};

use crate::backend::RawReply;
use crate::delivery::{Delivery, Outcome};
use crate::dialect::reply::{Judgement, ReplyContract, Violation};
use crate::rejection::Rejection;

/// Judges a complete reply.
///
/// A broken contract after 2xx is *unconfirmed*, because the backend may have acted; after 4xx
/// it is *failed*: the backend said that it did not.
pub fn validate(contract: &ReplyContract, reply: RawReply) -> Delivery {
    let status = reply.status;
    let violated = |violation: Violation| {
        let rejection = Rejection::BackendContract(violation);
        if status.is_client_error() { Delivery::failed(rejection) } else { Delivery::unconfirmed(rejection) }
    };
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Delivery::failed(Rejection::BackendError { status: status.as_u16() });
    }
    if status.is_redirection() {
        let detail = format!("the backend answered {status}; redirects are never followed");
        return violated(Violation::new("redirect", detail));
    }
    if !status.is_success() && !status.is_client_error() {
        return violated(Violation::new("status", format!("the backend answered {status}")));
    }
    if !reply.content_type.as_ref().is_some_and(is_json) {
        let detail = if reply.content_type.is_some() { "is not application/json" } else { "is missing" };
        return violated(Violation::new("content_type", format!("the reply's Content-Type {detail}")));
    }
    if reply.content_encoding.as_ref().is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return violated(Violation::new("content_encoding", "the reply is compressed, which nobody asked for"));
    }
    match contract.judge(&reply.body) {
        Ok(Judgement::Refusal) => Delivery::answered(Outcome::Refused, reply.body, None),
        Ok(Judgement::Success { instance_id }) if status.is_success() => {
            Delivery::answered(Outcome::Delivered, reply.body, instance_id)
        }
        Ok(Judgement::Success { .. }) => {
            let detail = format!("the backend answered {status} with a body that says success");
            violated(Violation::new("success_with_error_status", detail))
        }
        Err(violation) => violated(violation),
    }
}

/// `application/json` in any case, with any parameters.
fn is_json(value: &HeaderValue) -> bool {
    let media_type = value.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::dialect::{ActionKind, builtin};

    fn judge(status: u16, content_type: Option<&'static str>, body: &str) -> Delivery {
        let dialect = &builtin::load().unwrap()[0];
        let reply = RawReply {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: content_type.map(HeaderValue::from_static),
            content_encoding: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        validate(&dialect.action_of(ActionKind::Create).unwrap().reply, reply)
    }

    fn rule(delivery: &Delivery) -> &str {
        match &delivery.answer {
            Err(Rejection::BackendContract(violation)) => &violation.rule,
            other => panic!("{other:?}"),
        }
    }

    const JSON: Option<&str> = Some("application/json");
    const GOOD: &str = r#"{"success":true,"instanceId":"i-1"}"#;

    #[test]
    fn success_and_refusal() {
        for (status, content_type) in [(200, JSON), (201, Some("Application/JSON; charset=utf-8")), (202, JSON)] {
            let delivery = judge(status, content_type, GOOD);
            assert_eq!(delivery.outcome, Outcome::Delivered);
            assert_eq!(delivery.instance_id.as_deref(), Some("i-1"));
            assert_eq!(delivery.answer.unwrap(), GOOD);
        }
        for status in [200, 400, 404, 422] {
            let delivery = judge(status, JSON, r#"{"success":false,"message":"开通失败"}"#);
            assert_eq!(delivery.outcome, Outcome::Refused, "{status}");
        }
    }

    #[test]
    fn failures_by_status() {
        for status in [500, 503, 599, 429] {
            let delivery = judge(status, JSON, GOOD);
            assert_eq!(delivery.outcome, Outcome::Failed);
            assert!(matches!(delivery.answer, Err(Rejection::BackendError { .. })), "{status}");
        }
        for status in [301, 302, 304, 307] {
            assert_eq!(rule(&judge(status, JSON, GOOD)), "redirect", "{status}");
        }
        assert_eq!(rule(&judge(400, JSON, GOOD)), "success_with_error_status");
        assert_eq!(judge(400, JSON, "oops").outcome, Outcome::Failed);
        assert_eq!(judge(200, JSON, "oops").outcome, Outcome::Unconfirmed);
    }

    #[test]
    fn media_types() {
        for content_type in [None, Some("text/html"), Some("text/json"), Some("application/jsonp"), Some("")] {
            assert_eq!(rule(&judge(200, content_type, GOOD)), "content_type");
        }
    }

    #[test]
    fn rules_of_the_contract() {
        for (body, expected) in [
            ("", "empty_body"),
            ("<html>", "invalid_json"),
            ("[]", "not_an_object"),
            (r#"{"instanceId":"i"}"#, "success_missing"),
            (r#"{"success":"true","instanceId":"i"}"#, "success_type"),
            (r#"{"success":1,"instanceId":"i"}"#, "success_type"),
            (r#"{"success":null,"instanceId":"i"}"#, "success_type"),
            (r#"{"success":true,"success":true,"instanceId":"i"}"#, "duplicate_key"),
            (r#"{"success":true}"#, "instance_id_missing"),
            (r#"{"success":true,"instanceId":""}"#, "instance_id_length"),
            (r#"{"success":true,"instanceId":7}"#, "instance_id_type"),
            (r#"{"success":true,"instanceId":null}"#, "instance_id_type"),
            (r#"{"success":true,"instanceId":"i","message":7}"#, "message_type"),
            (r#"{"success":true,"instanceId":"i","appInfo":[]}"#, "app_info_type"),
            (r#"{"success":true,"instanceId":"i","appInfo":{"frontEnd":{"url":7}}}"#, "app_info_front_end_url_type"),
            (r#"{"success":false,"message":7}"#, "message_type"),
        ] {
            assert_eq!(rule(&judge(200, JSON, body)), expected, "{body}");
        }
        let long = "套".repeat(129);
        assert_eq!(
            rule(&judge(200, JSON, &format!(r#"{{"success":true,"instanceId":"{long}"}}"#))),
            "instance_id_length"
        );
        let fits = "套".repeat(128);
        assert_eq!(
            judge(200, JSON, &format!(r#"{{"instanceId":"{fits}","success":true}}"#)).outcome,
            Outcome::Delivered
        );
        for body in [
            r#"{"success":true,"instanceId":"i","message":null,"more":[{"x":1}],"appInfo":{"other":7}}"#,
            r#"{"success":false,"instanceId":7,"appInfo":8}"#,
        ] {
            assert!(judge(200, JSON, body).answer.is_ok(), "{body}");
        }
    }
}
