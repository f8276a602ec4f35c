//! What a restart of anything, an upgrade, a reboot and a deletion at the wrong moment leave.

use std::fs;

use crate::cluster::{self, Namespace, eventually, namespace::Pod, plugin};

#[test]
fn running_pods_outlive_the_plugins_death_and_rotation_goes_on() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "killed");
    namespace.run(&Pod::new("stays", &namespace));
    namespace.run(&Pod::new("goes", &namespace));
    let (uid, looked) = (namespace.uid("goes"), namespace.look("stays"));
    let before = plugin::kill(cluster);
    namespace.kubectl(&["delete", "pod", "goes", "--wait=false"]);
    assert_eq!(namespace.word("stays"), "first");
    plugin::wait_for_another(cluster, before);
    assert_eq!(namespace.look("stays"), looked, "the restart touched it");
    namespace.put("a", "second");
    namespace.wait_for_word("stays", "second");
    namespace.wait_gone("goes", &uid);
    namespace.delete("stays");
}

// Goal: wherever a kill strikes a publish (fetch, mount, answer), a pod starts on all of its files or not at all.
#[test]
fn no_kill_in_the_midst_of_publishes_starts_a_pod_on_an_empty_volume() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "midst");
    let names: Vec<String> = (0..12).map(|n| format!("pod-{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        namespace.create(&Pod::new(name, &namespace));
        if n % 3 == 2 {
            // as soon as the kubelet's call for the last one has come to a mount, or a moment before
            let uid = namespace.uid(name);
            let directory = cluster.node(&format!(
                "/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/secrets"
            ));
            eventually(
                "the kubelet begins",
                || directory.exists().then_some(()),
                || namespace.told(name),
            );
            let before = plugin::kill(cluster);
            plugin::wait_for_another(cluster, before);
        }
    }
    for name in &names {
        namespace.wait_running(name); // fails if its first look missed a file
        assert_eq!(namespace.word(name), "first");
    }
    for name in &names {
        namespace.delete(name);
    }
}

#[test]
fn a_pod_that_is_deleted_while_the_plugin_is_down_is_unmounted_when_it_is_back() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "down");
    namespace.run(&Pod::new("goes", &namespace));
    let uid = namespace.uid("goes");
    // no node has this label
    plugin::patch(
        cluster,
        r#"{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"yes"}}}}}"#,
    );
    eventually(
        "the plugin is gone",
        || plugin::pid(cluster).is_none().then_some(()),
        || plugin::told(cluster),
    );
    namespace.kubectl(&["delete", "pod", "goes", "--wait=false"]);
    namespace.wait_for_event("goes", "Killing", &[]);
    assert_eq!(cluster.mounts_of(&uid).len(), 1);
    plugin::patch(
        cluster,
        r#"{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":null}}}}}"#,
    );
    plugin::wait_until_ready(cluster);
    namespace.wait_gone("goes", &uid);
}

#[test]
fn a_kubelet_that_restarts_finds_the_plugin_again_and_touches_no_file() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "kubelet");
    namespace.run(&Pod::new("stays", &namespace));
    namespace.run(&Pod::new("goes", &namespace));
    let (uid, looked) = (namespace.uid("goes"), namespace.look("stays"));
    cluster.bed("stop", &["kubelet"]);
    namespace.kubectl(&["delete", "pod", "goes", "--force", "--grace-period=0"]);
    assert_eq!(cluster.mounts_of(&uid).len(), 1);
    cluster.bed("start", &["kubelet"]);
    namespace.wait_gone("goes", &uid);
    namespace.run(&Pod::new("new", &namespace));
    assert_eq!(namespace.look("stays"), looked);
    namespace.put("a", "second");
    namespace.wait_for_word("stays", "second");
}

#[test]
fn an_upgrade_and_the_way_back_take_no_file_away() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "upgrade");
    namespace.run(&Pod::new("stays", &namespace));
    let looked = namespace.look("stays");
    let program = std::env::var("SECRETFS_E2E_PROGRAM").unwrap();
    cluster.bed("image", &["localhost/secretfs:next", &program]);
    for (image, word) in [
        ("localhost/secretfs:next", "second"),
        (cluster::IMAGE, "third"),
    ] {
        let before = plugin::pid(cluster).unwrap();
        assert_eq!(namespace.look("stays") == looked, word == "second");
        cluster.kubectl(&[
            "-n",
            "secretfs",
            "set",
            "image",
            "daemonset/secretfs",
            &format!("secretfs={image}"),
        ]);
        plugin::wait_for_another(cluster, before);
        namespace.put("a", word);
        namespace.wait_for_word("stays", word);
    }
    namespace.delete("stays");
}

#[test]
fn a_hundred_pods_come_and_go_at_once_and_leave_nothing() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "hundred");
    let names: Vec<String> = (0..100).map(|n| format!("pod-{n}")).collect();
    let begun = std::time::Instant::now();
    let all: Vec<String> = names
        .iter()
        .map(|name| Pod::new(name, &namespace).manifest())
        .collect();
    namespace.cluster.kubectl_with(
        &["-n", &namespace.name, "create", "-f", "-"],
        &all.join("---\n"),
    );
    let phases = || {
        namespace.kubectl(&[
            "get",
            "pods",
            "-o",
            "jsonpath={range .items[*]}{.status.phase}{\"\\n\"}{end}",
        ])
    };
    eventually(
        "all run",
        || {
            let phases = phases();
            assert!(!phases.contains("Failed"), "{phases}");
            (phases.matches("Running").count() == names.len()).then_some(())
        },
        || plugin::told(cluster),
    );
    println!("100 pods run after {:?}", begun.elapsed());
    for name in &names {
        assert!(
            namespace.log(name).contains("all there"),
            "{}",
            namespace.told(name)
        );
    }
    let mounted = cluster.mounts_of("kubernetes.io~csi").len();
    assert!(mounted >= names.len(), "{mounted}");
    let begun = std::time::Instant::now();
    namespace.kubectl(&[
        "delete",
        "pods",
        "--all",
        "--wait=false",
        "--force",
        "--grace-period=0",
    ]);
    eventually(
        "no mount is left",
        || {
            cluster
                .mounts_of("kubernetes.io~csi")
                .is_empty()
                .then_some(())
        },
        || format!("{:#?}", cluster.mounts_of("kubernetes.io~csi")),
    );
    println!("and have gone after {:?}", begun.elapsed());
}

#[test]
fn a_volume_that_comes_again_under_its_name_has_what_is_current() {
    let (cluster, _turn) = cluster::beside_others();
    let namespace = Namespace::new(cluster, "again");
    for word in ["second", "third"] {
        namespace.put("a", word);
        namespace.run(&Pod::new("same", &namespace));
        assert_eq!(namespace.word("same"), word);
        namespace.delete("same");
    }
}

#[test]
fn a_container_that_restarts_sees_what_is_current_and_a_subpath_does_not_follow() {
    let (cluster, _turn) = cluster::beside_others();
    let namespace = Namespace::new(cluster, "restart");
    let mut pod = Pod::new("restart", &namespace);
    pod.restart = "Always".to_owned();
    pod.mounts = ", {name: secrets, mountPath: /one, subPath: word, readOnly: true}".to_owned();
    pod.then = "echo \"one $(cat /one)\"; while ! test -e /tmp/end; do sleep 0.1; done; exit 0\n"
        .to_owned();
    namespace.run(&pod);
    namespace.put("a", "second");
    namespace.wait_for_word("restart", "second");
    // what docs/SEMANTICS.md says of subPath: bound to the file of the day
    assert_eq!(namespace.exec("restart", &["cat", "/one"]), "first");
    namespace.exec("restart", &["touch", "/tmp/end"]);
    eventually(
        "it has restarted, and has current files in both places",
        || {
            namespace
                .log("restart")
                .contains("one second")
                .then_some(())
        },
        || namespace.told("restart"),
    );
    namespace.wait_for_word("restart", "second");
}

#[test]
fn a_mount_that_was_taken_away_is_told_and_the_next_container_sees_current_files() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "lost");
    let mut pod = Pod::new("lost", &namespace);
    pod.restart = "Always".to_owned();
    pod.then = "while ! test -e /tmp/end; do sleep 0.1; done; exit 0\n".to_owned();
    namespace.run(&pod);
    let uid = namespace.uid("lost");
    let target = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/secrets/mount");
    cluster.bed("run", &["umount", "-l", &target]);
    assert_eq!(cluster.mounts_of(&uid).len(), 0);
    eventually(
        "it is mounted again",
        || (cluster.mounts_of(&uid).len() == 1).then_some(()),
        || namespace.told("lost"),
    );
    namespace.put("a", "second");
    let at_once = cluster.node(&target).join("word");
    eventually(
        "the node sees what is current",
        || {
            fs::read_to_string(&at_once)
                .ok()
                .filter(|word| word == "second")
        },
        || namespace.told("lost"),
    );
    namespace.exec("lost", &["touch", "/tmp/end"]);
    eventually(
        "the next container runs",
        || namespace.restarts("lost").filter(|restarts| *restarts > 0),
        || namespace.told("lost"),
    );
    namespace.wait_running("lost");
    namespace.wait_for_word("lost", "second");
}

/// Nothing mounted, nothing in runtimeDir, no process: what the node has after it was switched off.
#[test]
fn after_a_reboot_pods_have_their_files_again() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "reboot");
    let mut pod = Pod::new("stays", &namespace);
    pod.restart = "Always".to_owned();
    namespace.run(&pod);
    let uid = namespace.uid("stays");
    let before = namespace.restarts("stays").unwrap();
    cluster.bed("stop", &["kubelet"]);
    let script = "for c in $(ctr tasks ls -q); do ctr tasks kill -s KILL $c || true; done; sleep 1
        for m in $(grep secretfs /proc/self/mountinfo | cut -d' ' -f5 | sort -r); do umount -l $m || true; done
        rm -rf /run/secretfs/*";
    cluster.bed("run", &["sh", "-c", script]);
    assert!(cluster.mounts_of(&uid).is_empty());
    namespace.put("a", "second");
    cluster.bed("start", &["kubelet"]);
    plugin::wait_until_ready(cluster);
    eventually(
        "its container runs again",
        || {
            namespace
                .restarts("stays")
                .filter(|restarts| *restarts > before)
        },
        || namespace.told("stays"),
    );
    namespace.wait_running("stays");
    namespace.wait_for_word("stays", "second");
}
