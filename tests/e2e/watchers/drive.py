"""Runs real watchers against a volume that rotates and compares what they noticed with what they must notice.

1. Start the volume, then the watchers, each in a process of its own; wait until each says `ready`.
2. Rotate, again and again, each time after all who must hear of the last one have. The moment of a rotation is the change
   time of `..data`, which the kernel writes at the rename. Watchers and kernel both use the wall clock; a step of it
   during the run spoils the run, which is checked.
3. Give each callback to the rotation that it follows; judge each watcher by its row (rows.py).
4. Print the table, and `test result: ...` for whoever counts.

Called by `run`, inside a mount namespace of its own.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import ROWS
from volumes import PATIENCE_S, Problem, RealVolume, SilentVolume, SimulatedVolume, die_with_parent

HERE = Path(__file__).resolve().parent
LIMIT_MS = 250
LATE = 16  # one rotation in so many may be later: a stalled machine, or watchdog, which waits 500 ms for the second half of a
# rename when it read the first alone. Who polls is late more often
FIRST_LOOK_S = 0.1  # we take no part in what is measured before that
APART_S = 0.2  # after the last was heard: for the second callback of those who make two
GROUPS = 2  # so many watchers at once on two cores that none of them waits for the others


def contents(count, out, built):
    """What the volume shows at rotation 0, 1, 2 ...; `v<rotation>` begins the text and is the serial number of the pair."""
    pairs = [{"certificate": "", "key": ""}] * count
    if "go" in built:
        made = subprocess.run([f"{out}/watch-go", "pairs", str(count)], capture_output=True, check=True)
        pairs = json.loads(made.stdout)
    for n, pair in enumerate(pairs):
        word = f"v{n}." + os.urandom(200).hex()
        yield {
            "value": f"{word}\n",
            "config.yaml": f"value: {word}\n",
            "tls.crt": pair["certificate"],
            "tls.key": pair["key"],
            "unchanged": "as it was\n",
        }


def expected(row, n, content):
    """What a callback after rotation n must have read."""
    return f"v{n}" if row.file == "tls.crt" else content["value"].strip()


class Watcher:
    """A row's process. It writes to a file that is read at the end, so that we take no part in what is measured."""

    def __init__(self, row, out, directory, logs):
        self.row = row
        self.path = f"{logs}/{row.kind}-{row.mode}.txt"
        self.out, self.err = open(self.path, "w", encoding="utf-8"), open(f"{self.path}.err", "w", encoding="utf-8")
        self.process = subprocess.Popen(
            row.command(out, HERE, directory),
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.err,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def lines(self):
        return Path(self.path).read_text(encoding="utf-8").splitlines()

    def is_ready(self):
        return "ready" in self.lines()

    def has_read(self, word):
        return any(line.endswith(f" {word}") for line in self.lines())

    def callbacks(self):
        """(nanoseconds, what was read) of each."""
        split = [line.split() for line in self.lines() if line != "ready"]
        return [(int(parts[0]), parts[-1]) for parts in split]

    def errors(self):
        return Path(f"{self.path}.err").read_text(encoding="utf-8").strip()[-2000:]

    def stop(self):
        if self.out.closed:
            return False
        alive = self.process.poll() is None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.out.close()
        self.err.close()
        return alive


def wait_until(condition, what):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise Problem(f"{what}: not within {PATIENCE_S} s")
        time.sleep(0.002)


def wait_until_heard(watchers, n, text, patience_s):
    """All who hear more than the first rotation; who does not in time is found by `judge`."""
    time.sleep(FIRST_LOOK_S)
    end = time.monotonic() + patience_s
    waiting = [w for w in watchers if not w.row.deaf]
    while waiting and time.monotonic() < end:
        waiting = [w for w in waiting if not w.has_read(expected(w.row, n, text))]
        time.sleep(0.02)
    time.sleep(APART_S)


def clock_offset_ns():
    return time.time_ns() - time.monotonic_ns()


def measure(rows, volume, texts, out, logs):
    """Steps 1 and 2: for each row (row, callbacks, alive, errors), and for each rotation (put, put returned, rename)."""
    watchers, times = [], []
    link = f"{volume.target}/..data"
    try:
        first = volume.start(texts[0])
        print(f"{len(rows)} watchers; {first}", flush=True)
        watchers += [Watcher(row, out, volume.target, logs) for row in rows]
        for watcher in watchers:
            wait_until(
                lambda: watcher.is_ready() or watcher.process.poll() is not None,
                f"{watcher.row.name} ({watcher.row.mode}) ready",
            )
        time.sleep(1)  # some say ready a moment before they are
        offset = clock_offset_ns()
        for n, text in enumerate(texts[1:], 1):
            before, put = os.readlink(link), time.time_ns()
            volume.rotate(text)
            done = time.time_ns()
            wait_until(lambda: os.readlink(link) != before, "the rotation reaches the mount")
            times.append((put, done, os.lstat(link).st_ctime_ns))
            wait_until_heard(watchers, n, text, volume.hearing_s)
        if abs(clock_offset_ns() - offset) > 5_000_000:
            raise Problem("the wall clock was set during the run; run it again")
        results = [(w.row, w.stop(), w.callbacks(), w.errors()) for w in watchers]
        volume.stop()
        return results, times
    finally:
        for watcher in watchers:
            watcher.stop()
        volume.abandon()


def judge(row, alive, callbacks, texts, commits):
    """Step 3: (figures for the table, what is wrong)."""
    wrong = [] if alive else ["its process ended"]
    per_rotation = [[] for _ in commits]
    for at, word in callbacks:
        n = sum(commit <= at for commit in commits)
        if n == 0:
            wrong.append("a callback before the first rotation")
            continue
        per_rotation[n - 1].append((at - commits[n - 1]) / 1e6)
        if word != expected(row, n, texts[n]):
            wrong.append(f"after rotation {n} it read {word[:12]}")
    heard = [n for n, delays in enumerate(per_rotation, 1) if delays]
    delays = [delays[0] for delays in per_rotation if delays]
    counts = [len(delays) for delays in per_rotation if delays]
    late = [f"rotation {n} after {d:.0f} ms" for n, d in zip(heard, delays) if d > LIMIT_MS]
    if len(late) > max(1, len(commits) // LATE):
        wrong += late
    if row.deaf:
        if heard != [1]:
            wrong.append(f"should hear the first rotation only, heard {heard}")
    else:
        missed = sorted(set(range(1, len(commits) + 1)) - set(heard))
        if missed:
            wrong.append(f"missed rotations {missed}")
        if counts and statistics.mode(counts) != row.callbacks[0]:
            wrong.append(f"{statistics.mode(counts)} callbacks a rotation, not {row.callbacks[0]}")
        odd = [(n, c) for n, c in zip(heard, counts) if c not in row.callbacks]
        wrong += [f"{c} callbacks for rotation {n}" for n, c in odd]
    figures = (
        f"{statistics.median(delays):.1f}" if delays else "-",
        f"{max(delays):.1f}" if delays else "-",
        f"{statistics.mean(counts):.2g}" if counts else "-",
        f"{len(heard)} of {len(commits)}",
    )
    return figures, wrong


def table(lines):
    head = ["watcher", "watches", "what it does", "median ms", "max ms", "callbacks a rotation", "heard"]
    print("| " + " | ".join(head) + " |")
    print("|" + "|".join(["---"] * 3 + ["---:"] * 4) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |")


def run_groups(rows, kind, arguments, built):
    """All rows, a group after the other: (row, figures, what is wrong) of each, and the times of the rotations."""
    outcomes, all_times = [], []
    for group in range(GROUPS):
        chosen = rows[group::GROUPS]
        if not chosen:
            continue
        base = tempfile.mkdtemp(prefix="secretfs-watchers-")
        texts = list(contents(arguments.rotations + 1, arguments.out, built))
        try:
            results, times = measure(chosen, kind(arguments.binary, base), texts, arguments.out, base)
        except Problem as problem:
            outcomes += [(row, ("-",) * 4, [str(problem)]) for row in chosen]
            continue
        finally:
            shutil.rmtree(base, ignore_errors=True)
        commits = [commit for _, _, commit in times]
        all_times += times
        for row, alive, callbacks, errors in results:
            figures, wrong = judge(row, alive, callbacks, texts, commits)
            outcomes.append((row, figures, wrong[:10] + ([errors] if wrong and errors else [])))
    return outcomes, all_times


def check_rig(rows, arguments, built):
    """A swap that tells nobody but watchers of `..data`: exactly the others must be found wanting."""
    arguments.rotations = 4
    outcomes, _ = run_groups(rows, SilentVolume, arguments, built)
    blind = [row for row, _, wrong in outcomes if bool(wrong) != (row.hears != "data")]
    for row in blind:
        print(f"FAILED: the rig misjudges {row.name} ({row.watches}, {row.idiom})")
    passed = len(outcomes) - len(blind)
    print(f"\ntest result: {'FAILED' if blind else 'ok'}. {passed} passed; {len(blind)} failed; the rig on a silent swap")
    return 1 if blind or not passed else 0


def report(outcomes, times, absent):
    """Step 4. The exit status."""
    print()
    order = sorted(outcomes, key=lambda outcome: ROWS.index(outcome[0]))
    table([[row.name, row.watches, row.idiom, *figures] for row, figures, _ in order])
    if times:
        for what, late in (
            ("from `store put` to the rename", [(commit - put) / 1e6 for put, _, commit in times]),
            ("from the end of `store put` to the rename", [(commit - done) / 1e6 for _, done, commit in times]),
        ):
            print(f"\n{what}: median {statistics.median(late):.1f} ms, max {max(late):.1f} ms")
    deaf = [str(row) for row, _, wrong in order if row.deaf and not wrong]
    print("\ndeaf after the first rotation, as they must be: " + ("; ".join(deaf) or "none"))
    failures = [(row, wrong) for row, _, wrong in order if wrong]
    for row in absent:
        print(f"not run for lack of its tools: {row}")
        if os.environ.get("CI"):
            failures.append((row, ["its tools are missing"]))
    for row, wrong in failures:
        print(f"\nFAILED {row}:\n  " + "\n  ".join(wrong))
    passed = sum(not wrong for _, _, wrong in outcomes)
    bad = bool(failures) or passed == 0
    print(f"\ntest result: {'FAILED' if bad else 'ok'}. {passed} passed; {len(failures)} failed; real watchers")
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser()
    volume = parser.add_mutually_exclusive_group(required=True)
    volume.add_argument("--binary", type=os.path.abspath)
    volume.add_argument("--simulate", action="store_true")
    volume.add_argument("--rig", action="store_true")
    parser.add_argument("--rotations", type=int, default=50)
    parser.add_argument("--only", default="", help="watchers whose kind or mode holds this text")
    parser.add_argument("--out", required=True)
    parser.add_argument("--built", required=True)
    arguments = parser.parse_args()
    built = arguments.built.split(",")
    rows = [row for row in ROWS if arguments.only in f"{row.kind} {row.mode}"]
    able = [row for row in rows if row.kind in built]
    if arguments.rig:
        return check_rig(able, arguments, built)
    outcomes, times = run_groups(able, RealVolume if arguments.binary else SimulatedVolume, arguments, built)
    return report(outcomes, times, [row for row in rows if row not in able])


if __name__ == "__main__":
    sys.exit(main())
