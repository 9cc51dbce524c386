#!/bin/sh
# Measures weft beside what a user would take instead, on this machine, in one run; prints a table and writes .cache/bench.
# usage: run.sh [-run REGEX] [-rounds N] [-quick]     needs root, and what make deps installs
set -eu
cd "$(dirname "$0")/../.."
[ -x bin/weft ] || make --no-print-directory build
mkdir -p .cache/bench/bin
for program in . launch empty; do
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ".cache/bench/bin/$(basename "$(realpath "test/bench/$program")")" "./test/bench/$program"
done
# What weft's speaker is made of, as its own program, of the same version.
if [ ! -x .cache/bench/bin/gobgpd ]; then
    out=$PWD/.cache/bench/bin/gobgpd
    (cd "$(go list -m -f '{{.Dir}}' github.com/osrg/gobgp/v3)" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out" ./cmd/gobgpd)
fi
# Before everything else that runs: both sides of every comparison, so that the machine need not be quiet.
exec nice -n -20 .cache/bench/bin/bench -weft bin/weft -bin .cache/bench/bin -out .cache/bench "$@"
