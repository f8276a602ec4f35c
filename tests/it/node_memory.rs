//! Where secrets are in the memory of `secretfs node`, and for how long: all that it can write is searched.
//!
//! docs/SECURITY.md says what these tests hold.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use secretfs::cli;

use crate::{
    node::bed::NodeBed,
    support::{
        kubelet::Volume,
        machine::kill,
        memory::{Picture, Place, search},
        needles::Needles,
        program::Running,
        session::{Session, identity},
    },
};

/// How long a copy may take to go that is on its way out: a sweep a second later, a connection that ends, a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// Set for a child of this test: arguments of the program, a line each.
const ARGS: &str = "SECRETFS_TEST_PROGRAM";

/// Searches until the memory off the stacks holds exactly these secrets, each once.
#[track_caller]
fn holds(running: &Running, session: &Session, held: &[String]) -> Picture {
    let expected: BTreeMap<&str, usize> = held.iter().map(|name| (name.as_str(), 1)).collect();
    let start = Instant::now();
    loop {
        let picture = search(running.child.id(), &session.needles);
        if picture.off_stacks() == expected {
            let on_stacks = picture.on_stacks();
            assert!(on_stacks.is_empty(), "{on_stacks:#?}");
            return picture;
        }
        if start.elapsed() > PATIENCE {
            let counts = picture.off_stacks();
            panic!(
                "{counts:#?} but expected {expected:#?}\n{:#?}",
                picture.copies
            );
        }
    }
}

/// The needles of a session, and the key that decrypts the store.
fn session() -> Session {
    let mut session = Session::new(NodeBed::shared());
    let (text, bytes) = identity(&session.node.bed.path("identity.age"));
    session.needles.add("identity's text", text.as_bytes());
    session.needles.add("identity's bytes", &bytes);
    session
}

/// Publishes all, and what must be held then.
fn publish(session: &mut Session, volumes: &[Volume]) -> Vec<String> {
    let mut held = session.newest().to_vec();
    for volume in volumes {
        session.publish(volume).unwrap();
        held.extend(session.last_proof(volume));
    }
    held
}

#[test]
fn what_is_served_is_held_once_and_nothing_else() {
    let mut session = session();
    let mut running = session.node.start();
    let searched = holds(&running, &session, &[]);
    println!("{searched:?}");
    assert!(searched.heap_bytes > 0 && searched.stack_bytes > 0);
    assert!(searched.threads.len() >= 3, "{:?}", searched.threads);

    let volumes = session.volumes();
    let mut held = publish(&mut session, &volumes);
    session.settled(&volumes);
    holds(&running, &session, &held);
    for _ in 0..3 {
        session.put_all();
        session.settled(&volumes);
        held.splice(..4, session.newest());
        holds(&running, &session, &held);
    }
    session.failures();
    holds(&running, &session, &held);
    session.bad_rotation(&volumes[0]);
    held.splice(..4, session.newest());
    holds(&running, &session, &held);
    held = publish(&mut session, &volumes);
    holds(&running, &session, &held);

    // who made the sources goes first; another one keeps one of them
    session.unpublish(&volumes[0]);
    let mut held = session.last_proof(&volumes[1]);
    held.push(session.newest()[0].clone());
    holds(&running, &session, &held);
    session.unpublish(&volumes[1]);
    holds(&running, &session, &[]);
    running.stop();
}

#[test]
fn a_plugin_that_takes_volumes_over_holds_what_it_serves_and_nothing_after_their_end() {
    let mut session = session();
    let mut running = session.node.start();
    let volumes = session.volumes();
    publish(&mut session, &volumes);
    kill(&mut running);
    let mut running = session.node.start();
    session.put_all();
    session.settled(&volumes);
    // nobody has come with a token yet
    holds(&running, &session, &session.newest());
    let held = publish(&mut session, &volumes);
    holds(&running, &session, &held);
    volumes.iter().for_each(|volume| session.unpublish(volume));
    holds(&running, &session, &[]);
    running.stop();
}

// --- is the search any good?

#[test]
fn without_the_wiping_allocator_the_same_search_finds_copies() {
    let mut session = session();
    let mut running = start_unwiped(&session);
    let volumes = session.volumes();
    publish(&mut session, &volumes);
    session.put_all();
    session.settled(&volumes);
    session.failures();
    volumes.iter().for_each(|volume| session.unpublish(volume));
    let picture = search(running.child.id(), &session.needles);
    let counts = picture.off_stacks();
    println!("{counts:#?}");
    for name in ["password", "claim"] {
        let of_it = counts.keys().filter(|secret| secret.starts_with(name));
        assert!(of_it.count() > 0, "no copy of any {name}");
    }
    running.stop();
}

/// The program in this test's own binary, which has the system's allocator: there `secretfs` is a library, and the wiping allocator
/// is its program's.
fn start_unwiped(session: &Session) -> Running {
    let bed = &session.node.bed;
    let mut command = Command::new(std::env::current_exe().unwrap());
    let entry = "node_memory::the_program_with_the_systems_allocator";
    command
        .args(["--exact", entry, "--nocapture", "--test-threads=1"])
        .current_dir(&bed.dir);
    bed.environment(&mut command)
        .env(ARGS, NodeBed::ARGS.join("\n"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = bed.spawn(command);
    while !running.ready.contains("ready: ") {
        let before = running.ready.len();
        running.first_line(); // the test harness has something to say first
        assert!(running.ready.len() > before, "{}", running.log());
    }
    running
}

/// Only where [`start_unwiped`] has started it.
#[test]
fn the_program_with_the_systems_allocator() {
    if let Ok(args) = std::env::var(ARGS) {
        let args = ["secretfs"].into_iter().chain(args.lines());
        cli::main_with(args.map(OsString::from));
    }
}

/// A shell that holds a value in a variable, and one in its environment.
fn shell(in_variable: &str, in_environment: &str) -> Child {
    let mut shell = Command::new("sh")
        .args(["-c", "read -r value; echo \"${#value}\"; read -r end"])
        .env("PLANTED", in_environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(shell.stdin.as_mut().unwrap(), "{in_variable}").unwrap();
    let mut answer = String::new();
    let mut stdout = BufReader::new(shell.stdout.as_mut().unwrap());
    stdout.read_line(&mut answer).unwrap();
    assert_eq!(answer.trim(), in_variable.len().to_string());
    shell
}

#[test]
fn what_is_planted_on_a_heap_and_on_a_stack_is_found_there() {
    let mut random = fastrand::Rng::new();
    let mut canary = || (0..48).map(|_| random.alphanumeric()).collect::<String>();
    let (heap, stack, nowhere) = (canary(), canary(), canary());
    let mut needles = Needles::default();
    needles.add("heap", heap.as_bytes());
    needles.add("stack", stack.as_bytes());
    needles.add("nowhere", nowhere.as_bytes());
    let half = &heap[20..];
    let mut shell = shell(half, &stack);
    let picture = search(shell.id(), &needles);
    let found = |secret: &str, is_there: fn(&Place) -> bool| {
        let mut copies = picture.copies.iter();
        copies.any(|copy| copy.secret == secret && is_there(&copy.place))
    };
    assert!(found("heap", |place| *place == Place::Heap), "{picture:#?}");
    let on_stack = |place: &Place| matches!(place, Place::Stack { thread, above } if thread == "sh" && *above > 0);
    assert!(found("stack", on_stack), "{picture:#?}");
    assert!(!found("nowhere", |_| true), "{picture:#?}");
    drop(shell.stdin.take());
    shell.wait().unwrap();
}
