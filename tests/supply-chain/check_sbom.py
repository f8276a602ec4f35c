"""Checks a bill of materials against CycloneDX's schema, Cargo.lock, and what cargo says it builds.

    check_sbom.py BOM TARGET
"""

import json
import subprocess
import sys
import tomllib
import urllib.parse

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def tree(target, edges):
    """The lines of `cargo tree`, each once, without the program's own."""
    command = ["cargo", "tree", "--locked", "-e", edges, "--target", target, "--prefix", "none", "-f", "{p}"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return {line.removesuffix(" (*)").removesuffix(" (proc-macro)") for line in lines[1:] if line}


def problems(text, target):
    invalid = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if invalid is not None:
        yield f"not CycloneDX 1.6: {str(invalid).splitlines()[0]}"
        return
    bom = json.loads(text)
    components = bom["components"]

    with open("Cargo.lock", "rb") as lock_file:
        locked = {(p["name"], p["version"]): p for p in tomllib.load(lock_file)["package"]}
    for one in components:
        name, version = one["name"], one["version"]
        lock = locked.get((name, version), {})
        if lock.get("source") != CRATES_IO:
            yield f"{name} {version}: not in Cargo.lock as of crates.io"
        elif one["hashes"] != [{"alg": "SHA-256", "content": lock["checksum"]}]:
            yield f"{name} {version}: not the checksum of Cargo.lock"
        if one["purl"] != f"pkg:cargo/{name}@{version.replace('+', '%2B')}" or one["bom-ref"] != one["purl"]:
            yield f"{name} {version}: the package URL is {one['purl']}"
        if not one["licenses"][0]["expression"]:
            yield f"{name} {version}: no licence"
        for link in one.get("externalReferences", []):
            if urllib.parse.urlsplit(link["url"]).scheme not in ("https", "http"):
                yield f"{name} {version}: not a URL: {link['url']}"

    def listed(*scopes):
        return {f"{one['name']} v{one['version']}" for one in components if one["scope"] in scopes}

    for what, edges, scopes in [
        ("linked into the program", "normal,no-proc-macro", ["required"]),
        ("compiled for it", "normal", ["required", "excluded"]),
    ]:
        have, want = listed(*scopes), tree(target, edges)
        print(f"{target}: {len(have)} crates {what}")
        if have != want:
            yield f"{what}: too many {sorted(have - want)}, missing {sorted(want - have)}"
    if len(components) != len(listed("required", "excluded")):
        yield "a crate is listed twice"

    edges = {one["ref"]: one["dependsOn"] for one in bom["dependencies"]}
    reached, todo = set(), [bom["metadata"]["component"]["bom-ref"]]
    while todo:
        ref = todo.pop()
        if ref not in reached:
            reached.add(ref)
            todo += edges.get(ref, [])
    if reached != edges.keys() or len(reached) != 1 + len(components):
        yield f"{len(reached)} of {1 + len(components)} can be reached from the program"


with open(sys.argv[1], encoding="utf-8") as bom_file:
    found = list(problems(bom_file.read(), sys.argv[2]))
print("\n".join(found))
sys.exit(1 if found else 0)
