#!/usr/bin/env bash
# Lets schemathesis make requests by the OpenAPI document that a server serves, valid ones and others, and judge the
# responses: no 5xx that is not documented, and status, headers, content type and body as documented. Starts the servers
# itself, embedded, on free ports of 127.0.0.1. The served documents are checked, too. Some 40 s; the program is pinned in
# requirements.txt.
#
#   docs/spec/fuzz.sh                     FUZZ_SECONDS=300 FUZZ_SEED=7 docs/spec/fuzz.sh for more
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

HERE=$REPO_DIR/docs/spec
CACHE=$REPO_DIR/.cache/schemathesis
have cargo || die "cargo is missing: install Rust from https://rustup.rs and run this again"
install_tools
have curl || install_packages "curl" curl
have node || install_packages "Node, of version 18 or later," nodejs
have npm || install_packages "Node's package manager" npm
python3 -m venv --help >/dev/null 2>&1 && python3 -c 'import ensurepip' 2>/dev/null ||
    install_packages "Python with its virtual environments" python3 python3-venv
make_scratch fuzz

if ! cmp -s "$HERE/requirements.txt" "$CACHE/requirements.txt"; then
    rm -rf "$CACHE"
    mkdir -p "$REPO_DIR/.cache"
    python3 -m venv "$CACHE"
    run_child "$CACHE/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
        -r "$HERE/requirements.txt" >&2
    cp "$HERE/requirements.txt" "$CACHE/requirements.txt"
fi
if ! [ "$HERE/node_modules/.package-lock.json" -nt "$HERE/package-lock.json" ]; then
    run_child npm ci --prefix "$HERE" --cache "$SCRATCH/npm" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
fi

SERVER=$(built_in release)/livechat-ws
build_server

# In the scratch folder, where no .env is read.
cd "$SCRATCH"
JWT_SECRET=$(head -c 48 /dev/urandom | base64 -w 0)
KEY=a-key-for-the-fuzzer-0123456789
TOKEN=$(env -u JWT_SECRET_FILE -u JWT_ISSUER -u JWT_AUDIENCE JWT_SECRET="$JWT_SECRET" \
    node "$REPO_DIR/examples/tokens/node/token.mjs" alice admin 3600 '*')

# serve NAME PORT [NAME=VALUE...]: an embedded server.
serve() {
    local name=$1 port=$2 pid; shift 2
    start_detached "$name" env -i PATH="$PATH" HOST=127.0.0.1 PORT="$port" WS_PORT= LOG_LEVEL=warn "$@" "$SERVER"
    read -r pid _ <"$SCRATCH/$name.pid"
    wait_for 20 "the server" "$pid" env -i PATH="$PATH" HOST=127.0.0.1 PORT="$port" "$SERVER" --healthcheck ||
        { cat "$SCRATCH/$name.log" >&2; exit 1; }
}
PORT=$(free_port)
ADMIN=$(free_port)
serve guarded "$PORT" ADMIN_ADDR="127.0.0.1:$ADMIN" JWT_SECRET="$JWT_SECRET" API_KEYS="$KEY" AUTH_FAILURES_PER_MINUTE=0
# Without tokens every handshake gets as far as its headers.
OPEN=$(free_port)
serve open "$OPEN" ADMIN_ADDR=

# What is served is as good as what is in the repository.
mkdir served
for name in openapi asyncapi; do
    curl --noproxy '*' -fsS -o "served/$name.json" "http://127.0.0.1:$PORT/$name.json"
done
log "ok      served: $(node "$HERE/validate.mjs" served)"

# fuzz DOCUMENT PORT OPTION...: judges a server's responses by a document.
fuzz() {
    local document=$1 port=$2; shift 2
    run_child env no_proxy=127.0.0.1 "$CACHE/bin/schemathesis" --config-file "$HERE/schemathesis.toml" run \
        "$document" --url "http://127.0.0.1:$port" --seed "${FUZZ_SEED:-1}" --warnings off "$@" >out 2>&1
}
# conforms PORT OPTION...: all responses are as documented.
conforms() {
    fuzz served/openapi.json "$@" || { cat out >&2; exit 1; }
    log "ok      $(grep -oE '[0-9]+ generated, [0-9]+ passed' out || grep generated out)"
}
# differs CHANGE: with the document changed by a line of JavaScript, a response of /live is not as documented.
differs() {
    node -e '
        const fs = require("node:fs"), doc = JSON.parse(fs.readFileSync("served/openapi.json", "utf8"));
        new Function("doc", process.argv[1])(doc);
        fs.writeFileSync("changed.json", JSON.stringify(doc));' "$1"
    if fuzz changed.json "$PORT" --include-path /live --phases examples,coverage,fuzzing --max-examples 5; then
        cat out >&2
        die "nothing was found after: $1"
    fi
    grep -q '1 found\|found 1' out || { cat out >&2; exit 1; }
    log "ok      found: $1"
}
differs 'doc.components.schemas.Live.properties.status.const = "dead"'
differs 'doc.paths["/live"].get.responses[204] = doc.paths["/live"].get.responses[200]; delete doc.paths["/live"].get.responses[200]'
conforms "$PORT" --exclude-path /metrics --max-time "${FUZZ_SECONDS:-20}" \
    -H "Authorization: Bearer $TOKEN" -H "X-API-Key: $KEY"
conforms "$OPEN" --include-path-regex '^/ws/' --phases examples,coverage,fuzzing --max-examples 60
conforms "$ADMIN" --include-path /metrics --include-path /live --include-path /ready --phases examples,coverage,fuzzing \
    --max-examples 20

for name in guarded open; do
    read_pid "$SCRATCH/$name.pid" >/dev/null || { cat "$SCRATCH/$name.log" >&2; die "a server has ended"; }
    if grep -i panic "$SCRATCH/$name.log" >&2; then die "a server has panicked"; fi
done
