#!/usr/bin/env bash
# Compiles what ships beside the default features: without io_uring, and with TLS for Kafka as in the Docker image.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"

install_tools
if ! { have pkg-config && pkg-config --exists openssl; }; then
    install_packages "The headers of OpenSSL (for the feature kafka-tls)" libssl-dev pkg-config
fi

log "--- without io_uring"
run_child cargo clippy --release --locked --all-targets --no-default-features -- -D warnings
log "--- kafka-tls"
run_child cargo check --release --locked --features kafka-tls
