//! What a person sees: one file per subcommand. Results on stdout, everything else on stderr.

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, ValueEnum};

use crate::{
    backend::registry,
    caller::Identity,
    clock::SystemClock,
    config::Env,
    error::{Error, ErrorKind, Result, codes},
    observe::log,
    sys::{process, seccomp, stack},
};

pub mod check;
pub mod client;
pub mod demo;
pub mod exec;
pub mod hook;
pub mod load;
pub mod mount;
pub mod node;
pub mod reload;
pub mod rundir;
pub mod signals;
pub mod status;
pub mod store;
pub mod table;
pub mod version;

/// Secrets as files that rotate.
///
/// Serves secrets from a store as read-only files, and changes the files in place when the store changes them, so that programs
/// that watch files need no restart. Start with `secretfs demo`.
#[derive(Parser)]
#[command(name = "secretfs", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How much to log on stderr: error, warn, info, debug, trace [default: $SECRETFS_LOG_LEVEL, else the configuration's, else warn]
    #[arg(
        long,
        global = true,
        value_enum,
        hide_possible_values = true,
        help_heading = "Logging"
    )]
    log_level: Option<log::Level>,
    /// `text` for people, or `json`: one object a line [default: $SECRETFS_LOG_FORMAT, else text]
    #[arg(
        long,
        global = true,
        value_enum,
        hide_possible_values = true,
        help_heading = "Logging"
    )]
    log_format: Option<log::Format>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Shows all of it on this machine, in half a minute, and cleans up
    Demo(demo::DemoArgs),
    /// Keeps secrets in a directory of encrypted files
    Store(store::StoreArgs),
    /// Finds every problem of a spec or a configuration at once
    Check(check::CheckArgs),
    /// Mounts a volume and keeps it current
    Mount(mount::MountArgs),
    /// Runs a program with secrets in its environment, or in a mount that only it sees
    Exec(exec::ExecArgs),
    /// Runs the CSI node plugin: serves the volumes of a node's pods
    Node(node::NodeArgs),
    /// Asks the stores now
    Refresh(status::RefreshArgs),
    /// Shows the volumes that are served here
    Status(status::StatusArgs),
    /// Shows the version and what this kernel offers
    Version(version::VersionArgs),
}

/// The exit code of a command whose input has problems that it has shown.
fn input_wrong() -> ExitCode {
    ExitCode::from(2)
}

/// The program: flags in, exit code out.
pub fn main() -> ExitCode {
    run(Cli::parse())
}

/// [`main`] with these arguments instead of the process's own; the first is the program's name.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    run(Cli::parse_from(args))
}

fn run(cli: Cli) -> ExitCode {
    let env = Env::read();
    let format = cli
        .log_format
        .or_else(|| chosen(env.log_format.as_deref()))
        .unwrap_or(log::Format::Text);
    let level = cli.log_level.or_else(|| chosen(env.log_level.as_deref()));
    log::start(level, format);
    seccomp::tell_as_json(format == log::Format::Json);
    let code_of: fn(&Error) -> u8 = match &cli.command {
        Command::Exec(_) => exec::exit_code,
        _ => |error| exit_code(error.kind()),
    };
    let ended =
        prepare(&cli.command).and_then(|()| dispatch(cli.command, &env, &mut std::io::stdout()));
    log::tell_rest();
    match ended {
        Ok(code) => code,
        Err(error) => {
            if error.code() != &codes::STDOUT_CLOSED {
                eprint!("{}", explain(&error, format)); // who closed it has seen enough
            }
            ExitCode::from(code_of(&error))
        }
    }
}

/// A value of the environment; one that is not known counts as none.
fn chosen<T: ValueEnum>(text: Option<&str>) -> Option<T> {
    text.and_then(|text| T::from_str(text, true).ok())
}

/// What comes before all else (design decision 14). Those that make a namespace seal themselves after that.
fn prepare(command: &Command) -> Result<()> {
    log::hide_panics();
    if matches!(command, Command::Demo(_) | Command::Exec(_)) {
        Ok(())
    } else {
        seal()
    }
}

/// No core file, no look into our memory.
fn seal() -> Result<()> {
    tracing::trace!("no core file, no look into our memory");
    process::seal().map_err(|error| {
        Error::new(&codes::NODE_IO)
            .step("seal the process")
            .source(error)
    })
}

fn dispatch(command: Command, env: &Env, out: &mut dyn Write) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(&args, env, out)?,
        Command::Store(args) => {
            let stdin = std::io::stdin();
            let mut io = store::Io {
                stdin_is_terminal: stdin.is_terminal(),
                stdin: &mut stdin.lock(),
                stdout: out,
                stderr: &mut std::io::stderr(),
            };
            store::run(args, env, &mut io)?;
        }
        Command::Check(args) => return check(&args, env),
        Command::Mount(args) => return mount::run(&args, env, out),
        Command::Exec(args) => return exec::run(&args, env),
        Command::Node(args) => return node::run(&args, env, out),
        Command::Refresh(args) => runtime()?.block_on(status::refresh(&args, env, out))?,
        Command::Status(args) => runtime()?.block_on(status::status(&args, env, out))?,
        Command::Version(args) => version::run(&args, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn check(args: &check::CheckArgs, env: &Env) -> Result<ExitCode> {
    let world = check::World {
        env,
        check_backend: &registry::problems,
        registry: &|config| registry::Registry::build(config, 0),
        clock: Arc::new(SystemClock),
        who: Identity::Local {
            uid: process::uid(),
        },
    };
    let code = runtime()?.block_on(check::run(args, &world, &mut std::io::stdout()))?;
    Ok(ExitCode::from(code))
}

/// The runtime of a command that needs one: two workers are enough for what waits, and calls on mounts have threads of their own.
///
/// # Errors
/// `node.io` when the machine has no threads left.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_park(stack::scrub) // requests and tokens were on it
        .enable_all()
        .build()
        .map_err(|error| {
            Error::new(&codes::NODE_IO)
                .step("start the runtime")
                .source(error)
        })
}

/// No namespace can be made.
fn no_namespace(error: std::io::Error) -> Error {
    Error::new(&codes::NODE_NAMESPACE)
        .detail(
            "this user may not make a user namespace; run this as root, or allow it with \
             `sysctl kernel.unprivileged_userns_clone=1` (Debian), \
             `sysctl kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu) or \
             `sysctl user.max_user_namespaces=1000`; in a container, with `--privileged`",
        )
        .source(error)
}

/// What is wrong, what to do about it, and the code to look up; in a JSON log one object more.
fn explain(error: &Error, format: log::Format) -> String {
    let code = error.code();
    match format {
        log::Format::Text => format!("secretfs: {error}\n  {}  [{}]\n", code.fix, code.name),
        log::Format::Json => {
            let (message, fix) = (error.to_string(), code.fix);
            format!(
                "{}\n",
                serde_json::json!({ "level": "ERROR", "message": message, "code": code.name, "fix": fix })
            )
        }
    }
}

/// The exit-code edge of the error taxonomy (design section 7): 2 when the input is wrong, 1 when the work failed.
fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidSpec => 2,
        ErrorKind::Conflict
        | ErrorKind::SecretNotFound
        | ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied
        | ErrorKind::Busy
        | ErrorKind::Unavailable
        | ErrorKind::Timeout
        | ErrorKind::Exhausted
        | ErrorKind::Corrupt
        | ErrorKind::Node
        | ErrorKind::Bug => 1,
    }
}
