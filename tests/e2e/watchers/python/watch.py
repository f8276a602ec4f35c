"""Watches as programs in Python do, with watchdog. usage: watch.py MODE DIR FILE

Prints `ready`, then per callback: nanoseconds of the wall clock, event, first word of the content.
"""

import os
import sys
import threading
import time

from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

mode, directory, name = sys.argv[1:]
file = os.path.join(directory, name)


def report(event):
    now = time.time_ns()
    try:
        with open(file, encoding="utf-8") as source:
            content = source.readline().strip()
    except OSError:
        content = "unreadable"
    print(now, event, content, flush=True)


class OnData(FileSystemEventHandler):
    """Acts on `..data` appearing: `moved` onto it, or `created`."""

    def on_moved(self, event):
        if os.path.basename(event.dest_path) == "..data":
            report("moved")

    def on_created(self, event):
        if os.path.basename(event.src_path) == "..data":
            report("created")


class OnFile(FileSystemEventHandler):
    """Acts on a change of the file's own link: `attrib` since watchdog 7, `modified` before."""

    def on_any_event(self, event):
        if event.src_path == file and event.event_type in ("attrib", "modified"):
            report(event.event_type)


observer = Observer()
if mode == "watchdog-dir":
    observer.schedule(OnData(), directory)
elif mode == "watchdog-dir-recursive":
    observer.schedule(OnData(), directory, recursive=True)
elif mode == "watchdog-file":
    observer.schedule(OnFile(), file)
else:
    sys.exit(f"unknown mode {mode}")
observer.start()
print("ready", flush=True)
threading.Event().wait()
