#!/usr/bin/env bash
# Checks the client: its types, its size, that dist/ is current, its units, and itself against a real server in Node.
# Starts the server itself, embedded, on free ports of 127.0.0.1; some 90 s.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

HERE=$REPO_DIR/client
have cargo || die "cargo is missing: install Rust from https://rustup.rs and run this again"
install_tools
have node || install_packages "Node, of version 18 or later," nodejs
have npm || install_packages "Node's package manager" npm
node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' ||
    die "Node is of version $(node --version): 20 or later is needed"
make_scratch client

if ! [ "$HERE/node_modules/.package-lock.json" -nt "$HERE/package-lock.json" ]; then
    run_child npm ci --prefix "$HERE" --cache "$SCRATCH/npm" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
fi
cd "$HERE"
run_child node_modules/.bin/tsc --project .
log "ok      the types"
run_child node build.mjs --check
log "ok      dist/ is current, and small"

build_server
TARGET=$(built_in release)
FLAGS=()
node -e 'process.exit(typeof WebSocket === "undefined" ? 1 : 0)' || FLAGS=(--experimental-websocket)
export LIVECHAT_SERVER=$TARGET/livechat-ws
run_child node --no-warnings "${FLAGS[@]}" --test test/units.test.mjs test/chat.test.mjs
log "ok      units, and against a server"
