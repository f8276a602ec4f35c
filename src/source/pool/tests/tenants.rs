//! Several namespaces before one backend.

use super::*;
use crate::caller::PodIdentity;

fn pod(namespace: &str) -> Caller {
    let pod = PodIdentity {
        namespace: namespace.into(),
        pod: "web-0".into(),
        pod_uid: format!("{namespace}/web-0").into(),
        service_account: "web".into(),
        service_account_uid: Some("u1".into()),
    };
    Arc::new((Identity::Pod(pod), Credentials::default()))
}

fn wants(rig: &mut Rig, namespace: &str, path: &str) -> Said {
    rig.on(Event::Subscribe {
        volume: volume(&format!("{namespace}-{path}")),
        key: key(&format!("{namespace}/{path}")),
        every: Some(MINUTE),
        caller: pod(namespace),
        pushes: false,
        terms: Terms::default(),
    })
}

/// The paths whose trouble is shown.
fn troubled(said: &Said) -> Vec<&str> {
    let shown = said.0.iter().filter_map(|effect| match effect {
        Effect::Show(key, view) if view.error.is_some() => Some(&*key.object.path),
        _ => None,
    });
    shown.collect()
}

#[test]
fn a_failed_probe_tells_those_of_every_namespace_that_shares_it() {
    let mut rig = Rig::new();
    for namespace in ["bank", "shop"] {
        for path in ["a", "b", "c", "d", "e"] {
            wants(&mut rig, namespace, path);
            let path = format!("{namespace}/{path}");
            rig.fetched(&path, fail(&codes::BACKEND_UNAVAILABLE));
        }
    }
    let probe = |rig: &mut Rig| {
        let words = rig.next().words();
        let path = words[0].split(' ').nth(1).unwrap();
        rig.fetched(path, fail(&codes::BACKEND_UNAVAILABLE))
    };
    for _ in 0..6 {
        probe(&mut rig);
    }
    let door = rig.pool.doors.values().next().unwrap();
    let next = door.alarm.unwrap().as_nanos() as f64 / 1e9;
    rig.now = next - 2.0;
    for namespace in ["bank", "shop"] {
        let said = wants(&mut rig, namespace, "new");
        assert!(troubled(&said).is_empty(), "it is worth a moment");
    }
    let said = probe(&mut rig);
    let told = troubled(&said);
    assert!(
        told.contains(&"bank/new") && told.contains(&"shop/new"),
        "{told:?}"
    );
}
