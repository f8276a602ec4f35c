#!/usr/bin/env bash
# Plants faults in a copy of the tree and has the fuzzer look for them: whether "no finding" of a target says anything.
#
#   tests/fuzz/planted.sh [--seconds N] [--seed N] [--only TEXT]
#
# Each planted/TARGET-WHAT.patch is a mistake that somebody could make in src; its first line says which. They are built as tests/fuzz.sh
# builds. The committed corpus alone must not find a fault, or it would say nothing of the fuzzer; then the target runs until it finds
# something, for at most N seconds (300) from a seed (1). What it found must be the fault's own doing: the same input holds where nothing is
# planted. Before all, each target runs 10 s where nothing is planted, and finds nothing. --only takes the faults whose name holds TEXT.
#
# A build takes minutes, so one has several faults, of targets that run none of each other's code. A fault that is not found fails. The
# copy, and what is built of it, lies in fuzz/target/planted; nothing is ever planted in the tree itself.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
seconds=300 seed=1 only=

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

while (($# > 0)); do
    case $1 in
    --seconds | --seed) [[ ${2:-} =~ ^[0-9]+$ ]] || usage 2 ;;&
    --seconds) seconds=$2 ;;
    --seed) seed=$2 ;;
    --only) only=${2:-} ;;
    --help) usage 0 ;;
    *) usage 2 ;;
    esac
    shift 2 || usage 2
done

place=$root/fuzz/target/planted
tree=$place/tree log=$place/log
export CARGO_TARGET_DIR=$place/target
host=$(rustc -vV | sed -n 's/^host: //p')
passed=0 failed=0

mapfile -t faults < <(cd "$here/planted" && compgen -G "*$only*.patch" | sort)
((${#faults[@]} > 0)) || { echo "no fault's name holds $only"; exit 2; }
mapfile -t targets < <(printf '%s\n' "${faults[@]%%-*}" | sort -u)

# say STATUS TARGET WHAT TEXT
say() {
    printf '%-7s %-12s %-15s %s\n' "$@"
    case $1 in
    FAILED) failed=$((failed + 1)) ;;
    *) passed=$((passed + 1)) ;;
    esac
}

# fuzz ARGUMENT...: tests/fuzz.sh in the copy, with nothing left of a former run.
fuzz() {
    rm -rf "$tree/fuzz/work" "$tree/fuzz/artifacts"
    nice "$tree/tests/fuzz.sh" "$@" >"$log" 2>&1
}

# found TARGET: what the fuzzer has written down.
found() { compgen -G "$tree/fuzz/artifacts/$1/*"; }

executions() { sed -n "s/^stat::number_of_executed_units: *//p" "${1:-$log}" | tail -n 1; }

# plant PATCH [-R]: git looks for no repository above, in which the copy would be an ignored folder.
plant() { (cd "$tree" && GIT_CEILING_DIRECTORIES=$place git apply "${@:2}" "$here/planted/$1"); }

control() {
    local target=$1
    if fuzz runs 0 "$target" && fuzz 10 "$target" "-seed=$seed" && [[ -z $(found "$target") ]]; then
        say clean "$target" "nothing planted" "no finding in $(executions) executions and 10 s"
        cp "$CARGO_TARGET_DIR/$host/release/$target" "$place/clean/"
    else
        say FAILED "$target" "nothing planted" "and yet:"
        tail -n 20 "$log"
    fi
}

search() {
    local name=${1%.patch} start=$SECONDS took input
    local target=${name%%-*} what=${name#*-}
    if ! fuzz runs 0 "$target"; then
        say FAILED "$target" "$what" "it does not build, or the corpus finds it without the fuzzer:"
        tail -n 20 "$log"
        return
    fi
    start=$SECONDS
    if fuzz "$seconds" "$target" "-seed=$seed" || [[ -z $(found "$target") ]]; then
        say FAILED "$target" "$what" "not found in $(executions) executions and $((SECONDS - start)) s"
        return
    fi
    took=$((SECONDS - start))
    cp "$log" "$place/$name.log"
    input=$(found "$target" | head -n 1)
    if "$place/clean/$target" "$input" >"$log" 2>&1; then
        say found "$target" "$what" "after $(executions "$place/$name.log") executions and $took s: $(head -n 1 "$here/planted/$1")"
    else
        say FAILED "$target" "$what" "what was found is found where nothing is planted, too"
    fi
}

# Those that run the same code are one family, of which one fault is planted at a time.
family() {
    case $1 in
    token-* | csi_publish-*) echo csi ;;
    *) echo "${1%%-*}" ;;
    esac
}

# round: plants the next fault of each family, lets their targets search, and takes the faults out again.
round() {
    local one planted=() later=() families=" "
    for one in "${faults[@]}"; do
        if [[ $families == *" $(family "$one") "* ]]; then
            later+=("$one")
        else
            families+="$(family "$one") "
            if plant "$one"; then planted+=("$one"); else say FAILED "${one%%-*}" "${one#*-}" "it does not apply"; fi
        fi
    done
    for one in "${planted[@]}"; do search "$one"; done
    for one in "${planted[@]}"; do plant "$one" -R; done
    faults=("${later[@]}")
}

# The copy stays, so that what has not changed need not be built again. What differs, as a fault that a killed run left, is copied anew.
sync() {
    local file
    rm -rf "$tree/fuzz/corpus" "$place/clean"
    mkdir -p "$tree" "$place/clean"
    cd "$root"
    while read -r -d "" file; do
        cmp -s "$file" "$tree/$file" || cp --parents "$file" "$tree"
    done < <(git ls-files -z --cached --others --exclude-standard)
}

sync
echo "seed $seed, at most $seconds s for each of ${#faults[@]} faults; logs in $place"
for target in "${targets[@]}"; do control "$target"; done
while ((${#faults[@]} > 0)); do round; done

if ((failed == 0)); then result=ok; else result=FAILED; fi
echo "test result: $result. $passed passed; $failed failed"
((failed == 0))
