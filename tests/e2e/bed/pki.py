"""The bed's certificates: one CA, and a key pair for each who speaks. Made anew for each bed, good for two days."""

import json
import os
import subprocess

SERVER = "https://127.0.0.1:443"
# name -> (subject, other names); each may serve and be a client
CERTIFICATES = {
    "apiserver": ("/CN=kube-apiserver", "IP:127.0.0.1,IP:10.201.0.1,DNS:localhost,DNS:kubernetes.default.svc"),
    "admin": ("/O=system:masters/CN=admin", None),
    "kubelet": ("/O=system:nodes/CN=system:node:n1", "IP:10.200.0.1,DNS:n1"),
    "controller-manager": ("/CN=system:kube-controller-manager", None),
    "scheduler": ("/CN=system:kube-scheduler", None),
}
EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]


def openssl(folder, *arguments):
    return subprocess.Popen(["openssl", *arguments], cwd=folder, stderr=subprocess.PIPE, text=True)


def finish(calls):
    for call in calls:
        _, errors = call.communicate()
        if call.returncode != 0:
            raise RuntimeError(f"openssl: {errors}")


def make(folder):
    os.makedirs(folder, mode=0o700)
    with open(f"{folder}/openssl.cnf", "w") as file:  # without it openssl adds its own extensions
        file.write("[req]\ndistinguished_name = dn\n[dn]\n")
    request = ["req", "-config", "openssl.cnf", "-x509", "-days", "2", *EC]
    # Service accounts sign with RSA, as in most clusters: a store that checks the tokens sees RS256.
    accounts = openssl(folder, "genrsa", "-out", "sa.key", "2048")
    finish([openssl(folder, *request, "-subj", "/CN=bed-ca", "-addext", "basicConstraints=critical,CA:TRUE",
                    "-addext", "keyUsage=critical,keyCertSign,digitalSignature", "-keyout", "ca.key", "-out", "ca.crt")])
    calls = [accounts]
    for name, (subject, names) in CERTIFICATES.items():
        extensions = ["-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", "basicConstraints=CA:FALSE"]
        if names:
            extensions += ["-addext", f"subjectAltName={names}"]
        calls.append(openssl(folder, *request, "-CA", "ca.crt", "-CAkey", "ca.key", "-subj", subject, *extensions,
                             "-keyout", f"{name}.key", "-out", f"{name}.crt"))
    finish(calls)
    finish([openssl(folder, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")])
    for name in CERTIFICATES:
        kubeconfig(folder, name)


def kubeconfig(folder, name):
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": {"server": SERVER, "certificate-authority": f"{folder}/ca.crt"}}],
        "users": [{"name": name, "user": {"client-certificate": f"{folder}/{name}.crt", "client-key": f"{folder}/{name}.key"}}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": name}}],
        "current-context": "bed",
    }
    with open(f"{folder}/{name}.kubeconfig", "w") as file:
        json.dump(config, file, indent=1)
