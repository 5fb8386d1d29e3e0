#!/usr/bin/env bash
# A real Redis without a container engine: Debian's redis-server, bound to 127.0.0.1, keeping nothing on disk.
#
#   redis-local.sh prepare           install redis-server if it is missing
#   redis-local.sh start DIR PORT    start and wait until it answers; REDIS_ARGS adds arguments, e.g. "--requirepass x";
#                                    with REDIS_MAY_LOAD=yes an answer that it still loads its data will do
#   redis-local.sh stop DIR          SIGTERM
#   redis-local.sh kill DIR          SIGKILL
#   redis-local.sh pause DIR         SIGSTOP; resume DIR: SIGCONT
#   redis-local.sh ready PORT        exit status 0 if a Redis answers there
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prepare() {
    # Valkey has the same protocol and arguments.
    if ! server >/dev/null; then install_packages "Redis" redis-server; fi
}

server() { command -v redis-server || command -v valkey-server; }

# ready PORT: PONG, or NOAUTH where a password is set: it answers, which is all that is asked. LOADING is not ready by default.
ready() {
    local answer
    answer=$(answer_to 'PING\r\n' "$1") || return 1
    case $answer in
        +PONG* | -NOAUTH*) return 0 ;;
        -LOADING*) [ "${REDIS_MAY_LOAD:-}" = yes ] ;;
        *) return 1 ;;
    esac
}

start() {
    local dir=$1 port=$2 extra=()
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    if read_pid "$dir/redis.pid" >/dev/null; then die "a Redis runs in $dir already"; fi
    prepare
    if [ -n "${REDIS_ARGS:-}" ]; then read -ra extra <<<"$REDIS_ARGS"; fi
    # Without snapshots, a restart with the same DIR is a Redis that lost everything: the harder case for its clients.
    spawn "$dir" redis "$(server)" --bind 127.0.0.1 --port "$port" --dir "$dir" --save '' --appendonly no --daemonize no "${extra[@]}"
    await_service redis Redis "$dir" "$port" 30
}

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 64; }

case "${1:-}:$#" in
    prepare:1) prepare ;;
    start:3) start "$2" "$3" ;;
    stop:2 | kill:2 | pause:2 | resume:2) service_verb redis "$1" "$2" ;;
    ready:2) ready "$2" ;;
    *) usage ;;
esac
