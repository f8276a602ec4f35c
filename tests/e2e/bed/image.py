"""Images as docker-archive tars, without an image builder: one layer, one config, one manifest."""

import hashlib
import io
import json
import os
import subprocess
import tarfile

BUSYBOX = "localhost/busybox:1"
PAUSE = "localhost/pause:1"
PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"


class Layer:
    """The file system of an image. Times are zero, so that equal contents give an equal image."""

    def __init__(self):
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.bytes, mode="w")

    def _add(self, name, kind, mode, data=b"", target=""):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(data), target
        self.tar.addfile(entry, io.BytesIO(data))

    def directory(self, name, mode=0o755):
        self._add(name, tarfile.DIRTYPE, mode)

    def file(self, name, data, mode=0o644):
        self._add(name, tarfile.REGTYPE, mode, data)

    def link(self, name, target):
        self._add(name, tarfile.SYMTYPE, 0o777, target=target)

    def done(self):
        self.tar.close()
        return self.bytes.getvalue()


def write(path, tag, layer, command):
    """An archive at `path`: what `ctr images import` reads."""
    data = layer.done()
    digest = hashlib.sha256(data).hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Env": [PATH], "Entrypoint": command},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("layer.tar", data),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def contents(path):
    with open(path, "rb") as file:
        return file.read()


def busybox(path, tag, program, command):
    """busybox with a link for each of its commands; a pod's own `command` replaces ours."""
    layer = Layer()
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
        layer.directory(name, 0o1777 if name == "tmp" else 0o755)
    layer.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
    layer.file("etc/group", b"root:x:0:\n")
    layer.file("bin/busybox", contents(program), 0o755)
    applets = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in applets:
        if name != "busybox":
            layer.link(f"bin/{name}", "busybox")
    write(path, tag, layer, command)


def static(path, tag, program, arguments=()):
    """FROM scratch: one static program, and nothing beside it."""
    name = os.path.basename(program)
    layer = Layer()
    layer.file(name, contents(program), 0o755)
    write(path, tag, layer, [f"/{name}", *arguments])
