#!/usr/bin/env bash
# Runs the requests that docs/BACKENDS.md shows, in its order, against a server that it starts itself, embedded, on a free
# port of 127.0.0.1. All of them must succeed. What needs Kafka is left out: the tests write records.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

have cargo || die "cargo is missing: install Rust from https://rustup.rs and run this again"
install_tools
have curl || install_packages "curl" curl
have jq || install_packages "jq" jq
have node || install_packages "Node, of version 18 or later," nodejs
make_scratch backends

SERVER=$(built_in release)/livechat-ws
build_server

# In the scratch folder, where no .env is read.
cd "$SCRATCH"
PORT=$(free_port)
JWT_SECRET=$(head -c 48 /dev/urandom | base64)
export no_proxy=127.0.0.1 API_KEY=a-key-of-the-examples-0123456789 LIVECHAT=http://127.0.0.1:$PORT
start_detached server env -i PATH="$PATH" HOST=127.0.0.1 PORT="$PORT" WS_PORT= ADMIN_ADDR= LOG_LEVEL=warn \
    JWT_SECRET="$JWT_SECRET" API_KEYS="$API_KEY" "$SERVER"
read -r pid _ <"$SCRATCH/server.pid"
wait_for 20 "the server" "$pid" env -i PATH="$PATH" HOST=127.0.0.1 PORT="$PORT" "$SERVER" --healthcheck ||
    { cat "$SCRATCH/server.log" >&2; exit 1; }

TOKEN=$(env -u JWT_SECRET_FILE -u JWT_ISSUER -u JWT_AUDIENCE JWT_SECRET="$JWT_SECRET" \
    node "$REPO_DIR/examples/tokens/node/token.mjs" backend admin 300 '*')
export TOKEN

# The page's shell blocks with a request, each a file.
awk '/^```sh$/ { open = 1; text = ""; next }
     /^```/ && open { open = 0; if (text ~ /curl/) print text > sprintf("block.%02d", ++count) }
     open { text = text $0 "\n" }' "$REPO_DIR/docs/BACKENDS.md"
blocks=(block.*)
[ "${#blocks[@]}" -ge 5 ] || die "docs/BACKENDS.md has only ${#blocks[@]} blocks with requests"

FAILED=0
for block in "${blocks[@]}"; do
    # A block ends with its first request that fails.
    if run_child bash -euo pipefail "$block" >out 2>&1; then
        log "ok      $(grep -m 1 -o '\$LIVECHAT[^" ]*' "$block")"
    else
        log "FAILED  $(cat "$block")"
        cat out >&2
        FAILED=$((FAILED + 1))
    fi
done
[ "$FAILED" -eq 0 ]
