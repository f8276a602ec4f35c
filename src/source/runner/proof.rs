//! Whose proof goes with a request.

use std::sync::Arc;

use crate::{
    backend::Want,
    caller::{Caller, Credentials, Principal},
    error::{Error, Result, codes},
    secret::Object,
    source::SourceKey,
};

/// The last look before a store is asked: what comes is shown to everybody who has this key, so it must be asked for as whom the key names.
///
/// # Errors
/// `bug`: the pool, or who subscribed, has mixed two principals up.
pub(super) fn is_his(key: &SourceKey, caller: &Caller) -> Result<()> {
    if caller.0.is(&key.principal) {
        return Ok(());
    }
    Err(Error::new(&codes::BUG)
        .object(&key.object)
        .detail("it was to be asked for as somebody else"))
}

/// As whom to watch. A watch outlives republishes and the volume that it began with, and so would the tokens that this one brought: who asks
/// as the node needs none.
pub(super) fn watcher(key: &SourceKey, caller: Caller) -> Caller {
    match key.principal {
        Principal::Node | Principal::Local(_) => {
            Arc::new((caller.0.clone(), Credentials::default()))
        }
        Principal::ServiceAccount { .. } | Principal::Pod(_) => caller,
    }
}

/// The question.
pub(super) fn want<'a>(
    key: &'a SourceKey,
    caller: &'a Caller,
    have: Option<&'a Object>,
) -> Want<'a> {
    Want {
        object: &key.object,
        who: &caller.0,
        proof: &caller.1,
        have,
    }
}
