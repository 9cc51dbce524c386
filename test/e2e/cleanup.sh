#!/bin/sh
# Removes what the test cluster leaves on the machine once its namespaces are gone: cgroups and the scratch folder.
# usage: cleanup.sh DIR GROUP     starts to work when standard input ends, so also after the test process was killed
# Exit code 1: something was still in use after 30 seconds; it is named on standard error.
set -u
dir=$1 group=$2
cat >/dev/null

left() { find /sys/fs/cgroup -type d -name "$group" -prune; }

tries=150
while [ -n "$(left)" ] && [ $tries -gt 0 ]; do
    # Only processes of the cluster are in its cgroups. Most are gone already: the nodes' first processes watch the same pipe.
    left | while read -r top; do
        find "$top" -name cgroup.procs -exec cat {} + | xargs -r kill -KILL 2>/dev/null
        find "$top" -depth -type d -exec rmdir {} \; 2>/dev/null
    done
    tries=$((tries - 1))
    sleep 0.2
done
rm -rf "$dir"
rest=$(left; ls -d "$dir" 2>/dev/null)
[ -z "$rest" ] || { echo "left behind: $rest" >&2; exit 1; }
