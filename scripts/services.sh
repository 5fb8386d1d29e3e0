#!/usr/bin/env bash
# Kafka and Redis for a developer, until Ctrl-C. Prints the environment lines with which the server (or a test run by hand) finds
# them. Data lives in a scratch folder and is gone afterwards.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_scratch services 5
# It runs until it is interrupted.
trap 'interrupted 0' INT TERM HUP

run_child "$SCRIPTS_DIR/kafka-local.sh" prepare
start_services "$SCRATCH"
cat <<END
# The server:
export KAFKA_BROKERS=127.0.0.1:$KAFKA_PORT
export REDIS_URL=redis://127.0.0.1:$REDIS_PORT
# cargo test by hand:
export TEST_KAFKA_BROKERS=127.0.0.1:$KAFKA_PORT
export TEST_REDIS_URL=redis://127.0.0.1:$REDIS_PORT
export TEST_KAFKA_LIBS=$KAFKA_CACHE/libs
export TEST_KAFKA_CLIENT=$KAFKA_CACHE/client
export TEST_SCRATCH=$SCRATCH
END
log "Running until Ctrl-C."
run_child sleep infinity
