//! What changes while the plugin runs: its configuration, and what the kubelet knows of it.

use std::{fs, path::Path};

use secretfs::csi::{
    client::Channel,
    proto::registration::{InfoRequest, RegistrationStatus},
};
use tonic::Code;

use super::bed::{NodeBed, get_at};
use crate::support::program::eventually;

const NOBODY: &str = "policy: []";

fn status(bed: &NodeBed) -> String {
    bed.bed.ok(&["status", "--config", "node.yaml"], "")
}

#[test]
fn a_changed_policy_holds_without_a_restart() {
    let bed = NodeBed::shared();
    bed.configure(NOBODY);
    let mut running = bed.start();
    let refused = bed.publish("v").unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    bed.configure("");
    eventually("the new policy allows it", || bed.publish("v").is_ok());
    bed.configure(NOBODY);
    eventually("the new policy forbids it", || {
        let answer = bed.publish("w");
        bed.unpublish("w").unwrap();
        answer.is_err_and(|refused| refused.code() == Code::PermissionDenied)
    });
    assert_eq!(bed.file("v"), "value of a", "what is mounted stays");
    bed.unpublish("v").unwrap();
    running.stop();
}

#[test]
fn a_configuration_that_cannot_be_followed_changes_nothing_and_is_shown() {
    let bed = NodeBed::shared();
    let mut running = bed.start();
    bed.configure("driver: other.example\npolicy: []");
    eventually("status tells it", || {
        status(&bed).contains("node.yaml has changed and is not in force: line")
    });
    assert_eq!(bed.node()["ready"], true);
    assert_eq!(bed.node()["driver"], "csi.secretfs.dev");
    bed.publish("v").unwrap(); // by the policy as it was
    bed.configure("");
    eventually("it is over", || bed.node()["config"]["error"].is_null());
    bed.unpublish("v").unwrap();
    running.stop();
}

#[test]
fn the_kubelet_finds_it_and_publishes_do_not_wait_for_that() {
    let bed = NodeBed::shared();
    bed.configure("registration: true");
    let mut running = bed.start();
    let socket = bed.bed.path("k/plugins_registry/csi.secretfs.dev-reg.sock");
    let (code, why) = get_at(&running, "/readyz");
    assert_eq!(code, 503);
    assert!(why.starts_with("registration: "), "{why}");
    bed.publish("v").unwrap();
    bed.runtime.block_on(async {
        let channel = Channel::connect(&socket).await.unwrap();
        let mut kubelet = channel.registration();
        let info = kubelet.get_info(InfoRequest {}).await.unwrap();
        let info = info.into_inner();
        assert_eq!(info.name, "csi.secretfs.dev");
        assert_eq!(Path::new(&info.endpoint), bed.csi());
        for (plugin_registered, error) in [(false, "no such node"), (true, "")] {
            let status = RegistrationStatus {
                plugin_registered,
                error: error.to_owned(),
            };
            kubelet.notify_registration_status(status).await.unwrap();
            let expect = if plugin_registered { 200 } else { 503 };
            eventually("it is heard", || {
                let (code, why) = get_at(&running, "/readyz");
                code == expect && why.contains(error)
            });
        }
    });
    bed.unpublish("v").unwrap();
    running.stop();
    assert!(fs::symlink_metadata(&socket).is_err());
}
