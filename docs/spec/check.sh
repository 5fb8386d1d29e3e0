#!/usr/bin/env bash
# Checks docs/spec: openapi.json and asyncapi.json against the meta-schemas of OpenAPI 3.1 and AsyncAPI 3.0, the schemas and
# their examples, references; and that docs/API.md is what render.mjs makes of them. Then it breaks copies of the documents,
# each of which must be refused. The packages are those of the lock file; some 10 s.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

HERE=$REPO_DIR/docs/spec
have node || install_packages "Node, of version 18 or later," nodejs
have npm || install_packages "Node's package manager" npm
make_scratch spec

if ! [ "$HERE/node_modules/.package-lock.json" -nt "$HERE/package-lock.json" ]; then
    run_child npm ci --prefix "$HERE" --cache "$SCRATCH/npm" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
fi

log "ok      $(node "$HERE/validate.mjs" "$HERE")"
node "$HERE/render.mjs" --check
log "ok      docs/API.md is current"

# broken FILE CHANGE: a copy with that document changed by a line of JavaScript is refused.
broken() {
    local file=$1 change=$2
    rm -rf "$SCRATCH/broken"
    mkdir "$SCRATCH/broken"
    cp "$HERE"/{openapi,asyncapi,schemas}.json "$SCRATCH/broken/"
    node -e '
        const fs = require("node:fs"), [path, change] = process.argv.slice(1);
        const doc = JSON.parse(fs.readFileSync(path, "utf8"));
        new Function("doc", change)(doc);
        fs.writeFileSync(path, JSON.stringify(doc));' "$SCRATCH/broken/$file" "$change"
    if node "$HERE/validate.mjs" "$SCRATCH/broken" >"$SCRATCH/out" 2>&1; then
        die "$file is accepted after: $change"
    fi
    # It was refused, and did not fall over.
    if grep -q 'at .*\.mjs:[0-9]' "$SCRATCH/out"; then cat "$SCRATCH/out" >&2; exit 1; fi
    log "ok      refused: $file, $change"
}

broken openapi.json 'doc.openapi = "3.0.3"'
broken openapi.json 'delete doc.info.title'
broken openapi.json 'doc.paths["/health"].get.responses = []'
broken openapi.json 'doc.paths["/live"].get.parameters = [{ name: "x", in: "nowhere" }]'
broken openapi.json 'doc.paths["/api/sessions"].parameters = [{ name: "x", in: "path", required: true, schema: {} }]'
broken openapi.json 'doc.paths["/health"].get.responses[200].content["application/json"].schema.$ref = "schemas.json#/$defs/No"'
broken asyncapi.json 'doc.asyncapi = "2.6.0"'
broken asyncapi.json 'doc.channels.session.address = 7'
broken asyncapi.json 'doc.operations.sendFrames.action = "publish"'
broken asyncapi.json 'doc.components.messages.Pong.payload.$ref = "schemas.json#/$defs/No"'
broken schemas.json 'doc.$defs.Pong.properties.data.requird = []'
broken schemas.json 'doc.$defs.Pong.examples[0].data.timestamp = "yesterday"'
broken schemas.json 'doc.$defs.Pong.type = "objekt"'
