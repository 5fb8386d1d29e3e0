#!/usr/bin/env bash
# Checks the client and the console. `node`: types, size, that dist/ is current, units, and the client against a server in
# Node. `browser`: the console and the snippets of the docs in a real browser. Neither named: both. Starts servers itself,
# embedded, on free ports of 127.0.0.1; some three minutes, of which one is without a network.
#
# PICTURES=docs/images client/check.sh browser takes the pictures of the docs anew.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

HERE=$REPO_DIR/client
PART=${1:-all}
case $PART in all | node | browser) ;; *) die "expected node, browser or nothing, not $PART" ;; esac
PICTURES=${PICTURES:+$(mkdir -p "$PICTURES" && cd "$PICTURES" && pwd)}
have cargo || die "cargo is missing: install Rust from https://rustup.rs and run this again"
install_tools
have node || install_packages "Node, of version 20 or later," nodejs
have npm || install_packages "Node's package manager" npm
node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' ||
    die "Node is of version $(node --version): 20 or later is needed"
export CHROMIUM=${CHROMIUM:-/usr/bin/chromium}
if [ "$PART" != node ]; then
    [ -x "$CHROMIUM" ] || install_packages "The browser of the tests" chromium fonts-dejavu-core
fi
make_scratch client

if ! [ "$HERE/node_modules/.package-lock.json" -nt "$HERE/package-lock.json" ]; then
    run_child npm ci --prefix "$HERE" --cache "$SCRATCH/npm" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
fi
cd "$HERE"
TESTS=()
if [ "$PART" != browser ]; then
    run_child node_modules/.bin/tsc --project .
    log "ok      the types"
    run_child node build.mjs --check
    log "ok      dist/ is current, and small"
    TESTS+=(test/units.test.mjs test/chat.test.mjs)
fi
# The longest first: it mostly waits.
if [ "$PART" != node ]; then TESTS=(test/browser/cut.test.mjs "${TESTS[@]}" test/browser/{console,quality,snippets}.test.mjs); fi

build_server
TARGET=$(built_in release)
FLAGS=()
node -e 'process.exit(typeof WebSocket === "undefined" ? 1 : 0)' || FLAGS=(--experimental-websocket)
export LIVECHAT_SERVER=$TARGET/livechat-ws TMPDIR=$SCRATCH
run_child node --no-warnings "${FLAGS[@]}" --test --test-concurrency=3 "${TESTS[@]}"
log "ok      ${TESTS[*]}"
if [ -n "$PICTURES" ] && [ "$PART" != node ]; then run_child node --no-warnings pictures.mjs "$PICTURES"; fi
