//! Every limit, with its unit and its reason. What a tenant can make big is counted against one of these.

use std::time::Duration;

/// Bytes of a path inside a volume. Far above real use, far below PATH_MAX with the target in front.
pub const PATH_BYTES: usize = 1024;
/// Bytes of one file, by default (`limits.bytesPerFile`). A kernel page-cache page each 4 KiB, charged to the plugin.
pub const BYTES_PER_FILE: u64 = 1 << 20;
/// Bytes of all files of one volume, by default (`limits.bytesPerVolume`).
pub const BYTES_PER_VOLUME: u64 = 4 << 20;
/// Files of one volume, by default (`limits.filesPerVolume`). Each costs an inode in each of three generations.
pub const FILES_PER_VOLUME: u32 = 256;
/// Bytes of a spec's text. The API server's own limit for an object is 1.5 MiB; a spec is a page.
pub const SPEC_BYTES: usize = 256 << 10;
/// Nesting of YAML, JSON and templates. Above any hand-written file, below what a recursive parser's stack bears.
pub const NESTING: usize = 32;
/// Nodes of a YAML document after aliases are expanded: a "billion laughs" stops here.
pub const YAML_NODES: usize = 10_000;
/// Problems reported at once; beyond it nobody reads.
pub const PROBLEMS: usize = 100;
/// Steps of one template (minijinja fuel): a loop over a few thousand fields, not an endless one.
pub const TEMPLATE_STEPS: u64 = 100_000;
/// Bytes of one value in the embedded store.
pub const STORE_VALUE_BYTES: u64 = 1 << 20;
/// Versions of one name that the embedded store keeps, by default.
pub const STORE_VERSIONS: u32 = 100;
/// Bytes of a reference's PATH, so that it fits a file name of the store and a URL.
pub const REFERENCE_BYTES: usize = 1024;
/// How long superseded files stay whole while memory allows (`facts/watchers-second.md` 3: a reader without CPU for 3.2 s
/// has been seen).
pub const OLD_GENERATION: Duration = Duration::from_secs(10);
/// How long they stay at the least, also when memory is short.
pub const OLD_GENERATION_MIN: Duration = Duration::from_secs(1);
/// Longest that a volume waits for its other sources before it renders with what it has (design decision 7).
pub const RENDER_DELAY: Duration = Duration::from_millis(200);
/// Shortest `refreshInterval`.
pub const REFRESH_MIN: Duration = Duration::from_secs(1);
/// Longest `refreshInterval`: beyond it "never" is meant.
pub const REFRESH_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// `refreshInterval` when the spec has none.
pub const REFRESH_DEFAULT: Duration = Duration::from_secs(60);
/// One request to a store.
pub const FETCH_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of one request to the admin socket.
pub const ADMIN_REQUEST_BYTES: usize = 64 << 10;
/// Words and signs of one template tag. The engine recurses once for each; some thousand overflow a thread's stack.
pub const TEMPLATE_TAG_TOKENS: usize = 300;
/// `elif` of one template: each nests in the one before, for the same stack.
pub const TEMPLATE_ELIFS: usize = 100;
/// Bytes of all secrets that one template uses. Comparing two of them costs one step: a full budget of steps, some seconds.
pub const TEMPLATE_INPUT_BYTES: usize = 256 << 10;
/// Volumes of one pod, by default (`limits.volumesPerPod`).
pub const VOLUMES_PER_POD: u32 = 16;
/// Bytes of all volumes of a namespace, by default (`limits.bytesPerNamespace`): their pages are charged to us, not to its pods.
pub const BYTES_PER_NAMESPACE: u64 = 64 << 20;
/// Bytes of all volumes, by default (`limits.bytesPerNode`): what the plugin's own memory limit must hold.
pub const BYTES_PER_NODE: u64 = 256 << 20;
/// Longest that a publish waits for its sources. The kubelet gives up after 120 s (`csiTimeout`) and would ask again while
/// we still work.
pub const PUBLISH_DEADLINE: Duration = Duration::from_secs(90);
/// How long a stop waits for requests to return and leases to be given back, before it goes on without them.
pub const STOP_GRACE: Duration = Duration::from_secs(5);
/// Commands that wait in one volume's mailbox. The kubelet has one call per volume in flight; beyond this somebody loops.
pub const MAILBOX: usize = 64;
/// First wait after a mount refused a new generation, doubled with each failure.
pub const REPLACE_RETRY: Duration = Duration::from_secs(1);
/// Longest such wait.
pub const REPLACE_RETRY_MAX: Duration = Duration::from_secs(60);
/// Shortest time between two warnings about one volume; those between are counted.
pub const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// Further warnings in that time, each because of another cause than the one before.
pub const WARN_CAUSES: u32 = 10;
/// Requests in flight to one backend: a hung one holds no more tasks and connections than this.
pub const BACKEND_IN_FLIGHT: u32 = 8;
/// Requests that one backend gets in a second in the long run: above the need of a full node, below what a store notices.
pub const BACKEND_PER_SECOND: u32 = 20;
/// Requests that one backend gets at once after a rest: a node's worth of pods that start together.
pub const BACKEND_BURST: u32 = 40;
/// Requests in flight to a backend on this machine: each is a short look at files on a thread of its own, or waits for a
/// store that is just being changed. Far below the number of such threads.
pub const LOCAL_IN_FLIGHT: u32 = 64;
/// Longest that the first look at a backend on this machine waits for the watch that goes with it. A look before the watch
/// has begun would have to be repeated after.
pub const WATCH_HEAD_START: Duration = Duration::from_millis(100);
/// Consecutive failures after which a backend is only probed: one more than bad luck.
pub const BREAKER_FAILURES: u32 = 5;
/// Longest wait between two probes of a backend that is down, unless all its sources are asked more rarely.
pub const PROBE_MAX: Duration = Duration::from_secs(300);
/// First wait after a failure, doubled with each further one. Also the shortest time between two questions that a
/// failing source is asked because another volume wants it.
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait after a failure; a source that is asked more often is asked again within its interval.
pub const RETRY_MAX: Duration = Duration::from_secs(300);
/// Longest `retry_after` of a store that is believed.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// How long a replaced lease lives on after all readers see the new value: connections being made with the old one.
pub const LEASE_OVERLAP: Duration = Duration::from_secs(60);
/// How long a lease kept across a restart waits for a subscriber: the kubelet republishes within 90 s.
pub const LEASE_FOUND_GRACE: Duration = Duration::from_secs(120);
/// Shortest time between two requests for one source that is hinted at. A chatty store cannot take more than the rate of
/// its backend; a change right after a fetch still reaches the file in a fraction of a second.
pub const HINT_GAP: Duration = Duration::from_millis(50);
/// The same for a store on this machine, which answers in a fraction of a millisecond.
pub const HINT_GAP_LOCAL: Duration = Duration::from_millis(2);
/// A wait for a backend longer than this is shown to volumes as an error; a shorter one is only waited for.
pub const HELD_BACK: Duration = Duration::from_secs(5);
