//! The problems of one text, collected: as many as a person reads, in the order of the text.

use crate::{
    error::Code,
    limits,
    spec::{Problem, Span},
};

/// The problems of one text, as many as a person reads.
#[derive(Default)]
pub struct Problems {
    found: Vec<Problem>,
    told: usize,
    /// All problems have this code, whatever they are about.
    code: Option<&'static Code>,
}

impl Problems {
    /// None yet. With `code`, all have it.
    pub fn new(code: Option<&'static Code>) -> Self {
        Self {
            found: Vec::new(),
            told: 0,
            code,
        }
    }

    /// Adds one; beyond [`limits::PROBLEMS`] it is dropped.
    pub fn add(
        &mut self,
        code: &'static Code,
        at: Span,
        field: &str,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.push(Problem {
            code,
            at,
            field: field.to_owned(),
            message: message.into(),
            help: help.into(),
        });
    }

    /// Adds one that is made already.
    pub fn push(&mut self, mut problem: Problem) {
        self.told += 1;
        if self.found.len() < limits::PROBLEMS {
            problem.code = self.code.unwrap_or(problem.code);
            self.found.push(problem);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// How many were told, those beyond the limit included.
    pub fn len(&self) -> usize {
        self.told
    }

    /// All of them, in the order of the text.
    pub fn sorted(mut self) -> Vec<Problem> {
        self.found
            .sort_by_key(|problem| (problem.at.line, problem.at.column));
        self.found
    }
}
