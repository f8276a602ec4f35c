"""The watchers, and what each of them must notice: the source of the table in docs/SEMANTICS.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One watcher, a process of its own."""

    name: str
    kind: str  # what is built: sh go node python java notify
    mode: str
    watches: str  # directory | file
    idiom: str  # what the program does, as a person would be told
    callbacks: tuple[int, ...] = (1,)  # how many a rotation, the usual number first
    deaf: bool = False  # hears the first rotation only
    hears: str = "data"  # what tells it: the rename of `..data`, the touch of the user-visible link, the old inode's end
    file: str = "value"

    def __str__(self):
        return f"{self.name} ({self.watches}: {self.idiom})"

    def command(self, out, here, directory):
        program = {
            "sh": [f"{here}/sh/watch.sh"],
            "go": [f"{out}/watch-go"],
            "node": ["node", f"{out}/node/watch.mjs"],
            "python": [f"{out}/python/bin/python", f"{here}/python/watch.py"],
            "java": ["java", "-XX:+UseSerialGC", "-Xmx64m", "-cp", f"{out}/java", "Watch"],
            "notify": [f"{out}/notify/debug/secretfs-watch-notify"],
        }[self.kind]
        return [*program, self.mode, directory, self.file]


ROWS = [
    Row("inotifywait -m", "sh", "dir", "directory", "acts on `..data`"),
    Row("inotifywait in a loop", "sh", "file-loop", "file", "waits, reloads, waits again", hears="inode"),
    Row("inotifywait -m", "sh", "file", "file", "set once", deaf=True, hears="inode"),
    Row("Go fsnotify", "go", "fsnotify-dir", "directory", "acts on Create of `..data`"),
    Row("Go fsnotify", "go", "fsnotify-dir-name", "directory", "acts on any event of the file's name", hears="link"),
    Row("Go fsnotify", "go", "fsnotify-file-on-remove", "file", "ignores Chmod, adds again on Remove", hears="inode"),
    Row("Go fsnotify", "go", "fsnotify-file-on-any", "file", "adds again on all but Write", (2, 1), hears="inode"),
    Row("Go fsnotify", "go", "fsnotify-file", "file", "added once", deaf=True, hears="inode"),
    Row("viper", "go", "viper", "file", "WatchConfig, OnConfigChange", file="config.yaml"),
    Row("controller-runtime certwatcher", "go", "certwatcher", "file", "RegisterCallback, poll off", file="tls.crt", hears="inode"),
    Row("Node chokidar", "node", "chokidar-dir", "directory", "acts on change and add of the file's path", hears="inode"),
    Row("Node chokidar", "node", "chokidar-file", "file", "acts on change and add", hears="inode"),
    Row("Node fs.watch", "node", "fs.watch-dir", "directory", "acts on `..data`"),
    Row("Node fs.watch", "node", "fs.watch-file-again", "file", "watches again on rename", (2, 1), hears="inode"),
    Row("Node fs.watch", "node", "fs.watch-file", "file", "watched once", deaf=True, hears="inode"),
    Row("Python watchdog", "python", "watchdog-dir", "directory", "acts on moved or created `..data`"),
    Row("Python watchdog, recursive", "python", "watchdog-dir-recursive", "directory", "acts on moved or created `..data`"),
    Row("Python watchdog", "python", "watchdog-file", "file", "acts on attrib (modified before 7)", hears="link"),
    Row("Java WatchService", "java", "dir", "directory", "acts on ENTRY_CREATE of `..data`"),
    Row("Java WatchService", "java", "dir-name", "directory", "acts on ENTRY_MODIFY of the file's name", hears="link"),
    Row("Rust notify", "notify", "dir", "directory", "acts on a rename that names `..data`", (2,)),
    Row("Rust notify", "notify", "file-again", "file", "watches again on Remove", hears="inode"),
    Row("Rust notify", "notify", "file", "file", "watched once", deaf=True, hears="inode"),
]
