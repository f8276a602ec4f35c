//! One fetch for each account and object of a node, however many pods want it: counted by the server's own audit log.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use serde_json::json;
use tonic::Code;

use super::{
    crowd::{Crowd, Path, spec},
    fake::{Fake, review, token_review},
};
use crate::{
    node::bed::{NodeBed, get, post},
    support::{
        bao::Bao,
        kubelet::{Pod, Volume},
        program::eventually,
        scrape::Scraped,
    },
};

/// Objects of a volume: half of them its account's own, half everybody's.
const OBJECTS: usize = 10;
/// Volumes of a pod: fewer than the limit.
const OF_A_POD: usize = 10;
/// What the defaults are too little for: the volumes of a thousand pods in one namespace.
const LIMITS: &str = "\nlimits: {bytesPerNamespace: 1Gi, bytesPerNode: 1Gi}";

/// Requests by operation and path.
type Counts = BTreeMap<String, usize>;

fn path(account: &str, number: usize) -> Path {
    match number % 2 {
        0 => format!("payments/{account}/s{number}"),
        _ => format!("all/s{number}"),
    }
}

fn paths(account: &str) -> Vec<Path> {
    (0..OBJECTS).map(|number| path(account, number)).collect()
}

/// A node and a server with a value for each path of these accounts.
fn crowd(accounts: &[&str], cluster: impl FnOnce(&NodeBed) -> Fake) -> Option<Crowd> {
    let bao = Bao::start()?;
    let node = Crowd::node();
    for path in accounts.iter().flat_map(|account| paths(account)) {
        bao.put(&path, json!({"v": format!("{path} first")}));
    }
    let (cluster, address) = (cluster(&node), bao.address());
    let crowd = Crowd::new(bao, node, cluster, &["payments"], &address, (LIMITS, ""));
    Some(crowd)
}

/// The cluster, which has no word for the first pod before fifteen others wait for the same objects.
fn hesitant(node: &NodeBed) -> Fake {
    let socket: PathBuf = node.admin();
    Fake::new(move |request| {
        eventually("all pods of the first wave wait", || {
            let (_, text) = get(&socket, "/metrics");
            let shared = Scraped::parse(&text)
                .find("secretfs_cache_requests_total{backend=\"vault\",result=\"shared\"}");
            shared.is_some_and(|count| count >= (15 * OBJECTS) as f64)
        });
        review(request)
    })
}

/// Volume number `number` of an account.
fn volume(crowd: &Crowd, account: &str, number: usize, spec: &str) -> Volume {
    let pod = format!("{account}-{}", number / OF_A_POD);
    let pod = Pod::of(&pod, "payments", account);
    crowd.volume(&pod, &format!("v{}", number % OF_A_POD), spec)
}

#[track_caller]
fn assert_shows(volume: &Volume, number: usize, path: &str, value: &str) {
    assert_eq!(
        volume.file(&format!("f{number}")),
        format!("{path} {value}")
    );
}

/// All that the server was asked, but which mounts it has: that count beside it.
fn asked(crowd: &Crowd) -> (Counts, usize) {
    let all = crowd.bao.audited().into_iter();
    let (mounts, others): (Counts, Counts) =
        all.partition(|(what, _)| what.starts_with("read sys/internal/ui/mounts/secret/"));
    (others, mounts.into_values().sum())
}

#[test]
fn a_thousand_volumes_of_one_account_make_one_login_and_one_read_of_each_object() {
    let Some(mut crowd) = crowd(&["api"], hesitant) else {
        return;
    };
    let (paths, spec) = (paths("api"), spec("10m", &paths("api")));
    let volumes: Vec<_> = (0..1000)
        .map(|number| volume(&crowd, "api", number, &spec))
        .collect();
    let start = Instant::now();
    crowd.publish_all(&volumes);
    eprintln!("a thousand volumes, one account: {:.1?}", start.elapsed());
    let mut expect = Counts::from([("update auth/kubernetes/login".into(), 1)]);
    expect.extend(
        paths
            .iter()
            .map(|path| (format!("read secret/data/{path}"), 1)),
    );
    assert_eq!(asked(&crowd), (expect.clone(), 1), "and nothing else");

    let start = Instant::now();
    let (status, body) = post(&crowd.node.admin(), "/v1/refresh");
    assert_eq!(status, 200, "{body}");
    eprintln!("a refresh of all of them: {:.1?}", start.elapsed());
    let metadata = |path: &Path| format!("read secret/metadata/{path}");
    expect.extend(paths.iter().map(|path| (metadata(path), 1)));
    assert_eq!(asked(&crowd), (expect.clone(), 1), "no value is read again");

    crowd
        .bao
        .put(&paths[0], json!({"v": format!("{} second", paths[0])}));
    let refresh = ["refresh", "--all", "--config", "node.yaml"];
    let told = crowd.node.bed.ok(&refresh, ""); // as a person does it
    let fresh = told.lines().filter(|line| line.ends_with("fresh"));
    assert_eq!(fresh.count(), 1000);
    expect.extend(paths.iter().map(|path| (metadata(path), 2)));
    expect.insert(format!("read secret/data/{}", paths[0]), 2);
    assert_eq!(asked(&crowd), (expect, 1), "one value, for all");
    for volume in &volumes {
        assert_shows(volume, 0, &paths[0], "second");
        for (number, path) in paths.iter().enumerate().skip(1) {
            assert_shows(volume, number, path, "first");
        }
    }
    crowd.running.stop();
}

#[test]
fn ten_accounts_make_ten_logins_and_are_given_nothing_of_each_other() {
    let accounts: Vec<String> = (0..10).map(|number| format!("api{number}")).collect();
    let names: Vec<&str> = accounts.iter().map(String::as_str).collect();
    let Some(mut crowd) = crowd(&names, |_| token_review()) else {
        return;
    };
    let specs: Vec<_> = names
        .iter()
        .map(|account| spec("10m", &paths(account)))
        .collect();
    let volumes: Vec<_> = (0..1000)
        .map(|number| {
            let (account, number) = (number % names.len(), number / names.len());
            volume(&crowd, names[account], number, &specs[account])
        })
        .collect();
    let start = Instant::now();
    crowd.publish_all(&volumes);
    eprintln!("a thousand volumes, ten accounts: {:.1?}", start.elapsed());
    let mut expect = Counts::from([("update auth/kubernetes/login".into(), 10)]);
    for path in names.iter().flat_map(|account| paths(account)) {
        *expect
            .entry(format!("read secret/data/{path}"))
            .or_default() += 1;
    }
    let (found, mounts) = asked(&crowd);
    assert_eq!(found, expect, "a hundred reads: each account its own ten");
    assert!((1..=10).contains(&mounts), "once a login: {mounts}");
    for volume in &volumes {
        for (number, path) in paths(&volume.pod.account).iter().enumerate() {
            assert_shows(volume, number, path, "first");
        }
    }
    // what another account has on this node already
    let theirs = spec("10m", &[path("api0", 0)]);
    let stranger = volume(&crowd, "api1", 900, &theirs);
    let refused = crowd.publish(std::slice::from_ref(&stranger)).remove(0);
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert_eq!(stranger.file("f0"), "");
    crowd.running.stop();
}
