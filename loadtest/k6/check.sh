#!/usr/bin/env bash
# Checks the scripts of this folder: each must pass against a real server, and its thresholds must be seen to fail when
# a proxy spoils what the server sends; and each must agree with k6's published types. Starts the server itself, embedded,
# on a free port of 127.0.0.1; some 90 s.
#
#   loadtest/k6/check.sh                  with the stand-in of check/, in Node: does not test k6 itself
#   K6=k6 loadtest/k6/check.sh            with an installed k6; nothing is fetched
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

HERE=$REPO_DIR/loadtest/k6
have cargo || die "cargo is missing: install Rust from https://rustup.rs and run this again"
install_tools
have node || install_packages "Node, of version 18 or later," nodejs
have npm || install_packages "Node's package manager" npm
node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)' ||
    die "Node is of version $(node --version): 18 or later is needed"

if [ -n "${K6:-}" ]; then
    have "$K6" || die "K6=\"$K6\": there is no such program"
    RUN=("$K6" run --quiet)
    # Connects only to the server.
    export K6_NO_USAGE_REPORT=true
    log "with $("$K6" version)"
else
    RUN=(node --no-warnings --experimental-vm-modules "$HERE/check/standin.mjs" run)
    log "with the stand-in, not k6 itself"
fi

make_scratch k6

# What the scripts use of k6 is there, and is used as its types say. The packages are those of the lock file.
if ! [ "$HERE/node_modules/.package-lock.json" -nt "$HERE/package-lock.json" ]; then
    run_child npm ci --prefix "$HERE" --cache "$SCRATCH/npm" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
fi
run_child "$HERE/node_modules/.bin/tsc" --project "$HERE"
log "ok      the scripts agree with k6's types"

TARGET=$(built_in release)
build_server

# In the scratch folder, where no .env is read, and without what the caller's environment says of Kafka and Redis.
cd "$SCRATCH"
SERVER_PORT=$(free_port)
export PORT=$SERVER_PORT WS_PORT='' HOST=127.0.0.1 ADMIN_ADDR='' LOG_LEVEL=warn
# Fan-out sends faster than a person would.
export RATE_LIMIT_MESSAGES=0 KAFKA_BROKERS='' KAFKA_BROKER='' REDIS_URL='' REDIS_HOST=''
start_detached server "$TARGET/livechat-ws"
read -r pid _ <"$SCRATCH/server.pid"
wait_for 20 "the server" "$pid" "$TARGET/livechat-ws" --healthcheck || { cat "$SCRATCH/server.log" >&2; exit 1; }

PASSED=0
FAILED=0

# judge NAME WANTED STATUS: WANTED is the metric whose threshold must have been crossed, or empty.
judge() {
    local name=$1 wanted=$2 status=$3 crossed
    crossed=$(sed -n "s/.*thresholds on metrics '\([^']*\)' have been crossed.*/\1/p" "$SCRATCH/out" | tail -n 1)
    if [ -z "$wanted" ] && [ "$status" -eq 0 ]; then
        log "ok      $name"
    elif [ -n "$wanted" ] && [ "$status" -eq 99 ] && [[ ", $crossed," == *", $wanted,"* ]]; then
        log "ok      $name: crossed $crossed"
    else
        log "FAILED  $name: exit status $status, crossed '${crossed}', wanted '${wanted}'"
        cat "$SCRATCH/out" >&2
        FAILED=$((FAILED + 1))
        return 0
    fi
    PASSED=$((PASSED + 1))
}

# script PORT SCRIPT [NAME=VALUE...]: runs it against a server on that port; sets STATUS.
script() {
    local port=$1 name=$2 setting arguments=(); shift 2
    for setting in "$@"; do arguments+=(-e "$setting"); done
    STATUS=0
    arguments+=(-e "URL=ws://127.0.0.1:$port" "$HERE/$name.js")
    run_child "${RUN[@]}" "${arguments[@]}" >"$SCRATCH/out" 2>&1 || STATUS=$?
}

# well SCRIPT [NAME=VALUE...]: passes against the server.
well() {
    script "$SERVER_PORT" "$@"
    judge "$*" '' "$STATUS"
}

# spoilt METRIC SCRIPT "FAULT [TYPE]" [NAME=VALUE...]: fails behind the proxy, by METRIC's threshold; or passes, where
# METRIC is empty.
spoilt() {
    local metric=$1 name=$2 fault=$3 port; shift 3
    port=$(free_port)
    rm -f "$SCRATCH/proxy.log"
    # shellcheck disable=SC2086
    start_detached proxy node "$HERE/check/faults.mjs" "$port" "$SERVER_PORT" $fault
    wait_for 20 "the proxy" 0 grep -q listening "$SCRATCH/proxy.log"
    script "$port" "$name" SESSIONS=1 DURATION=500ms RATE=8 PATIENCE=1s "$@"
    judge "$name, $fault" "$metric" "$STATUS"
    service_verb proxy kill "$SCRATCH"
}

well chat DURATION=2s
well chat ARRIVAL=4 RAMP=1s HOLD=1s SESSIONS=20 DURATION=500ms
well fanout DURATION=2s READERS=20 RATE=30
well typing DURATION=2s
well reconnect DURATION=2s
# Without a fault, the proxy changes nothing.
spoilt '' chat none PATIENCE=10s
spoilt '' reconnect none PATIENCE=10s

spoilt checks chat 'lose message_sent'
spoilt checks chat 'double message_sent'
spoilt checks chat 'alter new_message'
spoilt checks chat 'trade new_message'
spoilt chat_lost chat 'lose new_message'
spoilt chat_doubled chat 'double new_message'
spoilt chat_reordered chat 'swap new_message'
spoilt chat_errors chat 'error new_message'
spoilt chat_sessions_ok chat 'cut new_message'
spoilt chat_ack_latency chat 'late message_sent' ACK_P95=500
spoilt chat_delivery_latency chat 'late new_message' DELIVERY_P95=500
spoilt chat_delivery_latency chat 'late new_message' DELIVERY_P99=500
# More sessions are due than allowed.
spoilt dropped_iterations chat none ARRIVAL=10 RAMP=500ms HOLD=1s
spoilt chat_sessions chat none ARRIVAL=1 RAMP=100ms HOLD=100ms

spoilt chat_lost fanout 'lose new_message'
spoilt chat_doubled fanout 'double new_message'
spoilt chat_reordered fanout 'swap new_message'
spoilt chat_delivery_latency fanout 'late new_message' DELIVERY_P95=500
spoilt chat_received fanout 'cut connection_established'

spoilt chat_typing_lost typing 'lose typing_indicator'
spoilt chat_typing_doubled typing 'double typing_indicator'
spoilt chat_typing_echoed typing 'echo typing_indicator'
spoilt chat_typing_latency typing 'late typing_indicator' TYPING_P95=500
spoilt chat_typing_received typing 'lose connection_established'

spoilt checks reconnect 'lose connection_established'
spoilt chat_connecting reconnect 'late connection_established' CONNECT_P95=500
spoilt chat_returned reconnect refuse
spoilt chat_lost reconnect 'lose new_message'
spoilt chat_doubled reconnect 'double new_message'
spoilt chat_reordered reconnect 'swap new_message'

printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
[ "$FAILED" -eq 0 ]
