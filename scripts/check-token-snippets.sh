#!/usr/bin/env bash
# Runs the programs of examples/tokens, which docs/SECURITY_MODEL.md shows: each issues tokens, and a server must accept
# and refuse them as the page says. Starts the servers itself, embedded, on free ports of 127.0.0.1; some 20 s.
#
#   scripts/check-token-snippets.sh                 all languages
#   scripts/check-token-snippets.sh go java         some of them
#
# Needs Go, Node, Python and a JDK: nothing is fetched for the programs themselves.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ALL=(go node python java)
HERE=$REPO_DIR/examples/tokens
LANGUAGES=("$@")
if [ $# -eq 0 ]; then LANGUAGES=("${ALL[@]}"); fi

have cargo || die "cargo is missing: install Rust from https://rustup.rs and run this again"
install_tools
make_scratch tokens

# The check itself is in Node.
have node || install_packages "Node, of version 18 or later," nodejs
node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)' ||
    die "Node is of version $(node --version): 18 or later is needed"

# prepare LANGUAGE: builds what has to be built, and sets COMMAND.
prepare() {
    case $1 in
        go)
            have go || install_packages "Go, of version 1.18 or later," golang-go
            # As `go run` does, but once. Outside of a module, and without a network.
            run_child env GOFLAGS=-mod=mod GOPROXY=off GOCACHE="$SCRATCH/go-cache" \
                go build -o "$SCRATCH/go-token" "$HERE/go/main.go" >&2
            COMMAND=("$SCRATCH/go-token")
            ;;
        node) COMMAND=(node "$HERE/node/token.mjs") ;;
        python)
            have python3 || install_packages "Python" python3
            COMMAND=(python3 "$HERE/python/issue_token.py")
            ;;
        java)
            have javac || install_packages "A JDK of version 17 or later" openjdk-17-jdk-headless
            run_child javac -encoding UTF-8 -d "$SCRATCH/java" "$HERE/java/Token.java" >&2
            COMMAND=(java -XX:+UseSerialGC -Xshare:auto -XX:TieredStopAtLevel=1 -cp "$SCRATCH/java" Token)
            ;;
        *) die "no language \"$1\": expected some of ${ALL[*]}" ;;
    esac
}

# start_server NAME PORT VARIABLE=VALUE...
start_server() {
    local name=$1 port=$2 pid; shift 2
    start_detached "$name" env -i PATH="$PATH" HOST=127.0.0.1 PORT="$port" WS_PORT= ADMIN_ADDR= LOG_LEVEL=warn "$@" \
        "$SERVER"
    read -r pid _ <"$SCRATCH/$name.pid"
    wait_for 20 "the server" "$pid" env -i PATH="$PATH" HOST=127.0.0.1 PORT="$port" "$SERVER" --healthcheck ||
        { cat "$SCRATCH/$name.log" >&2; exit 1; }
}

SERVER=$(built_in release)/livechat-ws
build_server

# In the scratch folder, where no .env is read.
cd "$SCRATCH"
SECRET=$(head -c 48 /dev/urandom | base64)
printf '%s\n' "$SECRET" >"$SCRATCH/secret"
BY_VALUE=(JWT_SECRET="$SECRET")
BY_FILE=(JWT_SECRET_FILE="$SCRATCH/secret" JWT_ISSUER=https://app.example.com JWT_AUDIENCE=livechat)
VALUE_PORT=$(free_port)
FILE_PORT=$(free_port)
start_server value "$VALUE_PORT" "${BY_VALUE[@]}"
start_server file "$FILE_PORT" "${BY_FILE[@]}"

# check NAME PORT VARIABLE=VALUE...: with the program of COMMAND. Java reads its arguments in the locale's encoding.
FAILED=0
check() {
    local name=$1 port=$2; shift 2
    if run_child env -u JWT_SECRET -u JWT_SECRET_FILE -u JWT_ISSUER -u JWT_AUDIENCE LC_ALL=C.UTF-8 "$@" \
        node "$REPO_DIR/tests/tokens/check.mjs" "http://127.0.0.1:$port" "${COMMAND[@]}" >"$SCRATCH/out" 2>&1; then
        log "ok      $name: $(cat "$SCRATCH/out")"
    else
        log "FAILED  $name"
        cat "$SCRATCH/out" >&2
        FAILED=$((FAILED + 1))
    fi
}

for language in "${LANGUAGES[@]}"; do
    prepare "$language"
    check "$language, JWT_SECRET" "$VALUE_PORT" "${BY_VALUE[@]}"
    check "$language, JWT_SECRET_FILE, issuer and audience" "$FILE_PORT" "${BY_FILE[@]}"
done
[ "$FAILED" -eq 0 ]
