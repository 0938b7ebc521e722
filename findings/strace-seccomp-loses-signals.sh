#!/usr/bin/env bash
# strace 6.1 with --seccomp-bpf does not deliver the signals of `-e inject=…:signal=…`: the process that
# should be killed at its rename renames and ends well, and no line says so. The manual of this option
# does not mention it. Without the option it is killed, before the call is carried out.
#
# Met with a sweep of kills over the calls of a program, where every run "survived".
#
# Fails if this has changed. Needs strace.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
calls=rename,renameat,renameat2
status() {
    touch from
    local status=0
    # The shell would report the kill.
    bash -c 'strace -f -qq -o log "$@" mv from to; exit $?' _ "$@" \
        -e "trace=$calls" -e "inject=$calls:signal=KILL" 2>/dev/null || status=$?
    echo "$status"
}
strace -V | head -n 1
plain=$(status)
filtered=$(status --seccomp-bpf)
echo "exit status: $plain, and $filtered with --seccomp-bpf"
[ "$plain" = 137 ] && [ "$filtered" = 0 ]
