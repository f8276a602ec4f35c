"""A volume that rotates: the real one (`secretfs mount` on an embedded store), or a plain copy of its swap.

Both have `start()`, `rotate(content)`, `stop()`, `target`, and `hearing_s`, how long to wait for a watcher that does not hear.
A content is {file name: text}.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import threading
import time

SPEC = """\
sources:
  watched: store:watched
files:
"""
PATIENCE_S = 30
LIBC = ctypes.CDLL(None, use_errno=True)


class Problem(Exception):
    """The volume did not do what it must: nothing can be measured."""


def die_with_parent():
    """For preexec_fn: what we start does not outlive us."""
    LIBC.prctl(1, signal.SIGKILL)


def is_mounted(path):
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        return any(line.split()[4] == path for line in mounts)


class RealVolume:
    """`secretfs mount SPEC TARGET`, on a store that it watches."""

    hearing_s = 10

    def __init__(self, binary, base):
        self.binary, self.base, self.target = binary, base, f"{base}/target"
        os.makedirs(f"{base}/run", mode=0o700)
        os.mkdir(self.target)
        self.environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": base,
            "XDG_RUNTIME_DIR": f"{base}/run",
            "SECRETFS_STORE": f"{base}/store",
            "SECRETFS_IDENTITY": f"{base}/identity.age",
        }
        self.log = open(f"{base}/mount.log", "w+", encoding="utf-8")
        self.process = None

    def run(self, *arguments, text=None):
        done = subprocess.run(
            [self.binary, *arguments],
            input=text,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode != 0:
            raise Problem(f"secretfs {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")

    def start(self, content):
        self.run("store", "init")
        self.rotate(content)
        spec = f"{self.base}/spec.yaml"
        with open(spec, "w", encoding="utf-8") as out:
            out.write(SPEC)
            for name in content:
                out.write(f"  - {{path: {name}, from: 'watched#{name}'}}\n")
        self.process = subprocess.Popen(
            [self.binary, "mount", spec, self.target],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            preexec_fn=die_with_parent,
        )
        timer = threading.Timer(PATIENCE_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            raise Problem(f"secretfs mount did not get ready:\n{self.said()}")
        return line.strip()

    def rotate(self, content):
        self.run("store", "put", "watched", text=json.dumps(content))

    def stop(self):
        if self.process is None:
            return
        if self.process.poll() is not None:
            raise Problem(f"secretfs mount ended: {self.process.returncode}\n{self.said()}")
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as hung:
            self.process.kill()
            raise Problem(f"secretfs mount does not stop:\n{self.said()}") from hung
        if status != 0 or is_mounted(self.target):
            raise Problem(f"secretfs mount left with {status}, mounted: {is_mounted(self.target)}\n{self.said()}")

    def abandon(self):
        """After a problem: whatever state it is in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        if is_mounted(self.target):
            subprocess.run(["umount", "-l", self.target], check=False)

    def said(self):
        self.log.seek(0)
        return self.log.read()[-4000:]


class SimulatedVolume:
    """The swap as docs/SEMANTICS.md describes it, on a tmpfs. Only to work on the watchers: no test of secretfs."""

    KEEP_S = 10
    hearing_s = 10
    announces = True  # steps 4 and 5

    def __init__(self, _binary, base):
        self.target, self.count, self.old = f"{base}/target", 0, []
        os.mkdir(self.target)

    def start(self, content):
        subprocess.run(["mount", "-t", "tmpfs", "simulated", self.target], check=True)
        os.symlink(self.generation(content), f"{self.target}/..data")
        for name in content:
            os.symlink(f"..data/{name}", f"{self.target}/{name}")
        return "simulated"

    def generation(self, content):
        self.count += 1
        directory = f"..2026_01_01_00_00_00.{self.count:09d}"
        os.mkdir(f"{self.target}/{directory}")
        for name, text in content.items():
            self.write(f"{directory}/{name}", text)
        return directory

    def write(self, path, text):
        with open(f"{self.target}/{path}", "w", encoding="utf-8") as out:
            out.write(text)

    def rotate(self, content):
        old = os.readlink(f"{self.target}/..data")
        new = self.generation(content)  # 1
        before = {}
        for name in content:  # 2: copies of the old contents beside the old files
            with open(f"{self.target}/{old}/{name}", encoding="utf-8") as source:
                before[name] = source.read()
            self.write(f"{old}/..{name}", before[name])
        os.symlink(new, f"{self.target}/..data_tmp")
        os.rename(f"{self.target}/..data_tmp", f"{self.target}/..data")  # 3: the commit
        for name, text in content.items():  # 4: the links of changed files
            if before[name] != text and self.announces:
                os.utime(f"{self.target}/{name}", follow_symlinks=False)
        for name, text in content.items():  # 5: the old inodes of changed files
            if before[name] != text and self.announces:
                os.rename(f"{self.target}/{old}/..{name}", f"{self.target}/{old}/{name}")
        self.old.append((time.monotonic(), old))
        while self.old and time.monotonic() - self.old[0][0] > self.KEEP_S:  # 6
            shutil.rmtree(f"{self.target}/{self.old.pop(0)[1]}")

    def stop(self):
        subprocess.run(["umount", "-l", self.target], check=True)

    def abandon(self):
        if is_mounted(self.target):
            self.stop()


class SilentVolume(SimulatedVolume):
    """Renames `..data` and tells nobody else: whoever watches a file, or a file's name, must be seen to miss it."""

    hearing_s = 0.2
    announces = False
