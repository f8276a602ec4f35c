//! What is judged of our CSIDriver object, and which way leads to an API server. Pure.

use std::path::PathBuf;

use k8s_openapi::api::storage::v1::CSIDriver;
use secretfs::{
    config::Env,
    csi::{context::TokensIn, driver_object},
    error::codes,
    kube::Way,
};
use serde_json::{Value, json};

use crate::kube::{object, set};

/// Judges the object with `change`; the problems without the object's name.
fn judged(change: &Value, needed: &[&str]) -> Result<TokensIn, String> {
    let object: CSIDriver = serde_json::from_value(object(change.clone())).unwrap();
    driver_object::judge(&object, &set(needed)).map_err(|error| {
        assert_eq!(error.code(), &codes::DRIVER_OBJECT);
        let text = error.to_string();
        let told = text.strip_prefix("CSIDriver csi.secretfs.dev: ");
        told.unwrap_or_else(|| panic!("{text}")).to_owned()
    })
}

const POD: &str = "set `podInfoOnMount: true`";
const MODES: &str = "set `volumeLifecycleModes: [Ephemeral]`";
const REPUBLISH: &str = "set `requiresRepublish: true`";

#[test]
fn the_judgement_names_each_line_to_set() {
    for (change, expect) in [
        (json!({"podInfoOnMount": false}), POD),
        (json!({"podInfoOnMount": null}), POD),
        (json!({"volumeLifecycleModes": null}), MODES),
        (json!({"volumeLifecycleModes": []}), MODES),
        (json!({"volumeLifecycleModes": ["Persistent"]}), MODES),
        (
            json!({"volumeLifecycleModes": ["Ephemeral", "Persistent"]}),
            MODES,
        ),
        (json!({"requiresRepublish": false}), REPUBLISH),
        (json!({"requiresRepublish": null}), REPUBLISH),
    ] {
        assert_eq!(judged(&change, &[]), Err(expect.to_owned()), "{change}");
    }
    let nothing =
        json!({"podInfoOnMount": null, "volumeLifecycleModes": null, "requiresRepublish": null});
    let all =
        format!("{POD}; {MODES}; {REPUBLISH}; add to `tokenRequests`: {{audience: \"vault\"}}");
    assert_eq!(judged(&nothing, &["vault"]), Err(all));
}

#[test]
fn each_audience_of_a_backend_must_be_asked_for() {
    let asked =
        json!({"tokenRequests": [{"audience": "aws"}, {"audience": "", "expirationSeconds": 600}]});
    let lack = |lines: &str| Err(format!("add to `tokenRequests`: {lines}"));
    for (needed, expect) in [
        (&[][..], Ok(TokensIn::Context)),
        (&["aws"], Ok(TokensIn::Context)),
        (&["", "aws"], Ok(TokensIn::Context)),
        (&["AWS"], lack("{audience: \"AWS\"}")),
        (
            &["aws", "gcp", "vault"],
            lack("{audience: \"gcp\"}, {audience: \"vault\"}"),
        ),
    ] {
        assert_eq!(judged(&asked, needed), expect, "{needed:?}");
    }
    assert_eq!(judged(&json!({}), &[""]), lack("{audience: \"\"}"));
}

#[test]
fn the_object_says_where_tokens_are() {
    let asked = json!([{"audience": "aws"}]);
    for (change, expect) in [
        // who asks for none gets none, wherever: what stands there is the author's
        (json!({}), TokensIn::Nowhere),
        (
            json!({"tokenRequests": [], "serviceAccountTokenInSecrets": true}),
            TokensIn::Nowhere,
        ),
        (json!({"tokenRequests": asked}), TokensIn::Context),
        (
            json!({"tokenRequests": asked, "serviceAccountTokenInSecrets": true}),
            TokensIn::Secrets,
        ),
        (
            json!({"tokenRequests": asked, "serviceAccountTokenInSecrets": false}),
            TokensIn::Context,
        ),
        // none of our business: who a pod is does not hang on it
        (
            json!({"attachRequired": null, "fsGroupPolicy": "File", "seLinuxMount": true}),
            TokensIn::Nowhere,
        ),
    ] {
        assert_eq!(judged(&change, &[]), Ok(expect), "{change}");
    }
}

#[test]
fn what_is_only_unwise_is_advised() {
    for (change, expect) in [
        (json!({}), &[][..]),
        (json!({"attachRequired": null}), &["attachRequired: false"]),
        (
            json!({"tokenRequests": [{"audience": "vault"}, {"audience": "aws"}]}),
            &["\"aws\""],
        ),
    ] {
        let object: CSIDriver = serde_json::from_value(object(change)).unwrap();
        let advice = driver_object::advice(&object, &set(&["vault"]));
        assert_eq!(advice.len(), expect.len(), "{advice:?}");
        assert!(
            advice
                .iter()
                .zip(expect)
                .all(|(said, word)| said.contains(word)),
            "{advice:?}"
        );
    }
}

#[test]
fn the_way_is_a_pods_else_a_kubeconfigs_else_an_error_that_says_off() {
    let env = |pairs: &[(&str, &str)]| {
        let found = |name: &str| pairs.iter().find(|(key, _)| *key == name);
        Way::find(&Env::from(|name| {
            found(name).map(|(_, value)| value.into())
        }))
    };
    let host = ("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    let port = ("KUBERNETES_SERVICE_PORT", "443");
    let file = ("KUBECONFIG", "/home/me/kubeconfig");
    let pod = Way::InCluster {
        host: "10.0.0.1".to_owned(),
        port: 443,
        account: PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount"),
    };
    let laptop = Way::Kubeconfig("/home/me/kubeconfig".into());
    assert_eq!(env(&[host, port, file]).unwrap(), pod);
    assert_eq!(env(&[host, port]).unwrap(), pod);
    assert_eq!(env(&[file]).unwrap(), laptop);
    assert_eq!(
        env(&[host, ("KUBERNETES_SERVICE_PORT", "https"), file]).unwrap(),
        laptop
    );
    for none in [&[][..], &[host], &[port]] {
        let error = env(none).unwrap_err();
        assert_eq!(error.code(), &codes::KUBERNETES_UNREACHABLE);
        assert!(
            error.to_string().contains("set `kubernetes: off`"),
            "{error}"
        );
    }
}
