#!/usr/bin/env bash
# A real Kafka broker without a container engine: one node in KRaft mode, bound to 127.0.0.1, from the jars of Maven Central.
#
#   kafka-local.sh prepare           fetch the jars and compile the test client (once; kept in .cache)
#   kafka-local.sh start DIR PORT    start and wait until it answers; the same DIR again resumes the same data
#   kafka-local.sh join DIR PORT FIRST_DIR
#                                    the same for a second broker of the cluster whose first one was started in FIRST_DIR;
#                                    it holds no metadata, so that it can be killed and the cluster goes on
#   kafka-local.sh stop DIR          SIGTERM
#   kafka-local.sh kill DIR          SIGKILL
#   kafka-local.sh pause DIR         SIGSTOP; resume DIR: SIGCONT
#   kafka-local.sh ready PORT [N]    exit status 0 if a broker that knows N brokers (1) answers there
#
# KAFKA_PROPERTIES: more lines for server.properties. KAFKA_HEAP: the broker's maximum heap (512m).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Beside the jars: it is of no use without them.
ARCHIVE="$KAFKA_CACHE/libs/classes.jsa"

java_ok() {
    local version
    have java && have javac || return 1
    version=$(javac -version 2>&1 | sed -n 's/^javac \([0-9]*\).*/\1/p')
    [ "${version:-0}" -ge 17 ]
}

download() {
    local partial="$KAFKA_CACHE/libs.partial" attempt
    for attempt in 1 2 3; do
        rm -rf "$partial"
        # A separate run for each try, so that a broken file of the last one is fetched again (-U).
        if mvn -q -B -U -f "$SCRIPTS_DIR/kafka/pom.xml" dependency:copy-dependencies \
            -DincludeScope=runtime -DoutputDirectory="$partial" </dev/null >&2; then
            rm -rf "$KAFKA_CACHE/libs"
            mv "$partial" "$KAFKA_CACHE/libs"
            return 0
        fi
        log "download $attempt of Kafka's jars failed"
    done
    return 1
}

# stamp_is FILE TEXT
stamp_is() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

prepare() {
    mkdir -p "$KAFKA_CACHE"
    # The cache ignores itself, so the repository's .gitignore needs no rule for it.
    echo '*' >"$REPO_DIR/.cache/.gitignore"
    # Two concurrent runs must not fetch into one folder at the same time.
    exec 9>"$KAFKA_CACHE/lock"
    flock 9
    java_ok || install_packages "A JDK of version 17 or later" openjdk-17-jdk-headless
    local want
    want=$(cksum <"$SCRIPTS_DIR/kafka/pom.xml")
    # The stamp is written last: a folder without it is an incomplete download.
    if ! stamp_is "$KAFKA_CACHE/libs.stamp" "$want"; then
        have mvn || install_packages "Maven" maven
        log "fetching Kafka $KAFKA_VERSION from Maven Central (43 MB, once) ..."
        rm -f "$KAFKA_CACHE/libs.stamp"
        download || die "could not fetch Kafka from Maven Central"
        echo "$want" >"$KAFKA_CACHE/libs.stamp"
    fi
    local client="$REPO_DIR/tests/kafka-client/Client.java"
    want=$(cksum <"$client")
    # Compiled once: `java Client.java` would spend a second compiling at every call. A jar: folders can't be in an archive's
    # class path.
    if ! stamp_is "$KAFKA_CACHE/client.stamp" "jar $want"; then
        rm -rf "$KAFKA_CACHE/client" "$KAFKA_CACHE/client.partial"
        javac -Xlint:all,-processing,-classfile -cp "$KAFKA_CACHE/libs/*" -d "$KAFKA_CACHE/client.partial" "$client" >&2
        mkdir "$KAFKA_CACHE/client"
        jar --create --file "$KAFKA_CACHE/client/client.jar" -C "$KAFKA_CACHE/client.partial" .
        rm -rf "$KAFKA_CACHE/client.partial"
        echo "jar $want" >"$KAFKA_CACHE/client.stamp"
    fi
    # It is of use to this Java, for these files at this place only.
    want=$(ls -lL --time-style=full-iso "$(command -v java)" "$KAFKA_CACHE"/libs/*.jar | cksum)
    if ! stamp_is "$ARCHIVE.stamp" "$want"; then
        log "archiving Kafka's classes (once) ..."
        rm -f "$ARCHIVE" "$ARCHIVE.partial"
        if ! { archive && mv "$ARCHIVE.partial" "$ARCHIVE"; }; then
            log "Java has not archived Kafka's classes: its programs take longer to start"
        fi
        echo "$want" >"$ARCHIVE.stamp"
    fi
    exec 9>&-
}

# archive: the classes that a broker loads, parsed and checked, for the JVMs of brokers and clients: they start with half the CPU
# time. A JVM that can't use it does without.
archive() (
    exec 9>&-
    make_scratch classes
    BROKER+=("-XX:ArchiveClassesAtExit=$ARCHIVE.partial")
    run_broker "$SCRATCH/kafka" "$(free_port)"
    # It writes the archive when it ends.
    stop_group "$(read_pid "$SCRATCH/kafka/kafka.pid")" 60
)

# ready PORT: sends a Metadata request (api 3, version 1, no topics) by hand, since a JVM would take a second for each try, and
# looks at the number of brokers in the answer: bytes 9 to 12, after the length and the correlation id. A broker that still starts
# accepts connections but lists none.
ready() {
    local answer want=${2:-${WANT_BROKERS:-1}}
    # shellcheck disable=SC2016
    answer=$(timeout 3 bash -c '
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf "\x00\x00\x00\x0e\x00\x03\x00\x01\x00\x00\x00\x07\xff\xff\x00\x00\x00\x00" >&3
        head -c 12 <&3 | od -An -v -tx1 | tr -d " \n"' _ "$1" 2>/dev/null) || return 1
    [ "${#answer}" -eq 24 ] && [ "${answer:8:8}" = 00000007 ] && [ "$((16#${answer:16:8}))" -ge "$want" ]
}

# configure DIR PORT [CONTROLLER]: with a controller's port, a broker that joins it; without, one with its own.
configure() {
    local dir=$1 port=$2 controller=${3:-} roles=broker node=2 listeners=PLAINTEXT://127.0.0.1:$2
    if [ -z "$controller" ]; then
        controller=$(free_port)
        roles=broker,controller
        node=1
        listeners=$listeners,CONTROLLER://127.0.0.1:$controller
    fi
    cat >"$dir/server.properties" <<END
process.roles=$roles
node.id=$node
controller.quorum.voters=1@127.0.0.1:$controller
listeners=$listeners
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$dir/data
# The server under test must create its topics itself.
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
# Many small topics are created and deleted: free their files soon.
log.segment.delete.delay.ms=1000
# A broker that was killed may register again only when its old session has timed out: with the default of 9 s each restart
# takes 12 s. Tests that restart one often ask for less; a short one could fence a broker that is merely slow.
broker.session.timeout.ms=${KAFKA_SESSION_TIMEOUT_MS:-9000}
broker.heartbeat.interval.ms=500
num.recovery.threads.per.data.dir=2
${KAFKA_PROPERTIES:-}
END
}

# The first compiler is enough for brokers that live for a few minutes, and costs less.
JVM=(java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData -cp "$KAFKA_CACHE/libs/*" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn
    -Dorg.slf4j.simpleLogger.showDateTime=true "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS" -Dlog4j2.level=WARN)
BROKER=(-Xms128m "-Xmx${KAFKA_HEAP:-512m}")

# start DIR PORT [FIRST_DIR]
start() {
    local dir=$1 port=$2 first=${3:-}
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    if read_pid "$dir/kafka.pid" >/dev/null; then die "a broker runs in $dir already"; fi
    prepare
    if [ -f "$ARCHIVE" ]; then JVM+=("-XX:SharedArchiveFile=$ARCHIVE" -Xlog:cds=off -Xlog:cds+dynamic=off); fi
    run_broker "$dir" "$port" "$first"
}

run_broker() {
    local dir=$1 port=$2 first=${3:-} cluster controller=
    mkdir -p "$dir"
    # A server that already answers there would be mistaken for ours.
    if ready "$port"; then die "port $port is taken"; fi
    if [ ! -f "$dir/formatted" ]; then
        # Any 16 bytes in URL-safe base64 make a cluster id; a leading '-' would look like a flag.
        cluster=LC$(head -c 15 /dev/urandom | base64 | tr '+/' 'AB' | tr -d '=' | head -c 20)
        if [ -n "$first" ]; then
            cluster=$(cat "$first/cluster-id")
            controller=$(sed -n 's/^controller.quorum.voters=.*://p' "$first/server.properties")
        fi
        configure "$dir" "$port" "$controller"
        echo "$cluster" >"$dir/cluster-id"
        "${JVM[@]}" -Xmx128m kafka.tools.StorageTool format --config "$dir/server.properties" \
            --cluster-id "$cluster" >"$dir/format.log" 2>&1 ||
            { cat "$dir/format.log" >&2; die "could not format $dir"; }
        : >"$dir/formatted"
    fi
    spawn "$dir" kafka "${JVM[@]}" "${BROKER[@]}" kafka.Kafka "$dir/server.properties"
    # A joining broker answers before the controller has admitted it.
    if [ -n "$first" ]; then WANT_BROKERS=2; fi
    await_service kafka Kafka "$dir" "$port" 90
}

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 64; }

case "${1:-}:$#" in
    prepare:1) prepare ;;
    start:3) start "$2" "$3" ;;
    join:4) start "$2" "$3" "$4" ;;
    stop:2 | kill:2 | pause:2 | resume:2) service_verb kafka "$1" "$2" ;;
    ready:2) ready "$2" ;;
    ready:3) ready "$2" "$3" ;;
    *) usage ;;
esac
