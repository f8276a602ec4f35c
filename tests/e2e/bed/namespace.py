"""The bed's own world: its namespaces, its control groups, and the proof that nothing of them is left.

Everything hangs on one process, the first of a PID namespace: when it is killed, the kernel ends all the others, and the mounts and
network devices go with their namespaces. What the kernel does not remove are the control groups; those we remove.
"""

import os
import signal
import subprocess
import time

KINDS = ("mnt", "pid", "net", "uts", "ipc", "cgroup")
UNSHARE = ["unshare", "--mount", "--cgroup", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc", "--mount-proc"]
# The first process ignores SIGCHLD, so that the kernel reaps what it inherits (containerd's shims). dash would not pass that on.
FIRST = ["bash", "-c", "trap '' CHLD; exec sleep infinity"]

# $1: the bed's directory. The groups' hierarchies follow, as pairs of options and mount point.
SETUP = r"""
set -e
bed=$1; shift
mount --make-rshared /          # unshare made it private; a CSI driver's mounts must reach the kubelet
umount -R /sys; mount -t sysfs none /sys
mount -t tmpfs -o mode=755 none /sys/fs/cgroup
while (($#)); do
    mkdir -p "$2"; mount -t cgroup -o "$1" none "$2"; shift 2
done
hostname n1
ip link set lo up
ip link add node0 type bridge   # the node's address; no route leaves the bed
ip addr add 10.200.0.1/24 dev node0
ip addr add 10.201.0.1/32 dev node0 # the Service `kubernetes`: the API server itself listens there, no kube-proxy
ip link set node0 up
mount --bind "$bed/var-log" /var/log
mount -t tmpfs -o mode=755 none /run # containerd's shims have their sockets here, whatever its configuration says
mount -t overlay -o "lowerdir=/var/lib,upperdir=$bed/var-lib/upper,workdir=$bed/var-lib/work" none /var/lib
mkdir -p /var/lib/kubelet
mount --bind "$bed/kubelet" /var/lib/kubelet
mount --make-private /var/lib/kubelet # a peer group of its own: else each CSI mount shows twice
mount --make-shared /var/lib/kubelet
"""


def hierarchies():
    """[(options, mount point, our group's path)] of each cgroup v1 hierarchy."""
    ours = {}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            ours[names] = path
    found = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, after = line.split(" - ")
            kind, _, options = after.split()
            root, point = before.split()[3:5]
            if kind != "cgroup":
                continue
            options = [o for o in options.split(",") if o not in ("rw", "ro", "xattr", "clone_children")]
            path = next((p for names, p in ours.items() if set(options) == set(names.split(","))), None)
            if path is None:
                continue
            name = [o for o in options if o.startswith("name=")]
            found.append((",".join((["none"] if name else []) + options), point, f"{point}/{os.path.relpath(path, root)}"))
    return found


def group_paths(name):
    """A group of our own below the caller's in each hierarchy."""
    return [os.path.normpath(f"{parent}/{name}") for _, _, parent in hierarchies()]


def make_groups(groups):
    for (options, _, parent), group in zip(hierarchies(), groups, strict=True):
        os.mkdir(group)
        if "cpuset" in options.split(","):  # a new group has no CPUs, and takes no process
            for setting in ("cpuset.cpus", "cpuset.mems"):
                with open(f"{parent}/{setting}") as have, open(f"{group}/{setting}", "w") as want:
                    want.write(have.read())


def join(groups):
    for group in groups:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))


def remove_groups(groups, deadline):
    """Depth first; a group whose last process has just died is busy for a moment."""
    for top in groups:
        for folder, _, _ in os.walk(top, topdown=False):
            while os.path.isdir(folder):
                try:
                    os.rmdir(folder)
                except OSError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.02)


def started(pid):
    """When the process began, in clock ticks: with it a process id names one process for good. None if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def child(pid, limit=5.0):
    """The one child of `unshare` or `nsenter`, which begin with a fork."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                children = file.read().split()
        except FileNotFoundError:
            children = []
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise RuntimeError(f"process {pid} has started nothing in {limit} s")


def make(groups, bed, record):
    """The namespaces; returns the process id of their first process. `record` is told it before anything is done inside."""
    with open(f"{bed}/log/namespaces.log", "w") as log:  # not the caller's: who reads a pipe of ours to its end must not wait for us
        outer = subprocess.Popen(UNSHARE + FIRST, preexec_fn=lambda: join(groups), start_new_session=True,
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    first = child(outer.pid)
    record(first)
    deadline = time.monotonic() + 5
    while os.path.basename(os.readlink(f"/proc/{first}/exe")) != "sleep":  # from here on /proc is mounted
        if time.monotonic() > deadline or outer.poll() is not None:
            raise RuntimeError("the namespaces' first process does not come up")
        time.sleep(0.01)
    pairs = [field for options, point, _ in hierarchies() for field in (options, point)]
    subprocess.run(enter(first) + ["bash", "-c", SETUP, "setup", bed, *pairs], preexec_fn=lambda: join(groups), check=True)
    return first


def enter(first, folder="/"):
    return ["nsenter", "--target", str(first), "-m", "-C", "-p", "-n", "-u", "-i", f"--wdns={folder}", "--"]


def members(groups):
    """The processes in the groups and below them; thaws what runc froze just then: a frozen process does not even die."""
    found = set()
    for top in groups:
        for folder, _, files in os.walk(top):
            try:
                if "freezer.state" in files and folder != top:
                    with open(f"{folder}/freezer.state", "w") as file:
                        file.write("THAWED")
                with open(f"{folder}/cgroup.procs") as file:
                    found.update(int(line) for line in file)
            except OSError:  # the group has gone
                pass
    return found


def inhabitants(numbers):
    """The processes of the whole machine that are in one of these namespaces, be it in part."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any(os.stat(f"/proc/{entry}/ns/{kind}").st_ino in numbers for kind in KINDS):
                found.add(int(entry))
        except OSError:  # it has gone, or is going
            pass
    return found


def end(first, start, groups, bed, limit=10.0):
    """Ends the bed. Returns what is left of it: one line for each thing, none if all is well.

    Only what is in our groups is killed. The namespaces are held open until they have been searched: the kernel gives a freed
    number to the next namespace that anybody makes.
    """
    deadline = time.monotonic() + limit
    held, left = [], []
    if first and started(first) == start:
        held = [os.open(f"/proc/{first}/ns/{kind}", os.O_RDONLY) for kind in KINDS]
        os.kill(first, signal.SIGKILL)
    numbers = {os.fstat(fd).st_ino for fd in held}
    while (alive := members(groups) - {os.getpid()}) and time.monotonic() < deadline:
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    while (inside := inhabitants(numbers)) and time.monotonic() < deadline:
        time.sleep(0.05)  # a kubectl that has not noticed yet
    for pid in alive | inside:
        left.append(f"process {pid}: {command(pid)}")
    for fd in held:
        os.close(fd)
    remove_groups(groups, deadline)
    left += [f"control group {group}" for group in groups if os.path.isdir(group)]
    with open("/proc/self/mountinfo") as file:
        left += [f"mount {line.split()[4]}" for line in file if f"{bed}/" in line]
    return left


def command(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return "gone"
