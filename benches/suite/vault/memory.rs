//! What the plugin holds: idle, and with many volumes, ten pods of each account, which has a secret of its own.

use std::{fs, time::Duration};

use super::{
    super::{Outcome, csi::Bed, openbao::Server, rest, row::Row, volume::bytes_of},
    Node,
};

/// Pods of one account.
const PODS: usize = 10;
const RSS: &str = "memory of a node with Vault, RSS";
const ANON: &str = "memory of a node with Vault, RssAnon";

/// RSS and its anonymous part: of a plugin just started, with `most` / 10 and with `most` volumes, each after a rest.
pub async fn run(bed: &Bed, server: &Server, most: usize, rest: Duration) -> Outcome<Vec<Row>> {
    let idle = rest::start(bed)?;
    let mut rows = at_rest(idle.id(), "idle", rest).await?;
    rest::stop(idle)?;
    let mut node = Node::start(bed, server).await?;
    for (size, variant) in [(most / 10, "100 volumes"), (most, "1,000 volumes")] {
        while node.published.len() < size {
            let pod = node.published.len() - 1; // the first is there since the start
            let account = 30_000 + pod / PODS;
            let secret = format!("memory-{account}");
            if pod.is_multiple_of(PODS) {
                node.audit.noted()?;
                node.prepare(&[&secret]).await?;
            }
            node.publish(account, &secret).await?;
        }
        rows.extend(at_rest(node.child.id(), variant, rest).await?);
    }
    node.stop().await?;
    rows.sort_by_key(|row| row.name == ANON);
    Ok(rows)
}

async fn at_rest(pid: u32, variant: &'static str, rest: Duration) -> Outcome<Vec<Row>> {
    tokio::time::sleep(rest).await;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let row = |name, key| -> Outcome<Row> {
        Ok(Row::of(
            name,
            variant,
            "B",
            vec![bytes_of(&status, key)? as f64],
        ))
    };
    Ok(vec![row(RSS, "VmRSS:")?, row(ANON, "RssAnon:")?])
}
