# The commands of CONTRIBUTING.md. `just` lists them; each is one line that works without just, too.

# List the recipes
default:
    @just --list

# Run the server on the embedded defaults
run *args:
    cargo run --release --locked -- {{args}}

# Format the code
fmt:
    cargo fmt --all

# Check format and lints as CI does
lint:
    cargo fmt --all --check
    cargo clippy --release --locked --workspace --all-targets -- -D warnings

# Run the tests with a real Kafka and a real Redis; takes the arguments of cargo test
test *args:
    ./scripts/test.sh {{args}}

# Run the tests that need neither Kafka nor Redis: just unit, or just unit --test e2e chat_
unit *args="--lib":
    cargo test --release --locked {{args}}

# Measure the parts of the server with criterion
bench *args:
    cargo bench --locked -- {{args}}

# Measure the server under load: just load messages --workload a --rounds 3
load *args:
    ./loadtest/run.sh {{args}}

# Check the JavaScript client and the console: just client, or a part, node or browser
client *args:
    ./client/check.sh {{args}}

# Check the specifications in docs/spec, and render docs/API.md
spec:
    node docs/spec/render.mjs
    ./docs/spec/check.sh
    ./docs/spec/fuzz.sh

# Run everything that CI runs
ci:
    ./.ci/run

# Check licences, advisories, bans and sources of the dependencies
deny:
    cargo deny --locked check

# Try clients of other libraries, directly and behind nginx and HAProxy
interop *args:
    ./scripts/interop.sh {{args}}

# Run the README's two commands on a minimal Debian in a chroot, as root
fresh-machine *args:
    ./scripts/fresh-machine.sh {{args}}
