//! Every limit, with its unit and its reason. What a tenant can make big is counted against one of these.

use std::time::Duration;

/// Bytes of a path inside a volume. Far above real use, far below PATH_MAX with the target in front.
pub const PATH_BYTES: usize = 1024;
/// Bytes of one segment of a path, and of a store's file names: what Linux file systems take (NAME_MAX).
pub const FILE_NAME_BYTES: usize = 255;
/// Bytes of a target's path: the kernel's PATH_MAX less its final NUL.
pub const TARGET_BYTES: usize = 4095;
/// Bytes of a volume's id: the kubelet's have 68. It is part of a mount's source string and of file names.
pub const VOLUME_ID_BYTES: usize = 128;
/// Bytes of a Kubernetes label: a namespace, a volume's name.
pub const LABEL_BYTES: usize = 63;
/// Bytes of a Kubernetes subdomain: a pod's name, a service account's.
pub const SUBDOMAIN_BYTES: usize = 253;
/// Bytes of a pod's or a service account's uid: a UUID has 36.
pub const UID_BYTES: usize = 64;
/// Bytes of an SELinux label of a publish: the kubelet's have some 50.
pub const SELINUX_BYTES: usize = 255;
/// Bytes of one file, by default (`limits.bytesPerFile`). A kernel page-cache page each 4 KiB, charged to the plugin.
pub const BYTES_PER_FILE: u64 = 1 << 20;
/// Bytes of all files of one volume, by default (`limits.bytesPerVolume`).
pub const BYTES_PER_VOLUME: u64 = 4 << 20;
/// Files that `exec --from` reads: far above any volume, so that a wrong directory (`/`) ends.
pub const EXEC_FILES: usize = 4096;
/// Files of one volume, by default (`limits.filesPerVolume`). Each costs an inode in each of three generations.
pub const FILES_PER_VOLUME: u32 = 256;
/// Bytes of a spec's text. The API server's own limit for an object is 1.5 MiB; a spec is a page.
pub const SPEC_BYTES: usize = 256 << 10;
/// Texts of specs that are not read again while a volume serves them: more than a node's pods have among them.
pub const SPECS_KNOWN: usize = 64;
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
/// Bytes by which a file of the store may exceed its value, and of its header: some hundred recipients. Each costs every key of a reader a
/// multiplication on a curve.
pub const STORE_HEADER_BYTES: u64 = 64 << 10;
/// Bytes of an identity or recipients file, some hundred keys with comments, and of `store.json`, which has a line.
pub const KEY_FILE_BYTES: u64 = 64 << 10;
/// Bytes of a source's name in a spec: a label's.
pub const SOURCE_NAME_BYTES: usize = 63;
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
/// How long files stay whose secret is refused or deleted, where the spec does not say: long enough to see the Event and mend a mistake, short
/// enough that a right that was taken away is gone.
pub const DENIED_GRACE: Duration = Duration::from_secs(10 * 60);
/// `refreshInterval` when the spec has none.
pub const REFRESH_DEFAULT: Duration = Duration::from_secs(60);
/// One request to a store.
pub const FETCH_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of one request to the admin socket.
pub const ADMIN_REQUEST_BYTES: usize = 64 << 10;
/// Connections at once to the admin socket, and as many to the health checks: each has a client or two. Beyond, one more waits at the admin socket; at
/// the health checks, where anybody may connect, the oldest of the address that has most is closed.
pub const HTTP_CONNECTIONS: usize = 64;
/// Longest that a client may take for the head of a request.
pub const HTTP_HEADER: Duration = Duration::from_secs(10);
/// Longest that it may then take for the body, which nobody needs.
pub const HTTP_BODY: Duration = Duration::from_secs(10);
/// Longest that a connection to the health checks lasts: anybody on the network may open one.
pub const HTTP_CONNECTION: Duration = Duration::from_secs(20);
/// How long the node plugin's line at a start waits for the first look at the CSIDriver object. All is served meanwhile.
pub const NODE_HEARD: Duration = Duration::from_secs(2);
/// How long the node plugin, told to stop, goes on for the calls in flight. With [`STOP_GRACE`], [`NODE_CLOSE`] and [`AUDIT_FLUSH`] after it, 20 s;
/// Kubernetes kills after 30.
pub const NODE_DRAIN: Duration = Duration::from_secs(12);
/// How long it then waits for the last answers to reach the kubelet.
pub const NODE_CLOSE: Duration = Duration::from_secs(1);
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
/// Longest that a publish takes. The kubelet gives up after 120 s (`csiTimeout`); ours ends before, so that it hears our reason.
pub const PUBLISH_DEADLINE: Duration = Duration::from_secs(100);
/// Bytes of a volume's record: a spec's text, each byte of which may be six in JSON, and names.
pub const RECORD_BYTES: u64 = 2 << 20;
/// Records that a restart looks at. More volumes than a node has pods; beyond it their mounts are taken over without.
pub const RECORDS: usize = 10_000;
/// Volumes that a restart takes over at once: as many threads at the most, and a second for some thousand volumes.
pub const RESTORE_AT_ONCE: usize = 16;
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
/// Further warnings in that time, each because of another cause than the one before. With all volumes of a pod it stays below [`LOG_LINES`].
pub const WARN_CAUSES: u32 = 4;
/// Requests in flight to one backend (`requests.inFlight`): a hung one holds no more tasks and connections than this. A quarter of them is kept for
/// tenants who have none in flight; the rest is a full burst beside one tenant who hangs, or six who do.
pub const BACKEND_IN_FLIGHT: u32 = 64;
/// Requests in flight to one backend for one namespace: what hangs for it holds no more than this.
pub const TENANT_IN_FLIGHT: u32 = 8;
/// Requests that one backend gets in a second in the long run, unless its `requests.perSecond` says so: above the need of a full node, below what a store notices.
pub const BACKEND_PER_SECOND: u32 = 20;
/// Most that a backend's `requests` may say: what one node can send.
pub const BACKEND_REQUESTS_MAX: u32 = 10_000;
/// Requests that one backend gets at once after a rest (`requests.burst`): a node's worth of pods that start together.
pub const BACKEND_BURST: u32 = 40;
/// Requests in flight to a backend on this machine: each is a short look at files on a thread of its own, or waits for a
/// store that is just being changed. Far below the number of such threads.
pub const LOCAL_IN_FLIGHT: u32 = 64;
/// The same for one namespace: enough to keep every processor busy with such looks.
pub const LOCAL_TENANT_IN_FLIGHT: u32 = 16;
/// Longest that the first look at a backend on this machine waits for the watch that goes with it. A look before the watch
/// has begun would have to be repeated after.
pub const WATCH_HEAD_START: Duration = Duration::from_millis(100);
/// Bytes of one answer of a remote store: the largest volume by default, and as much again for its JSON.
pub const BACKEND_ANSWER_BYTES: usize = 8 << 20;
/// Bytes of a PEM file of a backend's TLS: a system's list of authorities has a quarter of it.
pub const BACKEND_PEM_BYTES: u64 = 1 << 20;
/// Bytes of a file that a login needs: a token, a password, a secret id.
pub const BACKEND_LOGIN_FILE_BYTES: u64 = 64 << 10;
/// How long finding the addresses of a store's name may take, unless the configuration says so (`timeouts.resolve`): two tries of the system's resolver.
pub const BACKEND_RESOLVE: Duration = Duration::from_secs(5);
/// Lookups of names at once for one backend. Each holds a thread, and with a dead DNS server for many seconds.
pub const BACKEND_RESOLVERS: usize = 2;
/// How long connecting may take (`timeouts.connect`): three SYNs.
pub const BACKEND_CONNECT: Duration = Duration::from_secs(5);
/// How long the TLS handshake may take (`timeouts.tls`).
pub const BACKEND_TLS: Duration = Duration::from_secs(5);
/// How long a store may take for the head of its answer, and again for the rest (`timeouts.answer`); a dynamic secret is made meanwhile.
pub const BACKEND_ANSWER: Duration = Duration::from_secs(20);
/// How long a connection that nobody uses is kept: longer than most refresh intervals, so that a quiet node needs no new handshakes.
pub const BACKEND_IDLE: Duration = Duration::from_secs(90);
/// Connections that are kept so for one backend.
pub const BACKEND_IDLE_CONNECTIONS: usize = 8;
/// Redirects that one request follows: from a standby to the active one, and once more while they change.
pub const BACKEND_REDIRECTS: usize = 2;
/// Logins that one backend keeps: more than a node has service accounts. Beyond it the one that ends first goes.
pub const LOGINS: usize = 1024;
/// How long a login is kept that nobody uses: longer than most refresh intervals. With a longer one each refresh logs in.
pub const LOGIN_IDLE: Duration = Duration::from_secs(900);
/// How often a token file is looked at: whoever keeps the token fresh writes it anew.
pub const LOGIN_FILE_LOOK: Duration = Duration::from_secs(60);
/// How long it is believed which kind of engine is mounted where in a store.
pub const MOUNTS_KNOWN_FOR: Duration = Duration::from_secs(600);
/// Mounts of a store that are known at once, and paths that a backend remembers something of.
pub const MOUNTS_KNOWN: usize = 1024;
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
/// Entries of `volume_context`, and of `secrets`, in one publish: the kubelet adds ten, a Secret of a pod has a few.
pub const CSI_ENTRIES: usize = 128;
/// Bytes of one of their keys: the longest that Kubernetes has, a prefix and a name.
pub const CSI_KEY_BYTES: usize = 317;
/// Bytes of a value of `volume_context` other than the spec and the tokens: names and uids.
pub const CSI_VALUE_BYTES: usize = 4 << 10;
/// Bytes of all values of `secrets`, tokens not counted: a Secret's own limit.
pub const CSI_SECRET_BYTES: usize = 1 << 20;
/// Service account tokens of one publish: one for each audience that a backend names.
pub const TOKENS: usize = 32;
/// Bytes of one token. One of Kubernetes has about 1 KiB; longer names and audiences make it a few.
pub const TOKEN_BYTES: usize = 16 << 10;
/// Bytes of all tokens of one publish, as JSON.
pub const TOKENS_BYTES: usize = 256 << 10;
/// Audit records that wait to be written, each up to some KiB: a node's worth of pods that start together.
pub const AUDIT_WAITING: usize = 1024;
/// Longest pause before an audit log that could not be written is tried again, with `onFailure: deny`.
pub const AUDIT_RETRY: Duration = Duration::from_secs(1);
/// How long a delivery waits, with `onFailure: deny`, for the audit records before it to be written; then it is refused, and so is every other
/// until one is written. Short against the 120 s of a kubelet, long against a busy disk.
pub const AUDIT_LATE: Duration = Duration::from_secs(1);
/// Longest that the end of the program waits for the last audit records: well within a pod's 30 s to stop.
pub const AUDIT_FLUSH: Duration = Duration::from_secs(2);
/// Longest that a connection to the API server takes to come up.
pub const KUBE_CONNECT: Duration = Duration::from_secs(5);
/// Longest that one call of the API server takes. Its own limit for a request is 60 s; nobody here waits that long.
pub const KUBE_CALL: Duration = Duration::from_secs(10);
/// Bytes of one answer of the API server, a whole watch among them: above the 1.5 MiB that it takes for an object itself.
pub const KUBE_ANSWER_BYTES: usize = 4 << 20;
/// How long one watch lasts, so that a connection that died silently is noticed; the client library allows 294 s.
pub const KUBE_WATCH: Duration = Duration::from_secs(290);
/// How much shorter it may be, by chance: the watches of a thousand nodes must not end together.
pub const KUBE_WATCH_SPREAD: Duration = Duration::from_secs(60);
/// First wait after the API server could not be asked, doubled with each failure, half to the whole of it by chance.
pub const KUBE_RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest such wait: how late we hear that the API server is back.
pub const KUBE_RETRY_MAX: Duration = Duration::from_secs(30);
/// Kubernetes Events that may wait to be written. More come only when many volumes fail at once; then the first say it.
pub const EVENTS_WAITING: usize = 256;
/// Time in which one Event of a pod and reason is written; those between are counted. A volume that fails does so each minute.
pub const EVENT_REPEAT: Duration = Duration::from_secs(600);
/// Time between two Events of a node in the long run.
pub const EVENT_INTERVAL: Duration = Duration::from_secs(1);
/// Events that a node may write at once after a rest: as many as client-go's own recorder allows for one object.
pub const EVENT_BURST: u32 = 25;
/// Bytes of an Event's note: the API server's own limit.
pub const EVENT_NOTE_BYTES: usize = 1024;
/// How long the text of a changed configuration has to stay the same before it is read: somebody may still be writing it.
pub const RELOAD_SETTLE: Duration = Duration::from_millis(100);
/// How often the configuration is looked at where changes cannot be watched (no inotify left, its directory is gone).
pub const RELOAD_POLL: Duration = Duration::from_secs(30);
/// Bytes of one CSI message: gRPC's own default, above a Secret (1 MiB), a spec and all tokens together.
pub const CSI_MESSAGE_BYTES: usize = 4 << 20;
/// Bytes of an error's text for the kubelet: it becomes an event, and an event's message has 1 KiB.
pub const CSI_STATUS_BYTES: usize = 800;
/// Connections to the CSI socket at once; more wait. The kubelet makes one for each call, and a backend that hangs holds those of its
/// volumes: so far above the volumes of a node. Each may take some hundred KiB in a development build.
pub const CSI_CONNECTIONS: usize = 1024;
/// Calls at once on one connection. A kubelet has one. Each takes some KiB also while it says nothing.
pub const CSI_STREAMS: u32 = 16;
/// Calls at once on all connections beyond the first on each, which has a seat of its own: so no connection takes the seat of a kubelet's
/// call. One more is told to try again.
pub const CSI_CALLS: usize = 1024;
/// Bytes of a message that counts as short: above every usual publish, with its tokens and a spec of some pages. And of all short messages
/// that are being received on one connection: others never wait for them.
pub const CSI_SHORT_BYTES: usize = 64 << 10;
/// Bytes of all other messages that are being received, one on a connection: two of the longest. Decoded, a hostile one takes twenty times its length.
pub const CSI_LONG_IN_FLIGHT: usize = 2 * CSI_MESSAGE_BYTES;
/// Longest that a call's message may take to come, once there is room for it: it is sent by a process on this machine, which may have to
/// wait for a processor.
pub const CSI_MESSAGE_TIME: Duration = Duration::from_secs(30);
/// Longest that a call may wait for room for its message: a kubelet waits for two minutes.
pub const CSI_ROOM_TIME: Duration = Duration::from_secs(60);
/// Bytes that a client may send on one connection before we have read them: what HTTP/2 begins with.
pub const CSI_WINDOW_BYTES: u32 = 65_535;
/// Bytes of the headers of one call. A kubelet's are some hundred.
pub const CSI_HEADER_BYTES: u32 = 16 << 10;
/// How long a connection to the CSI socket may last without a first call.
pub const CSI_FIRST_CALL: Duration = Duration::from_secs(10);
/// How long it may last without another one: probes come more often.
pub const CSI_IDLE: Duration = Duration::from_secs(600);
/// How long a client has to read the last answer before its connection is dropped.
pub const CSI_LINGER: Duration = Duration::from_secs(1);
/// Pause after an `accept` that failed: no descriptors are left, and somebody else must close some.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Warnings about failed CSI calls in a minute. A pod whose volume fails is retried for ever, and there may be hundreds.
pub const CSI_WARNINGS: u32 = 60;
/// How many of them may be about pods that had one in that minute: the rest is for pods that fail for the first time.
pub const CSI_WARNINGS_REPEATED: u32 = 30;
/// How many of them one pod may have. The kubelet tries a volume that fails again at most every half second, then more rarely.
pub const CSI_WARNINGS_OF_ONE: u32 = 6;
/// Warnings and errors in a minute from one place in the code, above what any place is meant to have; further ones are counted.
pub const LOG_LINES: u32 = 100;
/// Bytes of a node's id (CSI specification).
pub const NODE_ID_BYTES: usize = 256;
