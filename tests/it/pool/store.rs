//! Stores by script: good hours, bad hours, objects that change, leases.

use std::{sync::Arc, time::Duration};

use secretfs::{
    backend::Fetched,
    caller::{Caller, Identity},
    clock::Mono,
    error::{Error, Result, codes},
    secret::{Content, Lease, Object, SecretBytes, Version},
};

/// What a store does for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Healthy,
    /// Answers that it cannot.
    Down,
    /// Answers nothing until the deadline.
    Hang,
    /// Every other request fails.
    Flap,
    /// Most requests are told to come later.
    Throttle,
    /// Refuses all.
    Denied,
}

impl Mode {
    pub fn answers(self) -> bool {
        matches!(self, Mode::Healthy | Mode::Denied)
    }

    pub fn is_outage(self) -> bool {
        matches!(self, Mode::Down | Mode::Hang)
    }
}

/// A stretch of time in a mode.
pub struct Stretch {
    pub from: Mono,
    pub mode: Mode,
}

/// Days of a store: hours of health between shorter or longer troubles.
pub fn script(rng: &mut fastrand::Rng, start: Mono, seconds: u64) -> Vec<Stretch> {
    let mut all = Vec::new();
    let mut at = 0;
    while at < seconds {
        all.push(Stretch {
            from: start.after(Duration::from_secs(at)),
            mode: Mode::Healthy,
        });
        at += rng.u64(3600..6 * 3600);
        let mode = [
            Mode::Down,
            Mode::Down,
            Mode::Hang,
            Mode::Flap,
            Mode::Throttle,
            Mode::Denied,
        ];
        all.push(Stretch {
            from: start.after(Duration::from_secs(at)),
            mode: mode[rng.usize(..mode.len())],
        });
        at += match rng.u8(..10) {
            0..5 => rng.u64(20..600),
            5..8 => rng.u64(600..3600),
            _ => rng.u64(3600..8 * 3600),
        };
    }
    all.push(Stretch {
        from: start.after(Duration::from_secs(at)),
        mode: Mode::Healthy,
    });
    all
}

/// How an object lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    Plain,
    Renewable,
    Final,
}

/// A lease, as its store knows it.
pub struct Given {
    pub key: usize,
    pub expires_at: Mono,
    pub longest: Mono,
    pub revoked: bool,
    /// Its object's version.
    pub version: u64,
    /// Since when nobody needs it, as `checks` sees it.
    pub idle_since: Option<Mono>,
}

const TTL: Duration = Duration::from_secs(3600);

/// Who is asking, by the proof that came along.
pub fn uid(caller: &Caller) -> u32 {
    match caller.0 {
        Identity::Local { uid } => uid,
        Identity::Pod(_) => unreachable!("this world has local users only"),
    }
}

/// Whose object it is.
pub fn owner(object: &Object) -> u32 {
    match &object.content {
        Content::Bytes(bytes) => u32::from_le_bytes(bytes.expose().try_into().unwrap()),
        Content::Fields(_) => unreachable!("this world has no fields"),
    }
}

/// The answer of a store that works.
pub fn answer(
    leases: &mut Vec<Given>,
    now: Mono,
    (key, life, version): (usize, Life, u64),
    caller: &Caller,
    have: Option<&Object>,
) -> Fetched {
    if let Some(have) = have {
        let same = have.version.as_str() == version.to_string() || life != Life::Plain;
        if same && !version.is_multiple_of(3) {
            return Fetched::NotModified;
        }
    }
    let bytes = uid(caller).to_le_bytes().to_vec();
    let (version, lease) = if life == Life::Plain {
        (version, None)
    } else {
        let number = leases.len() as u64;
        let given = Given {
            key,
            expires_at: now.after(TTL),
            longest: now.after(TTL * 3),
            revoked: false,
            version: number,
            idle_since: None,
        };
        let lease = Lease {
            expires_at: given.expires_at,
            renewable: life == Life::Renewable,
            handle: Arc::new(SecretBytes::new(number.to_le_bytes().to_vec())),
        };
        leases.push(given);
        (number, Some(lease))
    };
    Fetched::Object(Object {
        version: Version::new(version.to_string()),
        content: Content::Bytes(Arc::new(SecretBytes::new(bytes))),
        lease,
    })
}

/// Which lease it is.
pub fn number(lease: &Lease) -> usize {
    u64::from_le_bytes(lease.handle.expose().try_into().unwrap()) as usize
}

/// A renewal at a store that works. Its limit: three times the first life.
pub fn renew(leases: &mut [Given], now: Mono, lease: &Lease) -> Result<Lease> {
    let given = &mut leases[number(lease)];
    if given.revoked || given.expires_at <= now {
        return Err(Error::new(&codes::BACKEND_NOT_FOUND));
    }
    given.expires_at = now.after(TTL).min(given.longest);
    Ok(Lease {
        expires_at: given.expires_at,
        ..lease.clone()
    })
}
