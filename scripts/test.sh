#!/usr/bin/env bash
# Runs the tests with a real Kafka and a real Redis, which it starts itself on free ports and always stops again.
#
#   scripts/test.sh                          all tests: unit tests, integration tests, examples
#   scripts/test.sh --test e2e kafka_        any arguments of cargo test
#
# The first run fetches what is missing (Kafka's jars into .cache, Debian packages if allowed to install); later runs use it.
# LIVECHAT_TEST_SERVICES=local or =docker says where Kafka and Redis run; by default containers, if an engine answers.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"

have cargo || die "cargo is missing: install Rust from https://rustup.rs and run this again"
install_tools

make_scratch test

# Tests open thousands of sockets; the usual soft limit is 1,024.
ulimit -Sn 65536 2>/dev/null || ulimit -Sn "$(ulimit -Hn)" 2>/dev/null || true

# The fault tests run their own brokers and write records with Kafka's Java client, even if the shared ones are containers.
run_child "$SCRIPTS_DIR/kafka-local.sh" prepare
run_child "$SCRIPTS_DIR/redis-local.sh" prepare
start_services "$SCRATCH"

export TEST_KAFKA_BROKERS=127.0.0.1:$KAFKA_PORT
export TEST_REDIS_URL=redis://127.0.0.1:$REDIS_PORT
# For the Java client (tests/kafka-client) and for private brokers: jars, compiled client, a folder that is emptied at the end.
export TEST_KAFKA_LIBS=$KAFKA_CACHE/libs
export TEST_KAFKA_CLIENT=$KAFKA_CACHE/client
export TEST_SCRATCH=$SCRATCH

log "Kafka on $TEST_KAFKA_BROKERS, Redis on $TEST_REDIS_URL"

# Most tests wait for something most of the time.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) * 2))}

run_tests() {
    local status=0
    # One profile everywhere: another one would build the C libraries a second time.
    run_child cargo test --release --locked "$@" || status=$?
    # Tests that failed because the broker was gone look like server bugs: report it.
    if [ "$status" -eq 101 ] && [ -s "$SCRATCH/kafka/kafka.log" ] && ! "$SCRIPTS_DIR/kafka-local.sh" ready "$KAFKA_PORT"; then
        log "--- the shared broker no longer answers; its last lines:"
        tail -n 20 "$SCRATCH/kafka/kafka.log" >&2
    fi
    return "$status"
}

run_tests "$@"
# Test delivery again with the backend that FANOUT_IO=auto has not used, if the kernel has io_uring.
if [ $# -eq 0 ]; then
    export TEST_FANOUT_IO=send
    run_tests --test e2e -- joining slow_ chat_ scale_ kafka_delivery kafka_records kafka_poison limits_
fi
