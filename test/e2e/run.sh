#!/bin/sh
# Runs weft in a real cluster on this machine: builds what is missing, starts two nodes, runs the tests of this folder.
# usage: run.sh [go test arguments]     needs root; WEFT_E2E_NETWORK=bridge takes the reference plugins instead of weft
#        run.sh -run Conformance        runs the network tests of the official suite; WEFT_E2E_FOCUS and WEFT_E2E_SKIP,
#                                       regular expressions of test names, replace what is run and what is left out;
#                                       WEFT_E2E_NODES=3 makes three nodes, each a zone, for the tests that want three; 6 make two in each
set -eu
here=$(cd "$(dirname "$0")" && pwd)
WEFT_CACHE=$(realpath -m "${WEFT_CACHE:-$here/../../.cache}")
export WEFT_CACHE
cd "$here/../.."
mkdir -p "$WEFT_CACHE/e2e"
exec 8>"$WEFT_CACHE/e2e/run.lock"
flock 8 # two clusters at once would write into each other's logs; the second one waits
# The suite takes minutes and larger images: only when asked for.
case "$*" in
*Conformance*) set_name=conformance WEFT_CONFORMANCE=1 limit=2h ;;
*) set_name=core WEFT_CONFORMANCE= limit=20m ;;
esac
export WEFT_CONFORMANCE
"$here/build.sh" $set_name
if [ "${WEFT_E2E_NETWORK:-weft}" = weft ] && [ -z "${WEFT_BIN:-}" ]; then
    WEFT_BIN=$WEFT_CACHE/e2e/bin/weft
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$WEFT_BIN" .
fi
WEFT_BIN=${WEFT_BIN:-} WEFT_E2E=1 exec go test -count=1 -v -timeout $limit "$@" ./test/e2e/
