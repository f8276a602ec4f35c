"""What runs in the bed, with which flags and files. `{bed}`, `{kube}` and `{debian}` are the bed's and the programs' directories.

Two choices are the test's: `syncFrequency` (10 s against 1 min) sets how often the kubelet publishes a volume again, and
`volumeStatsAggPeriod` (15 s against 1 min) how often it asks for its size.
"""

import json

API = "https://kubernetes.default.svc.cluster.local"
KUBECONFIG = "--kubeconfig={bed}/pki/%s.kubeconfig"

COMMANDS = {
    "etcd": [
        "{debian}/usr/bin/etcd",
        "--data-dir={bed}/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ],
    "containerd": ["{debian}/usr/bin/containerd", "--config={bed}/config/containerd.toml"],
    "kube-apiserver": [
        "{kube}/kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",  # of the bed's own network: pods reach it as the Service `kubernetes`, without kube-proxy
        "--secure-port=443",
        "--advertise-address=10.200.0.1",
        "--tls-cert-file={bed}/pki/apiserver.crt",
        "--tls-private-key-file={bed}/pki/apiserver.key",
        "--client-ca-file={bed}/pki/ca.crt",
        "--kubelet-certificate-authority={bed}/pki/ca.crt",
        "--kubelet-client-certificate={bed}/pki/admin.crt",
        "--kubelet-client-key={bed}/pki/admin.key",
        "--kubelet-preferred-address-types=InternalIP",  # there is no DNS
        f"--service-account-issuer={API}",
        f"--api-audiences={API}",
        "--service-account-signing-key-file={bed}/pki/sa.key",
        "--service-account-key-file={bed}/pki/sa.pub",
        "--service-cluster-ip-range=10.201.0.0/24",
        "--endpoint-reconciler-type=none",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--anonymous-auth=false",
        "--allow-privileged=true",
        "--profiling=false",
        "--audit-policy-file={bed}/config/audit.json",
        "--audit-log-path={bed}/log/audit.log",
    ],
    "kube-controller-manager": [
        "{kube}/kube-controller-manager",
        KUBECONFIG % "controller-manager",
        "--leader-elect=false",
        "--secure-port=0",
        "--root-ca-file={bed}/pki/ca.crt",
        "--service-account-private-key-file={bed}/pki/sa.key",
        "--use-service-account-credentials=true",  # its own user may not do all that its controllers do
        "--node-monitor-period=1s",
        "--kube-api-qps=1000",  # at the default of 20 the start of forty controllers waits for seconds
        "--kube-api-burst=1000",
    ],
    "kube-scheduler": ["{kube}/kube-scheduler", KUBECONFIG % "scheduler", "--leader-elect=false", "--secure-port=0"],
    "kubelet": [
        "{kube}/kubelet",
        "--config={bed}/config/kubelet.json",
        KUBECONFIG % "kubelet",
        "--root-dir=/var/lib/kubelet",
        "--cert-dir={bed}/pki",
        "--hostname-override=n1",
        "--node-ip=10.200.0.1",
        "-v=2",
    ],
}

KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "address": "10.200.0.1",
    "healthzBindAddress": "127.0.0.1",
    "readOnlyPort": 0,
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": "{bed}/pki/ca.crt"},
    },
    "authorization": {"mode": "Webhook"},
    "tlsCertFile": "{bed}/pki/kubelet.crt",
    "tlsPrivateKeyFile": "{bed}/pki/kubelet.key",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "cgroupDriver": "cgroupfs",
    "failCgroupV1": False,
    "failSwapOn": False,
    "resolvConf": "",
    "podLogsDir": "{bed}/pod-logs",
    "volumePluginDir": "{bed}/volume-plugins",
    "volumeStatsAggPeriod": "15s",
    "syncFrequency": "10s",
    "nodeStatusUpdateFrequency": "5s",
    "evictionHard": {"memory.available": "50Mi"},
    "imageGCHighThresholdPercent": 100,  # a full disk of the machine must not take our imported images away
    "enforceNodeAllocatable": ["pods"],
    "featureGates": {"KubeletCrashLoopBackOffMax": True},
    "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},  # who is killed by a test comes back at once
    "maxPods": 250,  # as many as the pods' network has addresses
}

# Only writes are counted; without `RequestReceived` each has one line.
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
}

NETWORK = {
    "cniVersion": "0.4.0",
    "name": "bed",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "isDefaultGateway": True,  # the way to the API server's Service address; none leads out of the bed
            "ipam": {"type": "host-local", "subnet": "10.202.0.0/24"},
        }
    ],
}

# Without `restrict_oom_score_adj` runc dies where CAP_SYS_RESOURCE is missing.
CONTAINERD = """version = 2
root = "{bed}/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{bed}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
stream_server_address = "127.0.0.1"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{debian}/usr/lib/cni"
conf_dir = "{bed}/config/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{debian}/usr/sbin/runc"
SystemdCgroup = false
"""

FILES = {
    "kubelet.json": json.dumps(KUBELET, indent=1),
    "audit.json": json.dumps(AUDIT, indent=1),
    "cni/10-bed.conflist": json.dumps(NETWORK, indent=1),
    "containerd.toml": CONTAINERD,
}


def filled(text, places):
    for name, value in places.items():
        text = text.replace("{%s}" % name, value)
    return text
