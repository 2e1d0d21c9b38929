//! The self-test: plays the platform against a vendor's backend and says what the platform would
//! have made of it.
//!
//! Cases are data, made from the dialect (its kinds of actions, its table of fields, its samples);
//! nothing here names a marketplace. Planning, judging, advising and reporting are pure; `run.rs`
//! calls, `target.rs` and `relay.rs` are what is called where spigate itself stands before the
//! backend.
//!
//! - `case.rs`: what a case is; `plan.rs`: which ones a dialect comes to; `data.rs`: what they send
//! - `request.rs`: a step as a signed request, or as a forgery of one
//! - `target.rs`, `relay.rs`: a notify URL, or a gateway of our own before the vendor's backend
//! - `run.rs`, `instances.rs`: one case after the other, and what they leave to be removed
//! - `verdict.rs`: what of a reply is a fault; `advice.rs`, `snippet.rs`: what to do about it
//! - `mask.rs`, `evidence.rs`: what of an exchange may be shown
//! - `report.rs`: what was found, for `report/` to write as a table, JSON, JUnit XML, Markdown or HTML

pub mod advice;
pub mod case;
pub mod data;
pub mod evidence;
pub mod instances;
pub mod mask;
pub mod plan;
pub mod relay;
pub mod report;
pub mod request;
pub mod run;
pub mod snippet;
pub mod target;
pub mod verdict;

use serde::Serialize;

/// The same in both languages of the report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Text {
    /// In English.
    pub en: String,
    /// In Simplified Chinese.
    pub zh: String,
}

/// One of the two languages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    /// English.
    En,
    /// Simplified Chinese.
    Zh,
}

impl Text {
    /// Both texts.
    pub fn new(en: impl Into<String>, zh: impl Into<String>) -> Self {
        Self { en: en.into(), zh: zh.into() }
    }

    /// The text in one language.
    pub fn get(&self, language: Language) -> &str {
        match language {
            Language::En => &self.en,
            Language::Zh => &self.zh,
        }
    }
}
