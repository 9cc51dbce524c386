#!/bin/sh
# Runs weft in a real cluster on this machine: builds what is missing, starts two nodes, runs the tests of this folder.
# usage: run.sh [go test arguments]     needs root; WEFT_E2E_NETWORK=bridge takes the reference plugins instead of weft
set -eu
here=$(cd "$(dirname "$0")" && pwd)
WEFT_CACHE=$(realpath -m "${WEFT_CACHE:-$here/../../.cache}")
export WEFT_CACHE
cd "$here/../.."
"$here/build.sh" core
if [ "${WEFT_E2E_NETWORK:-weft}" = weft ] && [ -z "${WEFT_BIN:-}" ]; then
    WEFT_BIN=$WEFT_CACHE/e2e/bin/weft
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$WEFT_BIN" .
fi
WEFT_BIN=${WEFT_BIN:-} WEFT_E2E=1 exec go test -count=1 -v -timeout 20m "$@" ./test/e2e/
