"""A session with three nodes, for the picture of the dashboard. See `picture`, which starts it in a mount namespace of its own."""

import argparse
import hashlib
import json
import os
import pathlib
import random
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid

import api_pb2
import api_pb2_grpc
import csi_pb2
import csi_pb2_grpc
import grpc

import draw

SCRAPE_SECONDS = 2
REPUBLISH_SECONDS = 15  # a kubelet's are 60 to 90
AUTHORITY = [("grpc.default_authority", "localhost")]  # as a kubelet says it; grpcio would send the path, which is none
SECRETS = [f"{team}/{name}" for team in ("payments", "billing", "web") for name in ("db", "api-key", "tls", "queue")]


class Node:
    """One `secretfs node` with a kubelet's directories of its own."""

    def __init__(self, name, place, binary, stores):
        self.name, self.binary, self.place = name, binary, place / name
        self.kubelet = self.place / "kubelet"
        self.stores = {}
        self.volumes = {}
        for sub in ("kubelet/pods", "kubelet/plugins_registry", "run"):
            (self.place / sub).mkdir(parents=True)
        for store, path in stores.items():
            self.stores[store] = self.place / f"{store}-store"
            self.stores[store].symlink_to(path)
        for command in (["--bind", self.kubelet, self.kubelet], ["--make-private", self.kubelet], ["--make-shared", self.kubelet]):
            subprocess.run(["mount", *command], check=True)
        self.configure()
        self.log = open(self.place / "log", "w", encoding="utf-8")
        command = [binary, "node", "--config", self.place / "node.yaml"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        if not select.select([self.process.stdout], [], [], 30)[0]:
            sys.exit(f"{name} did not get ready")
        ready = self.process.stdout.readline()
        self.http = re.search(r"http ([0-9.]+:\d+)", ready)[1]
        self.channel = grpc.insecure_channel(f"unix:{self.place}/csi.sock", AUTHORITY)
        self.calls = csi_pb2_grpc.NodeStub(self.channel)
        self.register()

    def configure(self, policy=("payments", "billing", "web"), more=""):
        lines = "".join(f'  - {{namespaces: [{team}], serviceAccounts: ["*"], allow: ["vault:{team}/**", "legacy:{team}/**"]}}\n' for team in policy)
        backends = "".join(f"  {name}: {{kind: store, path: {path}, identity: {self.place.parent}/identity.age}}\n" for name, path in self.stores.items())
        text = (
            f"node: {self.name}\nendpoint: unix://{self.place}/csi.sock\nkubeletDir: {self.kubelet}\nruntimeDir: {self.place}/run\n"
            f"kubernetes: off\nhttp: 127.0.0.1:0\naudit: {{file: {self.place}/audit}}\nlimits: {{bytesPerNode: 2Mi, bytesPerNamespace: 1Mi, bytesPerVolume: 64Ki, bytesPerFile: 16Ki}}\n"
            f"backends:\n{backends}policy:\n{lines}{more}"
        )
        (self.place / "node.yaml.new").write_text(text, "utf-8")
        (self.place / "node.yaml.new").rename(self.place / "node.yaml")

    def register(self):
        """As the kubelet does it."""
        found = list((self.kubelet / "plugins_registry").glob("*.sock"))
        with grpc.insecure_channel(f"unix:{found[0]}", AUTHORITY) as channel:
            stub = api_pb2_grpc.RegistrationStub(channel)
            stub.GetInfo(api_pb2.InfoRequest())
            stub.NotifyRegistrationStatus(api_pb2.RegistrationStatus(plugin_registered=True))

    def publish(self, namespace, pod, spec):
        """Publishes, or publishes again; returns gRPC's code."""
        uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.name}/{namespace}/{pod}"))
        parent = self.kubelet / "pods" / uid / "volumes/kubernetes.io~csi/secrets"
        parent.mkdir(parents=True, exist_ok=True)
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id="csi-" + hashlib.sha256(f"{uid}secrets".encode()).hexdigest(),
            target_path=f"{parent}/mount",
            readonly=True,
            volume_capability={"mount": {}, "access_mode": {"mode": 1}},
            volume_context={
                "spec": spec,
                "csi.storage.k8s.io/ephemeral": "true",
                "csi.storage.k8s.io/pod.name": pod,
                "csi.storage.k8s.io/pod.namespace": namespace,
                "csi.storage.k8s.io/pod.uid": uid,
                "csi.storage.k8s.io/serviceAccount.name": "default",
            },
        )
        try:
            self.calls.NodePublishVolume(request, timeout=120)
        except grpc.RpcError as error:
            return error
        self.volumes[namespace, pod] = (request.volume_id, request.target_path, spec, time.monotonic())
        return None

    def unpublish(self, namespace, pod):
        volume_id, target, _, _ = self.volumes.pop((namespace, pod))
        self.calls.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=target), timeout=120)

    def republish(self):
        for (namespace, pod), (_, _, spec, at) in list(self.volumes.items()):
            if time.monotonic() - at > REPUBLISH_SECONDS:
                self.publish(namespace, pod, spec)


def spec(backend, team, count):
    names = [name for name in SECRETS if name.startswith(f"{team}/")][:count]
    files = "".join(f'  - {{path: "{name}", from: "{backend}:{name}"}}\n' for name in names)
    return f"refreshInterval: 5s\nfiles:\n{files}"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Prometheus:
    def __init__(self, place, nodes, rules):
        self.address = f"http://127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "5s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{
                "job_name": "secretfs",
                "static_configs": [{"targets": [node.http], "labels": {"instance": node.name}} for node in nodes],
            }],
        }
        (place / "prometheus.yml").write_text(json.dumps(config), "utf-8")
        command = ["prometheus", f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data"]
        command.append(f"--web.listen-address={self.address.removeprefix('http://')}")
        self.log = open(place / "prometheus.log", "w", encoding="utf-8")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/-/ready") as answer:
                    answer.read()
                return
            except OSError:
                if time.monotonic() > deadline:
                    sys.exit("Prometheus did not get ready")
                time.sleep(0.1)


class Session:
    """What happens when, as parts of the whole time."""

    def __init__(self, nodes, stores, put, seconds):
        self.nodes, self.stores, self.put = nodes, stores, put
        self.begin, self.seconds = time.monotonic(), seconds
        self.random = random.Random(5)
        self.pods = 0
        self.done = set()

    def at(self):
        return (time.monotonic() - self.begin) / self.seconds

    def once(self, name, since):
        """True the first time after `since`."""
        if name in self.done or self.at() < since:
            return False
        self.done.add(name)
        print(f"{self.at():4.0%} {name}", flush=True)
        return True

    def new_pod(self, node):
        team = self.random.choice(["payments", "payments", "billing", "web"])
        backend = "legacy" if self.random.random() < 0.5 else "vault"
        self.pods += 1
        node.publish(team, f"{team}-{self.pods}", spec(backend, team, self.random.randint(1, 4)))

    def step(self):
        first, second, third = self.nodes
        at = self.at()
        for node, most in zip(self.nodes, (12, 9, 6)):
            node.republish()
            if len(node.volumes) < most and at < 0.25 and self.random.random() < 0.5:
                self.new_pod(node)
            elif at >= 0.25 and node.volumes and self.random.random() < 0.08:
                node.unpublish(*self.random.choice(list(node.volumes)))
                self.new_pod(node)
        if self.random.random() < 0.35:
            self.put(self.random.choice(list(self.stores)), self.random.choice(SECRETS))

        legacy = second.stores["legacy"]
        if self.once("node-2 loses the store `legacy`", 0.40):
            legacy.unlink()
        if self.once("it is back", 0.62):
            legacy.symlink_to(self.stores["legacy"])
        if self.once("node-2 loses it again", 0.90):
            legacy.unlink()
        if self.once("node-3: billing may no longer read", 0.52):
            third.configure(policy=("payments", "web"))
        if self.once("it may again", 0.80):
            third.configure()
        if self.once("node-1: a configuration that is refused", 0.66):
            first.configure(more="polcy: []\n")
        if self.once("mended", 0.78):
            first.configure()
        if 0.30 < at < 0.45 and self.random.random() < 0.3:
            first.publish("web", "typo", "files: [{path: a, form: vault:web/db}]")
        if 0.70 < at < 0.85 and self.random.random() < 0.3:
            first.publish("web", "nosy", spec("vault", "payments", 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--binary", "--dashboard", "--rules", "--output"):
        parser.add_argument(name, type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    args = parser.parse_args()
    place = pathlib.Path(tempfile.mkdtemp())
    started = []
    try:
        keys = ["--identity", place / "identity.age"]
        stores = {name: place / f"{name}-data" for name in ("vault", "legacy")}
        for at, path in enumerate(stores.values()):
            recipient = []
            if at > 0:
                public = re.search(r"age1[0-9a-z]+", (place / "identity.age").read_text("utf-8"))[0]
                recipient = ["--recipient", public]
            init = [args.binary, "store", "init", "--store", path, *(recipient or keys)]
            subprocess.run(init, check=True, stdout=subprocess.DEVNULL)

        def put(store, name):
            command = [args.binary, "store", "put", "--store", stores[store], *keys, name]
            value = os.urandom(random.randint(10, 1500)).hex()
            subprocess.run(command, input=value, text=True, check=True, stdout=subprocess.DEVNULL)

        for store in stores:
            for name in SECRETS:
                put(store, name)
        nodes = []
        for name in ("node-1", "node-2", "node-3"):
            nodes.append(Node(name, place, args.binary, stores))
            started.append(nodes[-1].process)
        prometheus = Prometheus(place, nodes, args.rules)
        started.append(prometheus.process)
        time.sleep(3 * SCRAPE_SECONDS)
        session = Session(nodes, stores, put, args.seconds)
        begin = time.time()
        while session.at() < 1:
            session.step()
            time.sleep(0.7)
        draw.dashboard(args.dashboard, prometheus.address, begin, time.time(), args.output)
    finally:
        for process in started:
            process.terminate()
            process.wait()
        for node in ("node-1", "node-2", "node-3"):
            subprocess.run(["umount", "--lazy", "--recursive", place / node / "kubelet"], check=False, stderr=subprocess.DEVNULL)
        if os.environ.get("KEEP"):
            print(place)
        else:
            shutil.rmtree(place)


main()
