# shellcheck shell=bash
# Shared by the scripts in this folder; sourced, never run. Works on Linux with bash 4.4 or later.

SCRIPTS_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
REPO_DIR="$(dirname "$SCRIPTS_DIR")"
KAFKA_VERSION=4.1.0
KAFKA_CACHE="$REPO_DIR/.cache/kafka-$KAFKA_VERSION"
export SCRIPTS_DIR REPO_DIR KAFKA_VERSION KAFKA_CACHE

# Messages go to stderr: stdout is for cargo's results and the environment lines of services.sh.
log() { printf '%s\n' "$*" >&2; }
die() { log "error: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# install_packages WHY PACKAGE...: from Debian (or Ubuntu), as root or with passwordless sudo.
install_packages() {
    local why=$1; shift
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if have sudo && sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            die "$why is missing. Please install it (on Debian or Ubuntu: sudo apt-get install $*) and run this again."
        fi
    fi
    have apt-get || die "$why is missing and there is no apt-get here. Please install it (Debian calls it: $*) and run this again."
    log "$why is missing: installing $* ..."
    # RUNLEVEL=1 keeps Debian's packages from starting their services: the tests start their own on free ports.
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=300 -qq -y)
    if ! "${apt[@]}" install --no-install-recommends "$@" </dev/null >/dev/null 2>&1; then
        # Usually the package lists are outdated or missing.
        "${apt[@]}" update </dev/null >&2 || true
        "${apt[@]}" install --no-install-recommends "$@" </dev/null >&2 || die "could not install $*"
    fi
}

# install_tools: what Cargo needs beside Rust itself; the README names the same packages. librdkafka and zstd are C, and
# librdkafka's configure asks for C++, too. Without certificates cargo fetches nothing.
install_tools() {
    if ! { have cc && have c++ && have make; }; then
        install_packages "A C and C++ compiler or make (for Kafka's client library)" g++ make
    fi
    if have apt-get && [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
        install_packages "The set of trusted certificates (for cargo)" ca-certificates
    fi
}

# cargo_here SUBCOMMAND ARGUMENT...: cargo for this repository, in any working directory.
cargo_here() { cargo "$1" --manifest-path "$REPO_DIR/Cargo.toml" "${@:2}"; }

# built_in PROFILE: the folder of that profile's binaries.
built_in() {
    local metadata
    metadata=$(cargo_here metadata --format-version 1 --no-deps)
    printf '%s/%s\n' "$(sed 's/.*"target_directory":"\([^"]*\)".*/\1/' <<<"$metadata")" "$1"
}

# build_server: builds the server with the features of scripts/test.sh, so that nothing is built twice.
build_server() { run_child cargo_here test --release --locked --no-run --test memory; }

# free_port: a TCP port of 127.0.0.1 nobody listens on. From below the range the kernel uses for outgoing connections: a client
# that keeps dialling a stopped broker inside that range can be given the very same port, and then connects to itself.
free_port() {
    local port
    for _ in $(seq 200); do
        port=$((15000 + (RANDOM * 32768 + RANDOM) % 15000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return 0
        fi
    done
    die "found no free port on 127.0.0.1"
}

# answer_to REQUEST PORT: the first line that a server on 127.0.0.1 answers; REQUEST is printf's. Status 1 where nobody answers
# within 3 s.
answer_to() {
    # shellcheck disable=SC2016
    timeout 3 bash -c '
        exec 3<>"/dev/tcp/127.0.0.1/$2" || exit 1
        printf "$1" >&3
        IFS= read -r line <&3
        printf "%s" "$line"' _ "$@" 2>/dev/null
}

# wait_for SECONDS WHAT PID COMMAND...: runs COMMAND until it succeeds. PID (or 0) is the process that must stay alive meanwhile.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2 pid=$3; shift 3
    until "$@"; do
        if [ "$pid" -ne 0 ] && ! alive "$pid"; then log "$what ended before it answered"; return 1; fi
        if [ "$SECONDS" -ge "$deadline" ]; then log "$what did not answer in time"; return 1; fi
        sleep 0.2
    done
}

# alive PID: whether the process runs and is not a zombie.
alive() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    [ "${stat%% *}" != Z ]
}

# stop_group PID [SECONDS]: ends a whole process group: TERM, then KILL for what hangs. A stopped (SIGSTOP) process can only
# react to TERM after CONT.
stop_group() {
    local pid=$1 seconds=${2:-10}
    kill -TERM -- "-$pid" 2>/dev/null || return 0
    kill -CONT -- "-$pid" 2>/dev/null || true
    local deadline=$((SECONDS + seconds))
    while group_alive "$pid"; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            kill -KILL -- "-$pid" 2>/dev/null || true
            deadline=$((SECONDS + 5))
            while group_alive "$pid" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
            return 0
        fi
        sleep 0.1
    done
}

# members_of PGID: the processes of a group, from /proc, since a minimal Debian has neither ps nor pgrep.
members_of() {
    local file stat
    for file in /proc/[0-9]*/stat; do
        # A process that has ended meanwhile has no file. A name may contain line breaks: read to the end.
        { IFS= read -r -d '' stat <"$file" || [ -n "$stat" ]; } 2>/dev/null || continue
        # After the name, which is in brackets: state, parent, group.
        # shellcheck disable=SC2086
        set -- "$1" ${stat##*) }
        if [ "${4:-}" = "$1" ]; then echo "${stat%% *}"; fi
    done
}

# called_with TEXT: the processes with this in their command lines, except this shell's own.
called_with() {
    local file argument line
    for file in /proc/[0-9]*/cmdline; do
        line=
        { while IFS= read -r -d '' argument; do line+="$argument "; done <"$file"; } 2>/dev/null || continue
        file=${file%/cmdline}
        if [[ $line == *"$1"* ]] && [ "${file#/proc/}" != $$ ]; then echo "${file#/proc/}"; fi
    done
}

# group_alive PGID: whether any process of the group still runs (zombies don't count: they may have no parent left).
group_alive() {
    local pid
    for pid in $(members_of "$1"); do
        if alive "$pid"; then return 0; fi
    done
    return 1
}

# group_stopped PGID: every thread of the group has stopped. The kernel lets one thread take the SIGSTOP and stop the others: until
# that one has had its turn, which takes a while on a busy machine, they work on.
group_stopped() {
    local pid file stat
    for pid in $(members_of "$1"); do
        for file in "/proc/$pid/task/"*/stat; do
            # A thread that has ended meanwhile has no file.
            { read -r stat <"$file"; } 2>/dev/null || continue
            stat=${stat##*) }
            case ${stat%% *} in T | Z | X) ;; *) return 1 ;; esac
        done
    done
}

# read_pid FILE: the process recorded there, if it is alive and still the same one (pids are reused: the file also holds its
# start time).
read_pid() {
    local pid started
    [ -f "$1" ] && read -r pid started <"$1" || return 1
    alive "$pid" && [ "$(start_time "$pid")" = "$started" ] && echo "$pid"
}

start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # Field 22; the name in field 2 may hold spaces, so count from the bracket that ends it.
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    echo "${20}"
}

# spawn DIR NAME COMMAND...: starts COMMAND in a session of its own (so that its group can be ended as one), output to
# DIR/NAME.log, pid to DIR/NAME.pid. The child notes its own pid before it turns into COMMAND: whoever interrupts us meanwhile
# still finds it. Its standard files are all redirected, or a caller that reads our output would wait for it.
spawn() {
    local dir=$1 name=$2; shift 2
    rm -f "$dir/$name.pid"
    # shellcheck disable=SC2016
    setsid bash -c '. "$1"; echo "$$ $(start_time "$$")" >"$2.new"; mv "$2.new" "$2"; shift 2; exec "$@"' _ \
        "$SCRIPTS_DIR/lib.sh" "$dir/$name.pid" "$@" </dev/null >>"$dir/$name.log" 2>&1 &
    wait_for 10 "$name" 0 test -f "$dir/$name.pid"
}

# start_detached NAME COMMAND...: spawn in SCRATCH, from a subshell: the script's own shell would report that it was killed.
start_detached() { (spawn "$SCRATCH" "$@"); }

# await_service NAME WHAT DIR PORT SECONDS: waits until a service that was just spawned answers, as the caller's `ready PORT` sees
# it. One that does not shows the end of its log and is ended, and so is the script.
await_service() {
    local name=$1 what=$2 dir=$3 port=$4 seconds=$5 pid
    read -r pid _ <"$dir/$name.pid"
    if ! wait_for "$seconds" "$what on port $port" "$pid" ready "$port"; then
        tail -n 40 "$dir/$name.log" >&2
        service_verb "$name" kill "$dir"
        exit 1
    fi
}

# service_verb NAME VERB DIR: stop, kill, pause or resume a service started by spawn.
service_verb() {
    local name=$1 verb=$2 dir=$3 pid
    if ! pid=$(read_pid "$dir/$name.pid"); then
        case $verb in
            stop | kill) rm -f "$dir/$name.pid"; return 0 ;;
            *) die "no $name runs in $dir" ;;
        esac
    fi
    case $verb in
        stop) stop_group "$pid" 15; rm -f "$dir/$name.pid" ;;
        kill) kill -KILL -- "-$pid"; while group_alive "$pid"; do sleep 0.05; done; rm -f "$dir/$name.pid" ;;
        pause) kill -STOP -- "-$pid"; until group_stopped "$pid"; do sleep 0.01; done ;;
        resume) kill -CONT -- "-$pid" ;;
    esac
}

# stop_all_under DIR: ends every service started anywhere below a scratch folder, also those that a killed test left behind:
# by pid file, and by the folder's name in the command line for one that was interrupted before it wrote its file.
stop_all_under() {
    local file pid pids=()
    while IFS= read -r file; do
        if pid=$(read_pid "$file"); then pids+=("$pid"); fi
    done < <(find "$1" -name '*.pid' -type f 2>/dev/null)
    while IFS= read -r pid; do pids+=("$pid"); done < <(called_with "$1/")
    # Scratch data is discarded, so an orderly shutdown would be pointless.
    for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || kill -KILL "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do while alive "$pid"; do sleep 0.05; done; done
}

# run_child COMMAND...: runs it in the background in a group of its own and waits. A trap then runs at once (bash delays it while
# a foreground command runs), and end_child can end the whole group. Unlike a plain '&', this leaves SIGINT as it is.
CHILD=
run_child() {
    local status=0
    set -m
    "$@" </dev/null &
    CHILD=$!
    set +m
    wait "$CHILD" || status=$?
    CHILD=
    return "$status"
}

end_child() {
    if [ -n "$CHILD" ]; then stop_group "$CHILD" "${1:-10}"; fi
    CHILD=
}

# start_services SCRATCH: one Kafka and one Redis on free ports; sets KAFKA_PORT and REDIS_PORT. In containers where there is an
# engine, else as processes of this machine. LIVECHAT_TEST_SERVICES=docker or =local decides it by hand.
COMPOSE=()
start_services() {
    local scratch=$1 want=${LIVECHAT_TEST_SERVICES:-auto}
    KAFKA_PORT=$(free_port)
    REDIS_PORT=$(free_port)
    if [ "$want" != local ] && [ -f "$REPO_DIR/docker-compose.yml" ] && docker info >/dev/null 2>&1; then
        if start_in_docker "$scratch"; then return 0; fi
        if [ "$want" = docker ]; then die "the containers did not start"; fi
        log "the containers did not start: running Kafka and Redis as local processes instead"
        stop_docker
    elif [ "$want" = docker ]; then
        die "no container engine answers (docker info)"
    fi
    run_child "$SCRIPTS_DIR/redis-local.sh" start "$scratch/redis" "$REDIS_PORT"
    run_child "$SCRIPTS_DIR/kafka-local.sh" start "$scratch/kafka" "$KAFKA_PORT"
}

start_in_docker() {
    COMPOSE=(docker compose --project-name "livechat-test-$$" --project-directory "$REPO_DIR"
        -f "$REPO_DIR/docker-compose.yml" -f "$SCRIPTS_DIR/docker-compose.test.yml")
    export TEST_KAFKA_PORT=$KAFKA_PORT TEST_REDIS_PORT=$REDIS_PORT
    if run_child "${COMPOSE[@]}" up --detach --quiet-pull kafka redis >"$1/docker.log" 2>&1 &&
        run_child wait_for 90 "Kafka's container" 0 "$SCRIPTS_DIR/kafka-local.sh" ready "$KAFKA_PORT" &&
        run_child wait_for 30 "Redis' container" 0 "$SCRIPTS_DIR/redis-local.sh" ready "$REDIS_PORT"; then
        return 0
    fi
    tail -n 20 "$1/docker.log" >&2
    return 1
}

stop_docker() {
    if [ "${#COMPOSE[@]}" -gt 0 ]; then
        "${COMPOSE[@]}" down --volumes --timeout 1 </dev/null >/dev/null 2>&1 || true
        COMPOSE=()
    fi
}

stop_services() {
    stop_docker
    stop_all_under "$1"
    rm -rf "$1"
}

# make_scratch NAME [SECONDS]: makes a folder of this run's own and sets SCRATCH to it. When the script ends, also by a
# signal, all that it started is ended (a child of run_child has SECONDS for that) and the folder removed.
make_scratch() {
    SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/livechat-$1.XXXXXX")
    # shellcheck disable=SC2064
    trap "clean_up ${2:-10}" EXIT
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
    trap 'interrupted 129' HUP
}

# interrupted STATUS: ends the script. A second signal between here and the clean-up would skip the clean-up.
interrupted() {
    trap '' INT TERM HUP PIPE
    exit "$1"
}

clean_up() {
    local status=$?
    # From here on nothing may cut the clean-up short, be it a second Ctrl-C, a reader of ours that has ended, or a command
    # that fails.
    trap '' INT TERM HUP PIPE
    set +e
    end_child "$1"
    stop_services "$SCRATCH"
    exit "$status"
}
