//! Our errors as gRPC codes: one function for each phase, because the kubelet does different things with one code.
//!
//! `isFinalError` of the kubelet's `csi_client.go`: Canceled, DeadlineExceeded, Unavailable, ResourceExhausted and Aborted mean
//! "perhaps mounted", and an unpublish follows when the pod goes. **After any other code none follows** a first publish, so all of it
//! has been undone before we answer. After any other code to a *republish* the kubelet removes the target's directory if nothing is mounted
//! there (kubernetes#121271), and one that was restarted meanwhile forgets the volume: no unpublish would ever come.

use tonic::{Code, Status};

use crate::{
    error::{Error, ErrorKind, codes},
    limits,
};

/// The status of a publish that mounted nothing.
pub fn first_publish(error: &Error) -> Status {
    let code = match error.kind() {
        ErrorKind::InvalidSpec => Code::InvalidArgument,
        ErrorKind::Conflict => Code::AlreadyExists,
        ErrorKind::SecretNotFound => Code::FailedPrecondition, // NotFound would speak of the volume
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Busy => Code::Aborted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Node if is_setting(error) => Code::FailedPrecondition,
        ErrorKind::Node | ErrorKind::Bug => Code::Internal,
    };
    Status::new(code, message(error))
}

/// The status of a publish of a volume that was served when it was asked: never a final one, but ALREADY_EXISTS where the call itself is wrong
/// (another target or capability than the volume's).
///
/// That one is final and does no harm: a kubelet has one target and one capability for a volume as long as its pod lives, so it is not
/// its call; and if it were, the volume is mounted, and a directory that is a mount point is not removed. What happened *to* a right call is
/// not final, whatever it was: also not a foreign mount on the target, because somebody may take that away again.
pub fn republish(error: &Error) -> Status {
    let code = match error.kind() {
        ErrorKind::Conflict if error.code() != &codes::MOUNT_FOREIGN => Code::AlreadyExists,
        ErrorKind::Busy => Code::Aborted,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Conflict
        | ErrorKind::InvalidSpec
        | ErrorKind::SecretNotFound
        | ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied
        | ErrorKind::Unavailable
        | ErrorKind::Corrupt
        | ErrorKind::Node
        | ErrorKind::Bug => Code::Unavailable,
    };
    Status::new(code, message(error))
}

/// The status of an unpublish. The kubelet asks again after every one, so it is the truth.
pub fn unpublish(error: &Error) -> Status {
    first_publish(error)
}

/// The status of a question about a volume: NOT_FOUND speaks of the volume here.
pub fn stats(error: &Error) -> Status {
    match error.code() == &codes::VOLUME_UNKNOWN {
        true => Status::new(Code::NotFound, message(error)),
        false => first_publish(error),
    }
}

/// Whether a setting mends it, not another kernel or machine.
fn is_setting(error: &Error) -> bool {
    let settings = [
        &codes::MOUNT_NO_PROPAGATION,
        &codes::MOUNT_NOT_EMPTY,
        &codes::DRIVER_OBJECT,
    ];
    settings.contains(&error.code())
}

/// What the pod's events will show: the cause, what to do, and the code to look up.
fn message(error: &Error) -> String {
    let code = error.code();
    let cause = error.to_string();
    let stop = if cause.ends_with('?') { "" } else { "." };
    line(&cause, &format!("{stop} {} [{}]", code.fix, code.name))
}

/// One line that is not too long for an event: the cause is cut if need be, the rest is not.
pub(super) fn line(cause: &str, rest: &str) -> String {
    let mut text = String::new();
    for c in cause.trim_end_matches('.').chars() {
        if text.len() + rest.len() + 8 > limits::CSI_STATUS_BYTES {
            text.push_str(" ...");
            break;
        }
        text.push(if c.is_control() { ' ' } else { c });
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kubelet takes for "perhaps mounted".
    const NOT_FINAL: [Code; 5] = [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Unavailable,
        Code::ResourceExhausted,
        Code::Aborted,
    ];

    #[test]
    fn each_kind_has_its_code_in_each_phase() {
        use Code as C;
        #[rustfmt::skip]
        let rows = [
            (&codes::SPEC_SYNTAX, C::InvalidArgument, C::Unavailable, C::InvalidArgument),
            (&codes::MOUNT_HELD, C::AlreadyExists, C::AlreadyExists, C::AlreadyExists),
            (&codes::MOUNT_FOREIGN, C::AlreadyExists, C::Unavailable, C::AlreadyExists),
            (&codes::BACKEND_NOT_FOUND, C::FailedPrecondition, C::Unavailable, C::FailedPrecondition),
            (&codes::VOLUME_UNKNOWN, C::FailedPrecondition, C::Unavailable, C::NotFound),
            (&codes::BACKEND_UNAUTHENTICATED, C::Unauthenticated, C::Unavailable, C::Unauthenticated),
            (&codes::IDENTITY_FORGED, C::PermissionDenied, C::Unavailable, C::PermissionDenied),
            (&codes::MOUNT_BUSY, C::Aborted, C::Aborted, C::Aborted),
            (&codes::BACKEND_THROTTLED, C::Unavailable, C::Unavailable, C::Unavailable),
            (&codes::BACKEND_TIMEOUT, C::DeadlineExceeded, C::DeadlineExceeded, C::DeadlineExceeded),
            (&codes::LIMIT_EXCEEDED, C::ResourceExhausted, C::ResourceExhausted, C::ResourceExhausted),
            (&codes::CSI_BUSY, C::ResourceExhausted, C::ResourceExhausted, C::ResourceExhausted),
            (&codes::BACKEND_CORRUPT, C::DataLoss, C::Unavailable, C::DataLoss),
            (&codes::MOUNT_KERNEL, C::Internal, C::Unavailable, C::Internal),
            (&codes::MOUNT_LEFT, C::Unavailable, C::Unavailable, C::Unavailable),
            (&codes::MOUNT_NOT_EMPTY, C::FailedPrecondition, C::Unavailable, C::FailedPrecondition),
            (&codes::MOUNT_NO_PROPAGATION, C::FailedPrecondition, C::Unavailable, C::FailedPrecondition),
            (&codes::DRIVER_OBJECT, C::FailedPrecondition, C::Unavailable, C::FailedPrecondition),
            (&codes::BUG, C::Internal, C::Unavailable, C::Internal),
        ];
        for (code, first, again, stats_code) in rows {
            let error = Error::new(code);
            let got = [first_publish, republish, stats, unpublish].map(|f| f(&error).code());
            assert_eq!(got, [first, again, stats_code, first], "{}", code.name);
        }
    }

    #[test]
    fn no_republish_is_final_unless_the_call_is_wrong() {
        for code in codes::ALL {
            let status = republish(&Error::new(code));
            let calls_own_fault =
                code.kind == ErrorKind::Conflict && *code != &codes::MOUNT_FOREIGN;
            let expect = calls_own_fault && status.code() == Code::AlreadyExists;
            assert_eq!(
                NOT_FINAL.contains(&status.code()),
                !expect,
                "{} {:?}",
                code.name,
                status.code()
            );
        }
    }

    #[test]
    fn a_message_is_one_short_line_with_cause_fix_and_code() {
        let error = Error::new(&codes::BACKEND_NOT_FOUND).object("store:payments/db");
        assert_eq!(
            first_publish(&error).message(),
            "store:payments/db: The store has no such secret. Create it, or mend the reference. [backend.not_found]"
        );
        for nth in 0..20 {
            let long = format!("{}\n{}", "x".repeat(nth), "ä\u{1b}[2J".repeat(1000));
            let status = republish(&Error::new(&codes::BUG).detail(long));
            let message = status.message();
            assert!(
                message.len() <= limits::CSI_STATUS_BYTES,
                "{}",
                message.len()
            );
            assert!(!message.contains(char::is_control), "{message}");
            assert!(message.ends_with(" .... Report it. [bug]"), "{message}");
        }
    }
}
