//! From what was asked for to a spec, read once: the text that is served, and one that was refused, are not read again.

use std::sync::Arc;

use crate::{
    caller::{Caller, Identity},
    error::{Error, Result, codes},
    spec::{self, Place, Problem, Setting, VolumeSpec},
    volume::{
        AskedSpec, Placing, PublishRequest, Published, Settings, publish::Order, specs::Specs,
        status::Failure, task::Task,
    },
};

/// Another spec that was asked for and cannot be served.
pub(super) struct Refusal {
    asked: AskedSpec,
    /// By which it was judged.
    settings: Arc<Settings>,
    /// `None`: it is not a spec.
    spec: Option<Arc<VolumeSpec>>,
    pub failure: Failure,
}

impl Refusal {
    /// Whether it was this that was asked for.
    pub fn is_of(&self, asked: &AskedSpec) -> bool {
        self.asked.is(asked)
    }
}

impl AskedSpec {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Raw(one), Self::Raw(other)) => one == other,
            (Self::Parsed(one), Self::Parsed(other)) => one.digest == other.digest,
            (Self::Wrong(one), Self::Wrong(other)) => one.to_string() == other.to_string(),
            (Self::Raw(_) | Self::Parsed(_) | Self::Wrong(_), _) => false,
        }
    }
}

impl Task {
    /// The spec that is asked for.
    ///
    /// 1. It came parsed.
    /// 2. It is served already, by other sources or for somebody else.
    /// 3. It was refused before, under the same configuration.
    /// 4. It is to be read.
    pub fn read(&self, request: &PublishRequest, settings: &Arc<Settings>) -> Result<Order> {
        let (spec, raw) = match &request.spec {
            AskedSpec::Wrong(error) => return Err(error.clone()),
            AskedSpec::Parsed(spec) => (spec.clone(), None), // 1
            AskedSpec::Raw(text) => {
                let served = self.served.as_ref();
                let served = served.filter(|served| served.is_text(&request.spec)); // 2
                let refused = self.refusal.as_ref().filter(|refused| {
                    refused.asked.is(&request.spec) && Arc::ptr_eq(&refused.settings, settings)
                });
                let (spec, text) = match (served, refused) {
                    (Some(served), _) => {
                        let raw = served.raw.as_ref().unwrap_or(text);
                        (served.spec.clone(), raw.clone())
                    }
                    (None, Some(refused)) => {
                        let error = || (*refused.failure.error).clone(); // 3
                        (refused.spec.clone().ok_or_else(error)?, text.clone())
                    }
                    (None, None) => {
                        let (caller, placing) = (&request.caller, &request.placing);
                        parse(&self.shared.specs, text, caller, placing, settings)? // 4
                    }
                };
                (spec, Some(text))
            }
        };
        Ok(Order {
            target: request.target.clone(),
            spec,
            raw,
            caller: request.caller.clone(),
            placing: request.placing.clone(),
            settings: settings.clone(),
        })
    }

    /// Leaves what is served as it is. The pod's author is told once, the status says it until a good spec comes.
    pub fn refuse(
        &mut self,
        asked: AskedSpec,
        settings: Arc<Settings>,
        spec: Option<Arc<VolumeSpec>>,
        error: Error,
    ) -> Result<Published> {
        let before = self.refusal.take();
        let before = before.filter(|before| before.asked.is(&asked));
        let since = match &before {
            Some(before) => before.failure.since,
            None => self.shared.clock.now(),
        };
        if before.is_none() {
            self.shared.metrics.failed(error.code());
            tracing::warn!(volume_id = %self.id, code = error.code().name, %error, "another spec is refused; what is mounted stays");
            let message = format!(
                "the volume keeps what it has: {error}. {} [{}]",
                error.code().fix,
                error.code().name
            );
            self.tell_pod("SecretSpecRefused", message);
        }
        self.refusal = Some(Refusal {
            asked,
            settings,
            spec,
            failure: Failure {
                error: Arc::new(error.clone()),
                since,
            },
        });
        let mut published = self.published()?;
        published.refused = Some(error);
        Ok(published)
    }
}

/// Reads a text, unless another volume serves it. Of equal texts one is kept.
pub(super) fn parse(
    known: &Specs,
    text: &Arc<str>,
    caller: &Caller,
    placing: &Placing,
    settings: &Arc<Settings>,
) -> Result<(Arc<VolumeSpec>, Arc<str>)> {
    let setting = Setting {
        place: match caller.0 {
            Identity::Local { .. } => Place::Local,
            Identity::Pod(_) => Place::Kubernetes {
                fs_group: placing.group,
            },
        },
        limits: settings.volume_limits,
    };
    if let Some(found) = known.find(text, setting.place, settings) {
        return Ok(found);
    }
    tracing::trace!(bytes = text.len(), "a spec is read");
    let parsed = spec::parse(text, &setting, &|object| settings.registry.check(object));
    let parsed = parsed.map(|spec| {
        let spec = Arc::new(spec);
        known.note(text, setting.place, settings, &spec);
        (spec, text.clone())
    });
    parsed.map_err(|problems| {
        let first = problems.first();
        let code = first.map_or(&codes::BUG, |first| first.code);
        let said: Vec<_> = problems.iter().map(said).collect();
        Error::new(code)
            .object("volumeAttributes.spec")
            .detail(said.join("; "))
    })
}

/// A problem in one line: the field, if it is not of the whole text; what is wrong; what to write instead.
fn said(problem: &Problem) -> String {
    let mut line = match problem.field.as_str() {
        "" => String::new(),
        field => format!("{field}: "),
    };
    line += &problem.message;
    if let Some(help) = &problem.help {
        line += &format!(" ({help})");
    }
    line
}
