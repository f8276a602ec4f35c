"""Puts what must not be there into a crate graph, so that the checks are seen to find each of it.

    plant.py < metadata.json > planted.json
"""

import copy
import json
import sys

CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def program(graph):
    return next(p for p in graph["packages"] if p["id"] == graph["resolve"]["root"])


def node(graph, package_id):
    return next(n for n in graph["resolve"]["nodes"] if n["id"] == package_id)


def add(graph, name, version, source=CRATES_IO, licence="MIT"):
    """A crate without dependencies, right below the program."""
    features = ["alloc", "default", "std"]
    pattern = next(p for p in graph["packages"] if p["name"] == "cfg-if")
    package = copy.deepcopy(pattern)
    package |= {"name": name, "version": version, "source": source, "license": licence, "license_file": None}
    package |= {"id": f"{source}#{name}@{version}", "dependencies": []}
    package |= {"features": {feature: [] for feature in features}}
    package |= {"manifest_path": "/nowhere/Cargo.toml", "targets": []}
    root = program(graph)
    wants = copy.deepcopy(next(d for d in root["dependencies"] if d["kind"] is None))
    wants |= {"name": name, "req": f"={version}", "source": source, "features": [], "target": None, "rename": None}
    root["dependencies"].append(wants)
    graph["packages"].append(package)
    graph["resolve"]["nodes"].append({"id": package["id"], "dependencies": [], "deps": [], "features": features})
    edge = {"name": name.replace("-", "_"), "pkg": package["id"], "dep_kinds": [{"kind": None, "target": None}]}
    below = node(graph, root["id"])
    below["deps"].append(edge)
    below["dependencies"].append(package["id"])


def wildcard(graph):
    next(d for d in program(graph)["dependencies"] if d["name"] == "serde_json")["req"] = "*"


def ring(graph):
    """As it happens: a dependency asks another one for its feature `ring`."""
    add(graph, "ring", "0.17.14")
    root = program(graph)
    root["dependencies"].pop()
    below = node(graph, root["id"])
    edge, package_id = below["deps"].pop(), below["dependencies"].pop()
    next(d for d in root["dependencies"] if d["name"] == "tokio-rustls")["features"].append("ring")
    for name in ["tokio-rustls", "rustls", "rustls-webpki"]:
        asked = node(graph, next(p["id"] for p in graph["packages"] if p["name"] == name))
        asked["features"] = sorted([*asked["features"], "ring"])
        if name != "tokio-rustls":
            asked["deps"].append(edge)
            asked["dependencies"].append(package_id)


loaded = json.load(sys.stdin)
ring(loaded)
wildcard(loaded)
add(loaded, "openssl", "0.10.75")
add(loaded, "openssl-sys", "0.9.111")
add(loaded, "native-tls", "0.2.14")
add(loaded, "rustls", "0.22.4")
add(loaded, "planted-copyleft", "1.0.0", licence="GPL-3.0-only")
add(loaded, "planted-bare", "1.0.0", licence=None)
add(loaded, "planted-git", "1.0.0", "git+https://example.org/planted?rev=1#1")
add(loaded, "planted-registry", "1.0.0", "registry+https://example.org/index")
json.dump(loaded, sys.stdout)
