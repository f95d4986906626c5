// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What doctor says about one thing that it looked at.

use std::fmt;

use serde_json::{Value, json};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// bmc works, but helps less than it could, or not at all.
    Warning,
    /// `bmc attach` fails, or bmc could serve wrong values.
    Blocker,
}

impl Level {
    /// The escape sequence that sets the colour of this level.
    pub(crate) fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Note => "\x1b[36m",
            Self::Warning => "\x1b[33m",
            Self::Blocker => "\x1b[1;31m",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Blocker => "blocker",
        })
    }
}

/// The result of a check, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// The object: "host", an interface, a memcached.
    pub(crate) about: String,
    /// What is said about the object.
    pub(crate) what: String,
    /// The value that was read, and where it was read.
    pub(crate) evidence: String,
    /// What mends it, a command if possible; `None` for [`Level::Ok`].
    pub(crate) remedy: Option<String>,
}

impl Finding {
    /// Something is as it should be.
    pub(crate) fn ok(what: impl Into<String>, evidence: impl Into<String>) -> Self {
        let (what, evidence) = (what.into(), evidence.into());
        Self { level: Level::Ok, about: String::new(), what, evidence, remedy: None }
    }

    /// Something else is not.
    pub(crate) fn new(
        level: Level,
        what: impl Into<String>,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level, remedy: Some(remedy.into()), ..Self::ok(what, evidence) }
    }

    /// Names the object of the finding.
    #[must_use]
    pub(crate) fn about(self, about: impl Into<String>) -> Self {
        Self { about: about.into(), ..self }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "level": self.level.to_string(),
            "about": self.about,
            "what": self.what,
            "evidence": self.evidence,
            "remedy": self.remedy,
        })
    }
}
