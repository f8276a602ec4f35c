#!/usr/bin/env bash
# inotifywait as scripts run it. usage: watch.sh MODE DIR FILE
#
#   dir        inotifywait -m on the directory, acts on `..data`
#   file       inotifywait -m on the file, set once
#   file-loop  `while inotifywait FILE; do reload; done`
#
# One line per callback: nanoseconds of the wall clock, event, first word of the file.
mode=$1 dir=$2 file=$3
exec 3>&1 # for `ready`, past the pipes below

report() { # EVENT
    local now=$EPOCHREALTIME content
    read -r content _ <"$dir/$file" || content=unreadable
    echo "${now/[.,]/}000 $1 $content"
}

# Dies with this shell, so that no watch outlives the run.
watch() { setpriv --pdeathsig KILL inotifywait "$@"; }

# inotifywait says on stderr when it watches.
ready() { while read -r line; do [[ $line != *established* ]] || echo ready >&3; done; }

case $mode in
dir)
    watch -m -e moved_to -e create --format '%e %f' "$dir" 2> >(ready) | while read -r event name; do
        [[ $name != ..data ]] || report "$event"
    done
    ;;
file)
    watch -m --format '%e' -e modify -e attrib -e move_self -e delete_self "$dir/$file" 2> >(ready) |
        while read -r event; do report "$event"; done
    ;;
file-loop)
    while event=$(watch --format '%e' -e modify -e attrib -e move_self -e delete_self "$dir/$file" 2> >(ready)); do
        report "$event"
    done
    ;;
*) exit 2 ;;
esac
