//! What can go wrong between us and a server, and which of our errors that is.

use std::{error::Error as StdError, fmt, io, path::PathBuf};

use tokio_rustls::rustls::{self, AlertDescription, CertificateError};

use crate::error::{Code, Error, codes};

/// A step of a connection that has a time of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Resolve,
    Connect,
    Proxy,
    Tls,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Fault {
    /// A step took too long.
    Late(Phase),
    /// The name has no address.
    Unresolved,
    /// Nobody answers at the address.
    Connect(io::Error),
    /// The proxy refuses, with this status, or does not speak HTTP.
    Proxy(Option<u16>),
    /// The handshake failed.
    Handshake(io::Error),
    /// TLS cannot be set up.
    Tls(rustls::Error),
    /// The server's name is none.
    Name,
    /// A file of ours: what it is.
    File(PathBuf, &'static str),
    /// A thread of ours panicked.
    Broken,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no connection") // `error` has the words; hyper only carries it
    }
}

impl StdError for Fault {}

impl Fault {
    fn error(&self) -> Error {
        match self {
            Self::Late(Phase::Resolve) => Error::new(&codes::BACKEND_UNRESOLVED)
                .detail("the store's name was not resolved in time"),
            Self::Late(phase) => Error::new(&codes::BACKEND_TIMEOUT).step(match phase {
                Phase::Resolve => "find its address",
                Phase::Connect => "connect",
                Phase::Proxy => "ask the proxy",
                Phase::Tls => "shake hands",
            }),
            Self::Unresolved => Error::new(&codes::BACKEND_UNRESOLVED),
            Self::Connect(cause) => Error::new(&codes::BACKEND_UNAVAILABLE)
                .detail(format!("the store cannot be reached ({})", cause.kind())),
            Self::Proxy(Some(status)) => {
                Error::new(&codes::BACKEND_PROXY).detail(format!("the proxy answers {status}"))
            }
            Self::Proxy(None) => Error::new(&codes::BACKEND_PROXY)
                .detail("the proxy's answer is not HTTP's, or breaks off"),
            Self::Handshake(cause) => match tls_of(cause) {
                Some(tls) => Error::new(tls_code(tls)),
                None => Error::new(&codes::BACKEND_TLS)
                    .detail(format!("the TLS handshake broke off ({})", cause.kind())),
            },
            Self::Tls(cause) => Error::new(tls_code(cause)),
            Self::Name => Error::new(&codes::BACKEND_TLS_WRONG_NAME)
                .detail("the store's name is not one that a certificate can be for"),
            Self::File(file, what) => Error::new(&codes::BACKEND_TLS_FILE)
                .object(file.display())
                .detail(format!("the file {what}")),
            Self::Broken => Error::new(&codes::BUG).detail("reading the files of TLS panicked"),
        }
    }
}

/// The error of a request that brought no answer.
pub(super) fn error(cause: &(dyn StdError + 'static)) -> Error {
    let mut next = Some(cause);
    while let Some(one) = next {
        if let Some(fault) = one.downcast_ref::<Fault>() {
            return fault.error();
        }
        if let Some(tls) = one.downcast_ref::<io::Error>().and_then(tls_of) {
            return Error::new(tls_code(tls)); // a server refuses our certificate only now (TLS 1.3)
        }
        if let Some(hyper) = one.downcast_ref::<hyper::Error>() {
            if hyper.is_incomplete_message() {
                return Error::new(&codes::BACKEND_ANSWER_CUT);
            }
            if hyper.is_parse() {
                return Error::new(&codes::BACKEND_CORRUPT)
                    .detail("the store does not answer in HTTP");
            }
        }
        next = one.source();
    }
    let broke = "the connection to the store broke before it answered";
    Error::new(&codes::BACKEND_UNAVAILABLE).detail(broke)
}

/// The error of an answer that has begun and does not end.
pub(super) fn cut(cause: &hyper::Error) -> Error {
    match cause.is_parse() {
        true => Error::new(&codes::BACKEND_CORRUPT).detail("the store's answer is not HTTP's"),
        false => Error::new(&codes::BACKEND_ANSWER_CUT),
    }
}

fn tls_of(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Which end does not believe the other one, and why.
fn tls_code(error: &rustls::Error) -> &'static Code {
    use AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(wrong) => match wrong {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => &codes::BACKEND_TLS_EXPIRED,
            CertificateError::UnknownIssuer => &codes::BACKEND_TLS_UNKNOWN_CA,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                &codes::BACKEND_TLS_WRONG_NAME
            }
            _ => &codes::BACKEND_TLS,
        },
        rustls::Error::AlertReceived(
            Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired,
        ) => &codes::BACKEND_TLS_CLIENT,
        _ => &codes::BACKEND_TLS,
    }
}
