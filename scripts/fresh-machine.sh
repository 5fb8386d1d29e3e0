#!/usr/bin/env bash
# Tries the README's two commands on a machine that has nothing: a minimal Debian in a chroot, with the packages of the README's
# apt-get line and Rust, and a clean clone of what is committed here. As root, on Debian or Ubuntu.
#
#   scripts/fresh-machine.sh                   cargo run --release until it answers, SIGTERM, then ./scripts/test.sh
#   scripts/fresh-machine.sh --test e2e chat_  the same with a part of the tests: any arguments of cargo test
#
# FRESH_STEPS="run test"   which of the two
# FRESH_CACHE=DIR          keeps the base system, packages, crates, Kafka's jars and what is built, so that another run is quick
# FRESH_TIMEOUT=4h         after which all of it is ended
#
# Debian comes from the mirror that apt is set up with here, by debootstrap. Rust is this machine's own toolchain, mounted
# read-only: rustup would fetch the same. Cargo's and Maven's settings, proxies, CARGO_* variables and certificates of
# /usr/local/share/ca-certificates are taken over, so that crates and jars are fetched the way they are fetched here. Mounts and
# processes are in namespaces of their own: the kernel ends them with the script, however it ends. TMPDIR says where the scratch
# folder is (5 GB; not on a file system mounted with nodev or noexec).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# What runs in the chroot; its arguments are those of cargo test.
in_the_root() {
    # shellcheck disable=SC2016
    cat <<'END'
set -euo pipefail
step() { printf '\n=== %s\n' "$*" >&2; }
export DEBIAN_FRONTEND=noninteractive

step "$README_LINE"
apt-get update -qq
eval "$README_LINE -qq -y" </dev/null >/dev/null
cd ~/livechat-ws

answers() { curl -fsS --noproxy '*' --max-time 5 "http://127.0.0.1:$PORT/health" 2>/dev/null; }

run_server() {
    step "cargo run --release"
    cargo run --release </dev/null &
    local pid=$! status=0
    until answers; do
        kill -0 "$pid" 2>/dev/null || { wait "$pid" || true; echo "error: it ended before it answered" >&2; exit 1; }
        sleep 1
    done
    echo
    step "SIGTERM"
    kill -TERM "$pid"
    wait "$pid" || status=$?
    [ "$status" -eq 0 ] || { echo "error: exit status $status after SIGTERM" >&2; exit 1; }
}

for name in $FRESH_STEPS; do
    case $name in
        run) (export PORT=$FREE_PORT_1 WS_PORT=$FREE_PORT_2 ADMIN_ADDR=127.0.0.1:$FREE_PORT_3; run_server) ;;
        test) step "./scripts/test.sh $*"; ./scripts/test.sh "$@" </dev/null ;;
        *) echo "error: FRESH_STEPS: run and test are the steps, not $name" >&2; exit 64 ;;
    esac
done
step "a fresh machine runs it: $FRESH_STEPS"
END
}

# base_system ROOT: Debian's minimal system.
base_system() {
    local root=$1 mirror codename components proxy tar=${FRESH_CACHE:+$FRESH_CACHE/base.tar}
    if [ -n "$tar" ] && [ -f "$tar" ]; then
        tar -xpf "$tar" -C "$root"
        return 0
    fi
    # The release of this machine, from the distribution's own archive.
    IFS='|' read -r mirror codename < <(apt-get indextargets --format '$(REPO_URI)|$(CODENAME)' 'Identifier: Packages' \
        'Component: main' "Codename: $(. /etc/os-release && echo "$VERSION_CODENAME")" \
        "Origin: $(. /etc/os-release && echo "${ID^}")") || true
    [ -n "${mirror:-}" ] || die "apt names no source of this release: see /etc/apt"
    components=main
    case $(. /etc/os-release && echo "$ID") in ubuntu) components=main,universe ;; esac
    proxy=$(apt-config shell proxy Acquire::http::Proxy)
    eval "$proxy"
    if [ -n "${proxy:-}" ]; then export http_proxy=$proxy; fi
    log "=== debootstrap --variant=minbase $codename"
    debootstrap --variant=minbase --components="$components" "$codename" "$root" "$mirror" >"$root.log" 2>&1 ||
        { tail -n 20 "$root.log" >&2; die "debootstrap failed"; }
    if [ -n "$tar" ]; then
        tar --one-file-system -cpf "$tar.new" -C "$root" .
        mv "$tar.new" "$tar"
    fi
}

# kept NAME PATH: mounts a folder of the cache, if there is a cache.
kept() {
    mkdir -p "$2"
    if [ -z "${FRESH_CACHE:-}" ]; then return 0; fi
    mkdir -p "$FRESH_CACHE/$1"
    mount --bind "$FRESH_CACHE/$1" "$2"
}

# In separate namespaces: nothing mounted or started here outlives the script.
enter() {
    local root=$1 home name setting; shift
    home=$root/root
    mkdir -p "$root"
    base_system "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mkdir -p "$root/opt/rust"
    mount --bind "$FRESH_RUST" "$root/opt/rust"
    mount -o remount,bind,ro "$root/opt/rust"
    # Use this machine's network.
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp -rL /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
    proxy=$(apt-config dump 2>/dev/null | grep -i '^Acquire::https\?::Proxy ' || true)
    printf '%s\n' "$proxy" >"$root/etc/apt/apt.conf.d/90proxy"

    git clone -q --no-hardlinks "file://$REPO_DIR" "$home/livechat-ws"
    kept archives "$root/var/cache/apt/archives"
    mkdir -p "$root/var/cache/apt/archives/partial"
    kept cargo "$home/.cargo"
    kept target "$home/livechat-ws/target"
    kept jars "$home/livechat-ws/.cache"
    for name in config.toml config; do
        if [ -f "${CARGO_HOME:-$HOME/.cargo}/$name" ]; then cp "${CARGO_HOME:-$HOME/.cargo}/$name" "$home/.cargo/"; fi
    done
    if [ -f "$HOME/.m2/settings.xml" ]; then mkdir -p "$home/.m2"; cp "$HOME/.m2/settings.xml" "$home/.m2/"; fi

    local env=(HOME=/root "PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" LANG=C.UTF-8
        "TERM=${TERM:-dumb}" "FRESH_STEPS=${FRESH_STEPS:-run test}" "README_LINE=$(readme_line)"
        "FREE_PORT_1=$(free_port)" "FREE_PORT_2=$(free_port)" "FREE_PORT_3=$(free_port)")
    while IFS= read -r setting; do
        # Of this machine's files: there are others in there.
        case $setting in CARGO_HOME=* | CARGO_TARGET_DIR=* | CARGO_BUILD_TARGET_DIR=*) ;; *) env+=("$setting") ;; esac
    done < <(env | grep -E '^(CARGO_[A-Z0-9_]+|https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY|FAULT_ROUNDS)=' || true)
    in_the_root >"$home/steps.sh"
    chroot "$root" env -i "${env[@]}" bash /root/steps.sh "$@"
}

# readme_line: the packages that the README says to install.
readme_line() {
    local line
    line=$(sed -n 's/^\(apt-get install [a-z0-9+ -]*[a-z0-9+]\).*/\1/p' "$REPO_DIR/README.md" | head -n 1)
    [ -n "$line" ] || die "README.md has no line that begins with apt-get install"
    echo "$line"
}

if [ "${1:-}" = --inside-namespaces ]; then
    shift
    enter "$@"
    exit 0
fi

[ "$(id -u)" -eq 0 ] || die "a chroot needs root: run it by sudo"
have rustc || die "rustc is missing: install Rust from https://rustup.rs and run this again"
have git || install_packages "Git" git
have debootstrap || install_packages "debootstrap" debootstrap
unshare --mount --pid --fork true 2>/dev/null || die "namespaces can't be made here (a container without CAP_SYS_ADMIN?)"
FRESH_RUST=$(cd "$REPO_DIR" && rustc --print sysroot)
FRESH_RUST=$(readlink -f "$FRESH_RUST")
export FRESH_RUST
if [ -n "${FRESH_CACHE:-}" ]; then
    mkdir -p "$FRESH_CACHE"
    FRESH_CACHE=$(cd "$FRESH_CACHE" && pwd)
    export FRESH_CACHE
fi
if [ -n "$(git -C "$REPO_DIR" status --porcelain)" ]; then log "note: what is not committed is not tried"; fi

make_scratch fresh
run_child timeout --kill-after=30 "${FRESH_TIMEOUT:-4h}" \
    unshare --mount --propagation private --pid --fork --kill-child \
    bash "${BASH_SOURCE[0]}" --inside-namespaces "$SCRATCH/root" "$@"
