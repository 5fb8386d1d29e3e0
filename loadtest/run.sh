#!/usr/bin/env bash
# Builds the server and the load generator, starts its own Kafka, measures, and prints tables and the target ratios.
#
#   loadtest/run.sh                                   workloads A to F, median of 5: about 35 minutes
#   loadtest/run.sh all --rounds 1 --seconds 3        a quick run: about 5 minutes
#   loadtest/run.sh messages --workload a             any command of livechat-loadtest (--help lists them)
#   loadtest/run.sh resume --source memory --rounds 3
#   loadtest/run.sh presence flush --json flush.json
#
# LOADTEST_PROFILE=release saves the minutes that fat LTO takes; published figures need the default, dist.
# Nothing else should run on the machine meanwhile, and its descriptor limit must allow 10,100 sockets in a process.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

have cargo || die "cargo is missing: install Rust from https://rustup.rs and run this again"
install_tools

PROFILE=${LOADTEST_PROFILE:-dist}
TARGET=$(built_in "$PROFILE")

make_scratch loadtest

ulimit -Sn "$(ulimit -Hn)" 2>/dev/null || true
limit=$(ulimit -Sn)
if [ "$limit" != unlimited ] && [ "$limit" -lt 10300 ]; then
    log "warning: the descriptor limit is $limit; D and E open 10,000 sockets in one process (ulimit -n)"
fi

run_child cargo_here build --profile "$PROFILE" --locked --package livechat-ws --package livechat-loadtest
run_child "$SCRIPTS_DIR/redis-local.sh" prepare
run_child "$SCRIPTS_DIR/kafka-local.sh" prepare
KAFKA_PORT=$(free_port)
run_child "$SCRIPTS_DIR/kafka-local.sh" start "$SCRATCH/kafka" "$KAFKA_PORT"
export KAFKA_BROKERS=127.0.0.1:$KAFKA_PORT

commit=$(git -C "$REPO_DIR" rev-parse --short HEAD 2>/dev/null || echo unknown)
log "$(uname -sr), $(nproc) cores, $(date -u +%FT%TZ), commit $commit, load $(cut -d' ' -f1 /proc/loadavg)"
# The output of the measured programs is removed with the rest, even after an interruption.
export TMPDIR=$SCRATCH
[ $# -gt 0 ] || set -- all
case $1 in
    remote | scale) ;;
    *) set -- "$@" --server "$TARGET/livechat-ws" ;;
esac
run_child "$TARGET/livechat-loadtest" "$@"
