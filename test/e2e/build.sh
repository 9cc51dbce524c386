#!/bin/sh
# Builds the programs a test cluster is made of, from the versions pinned in k8s/go.mod, into $WEFT_CACHE/e2e/bin.
# usage: build.sh [core|conformance]     core (default): what a cluster needs; conformance: also e2e.test and CoreDNS
# A program is built only when it is missing or when the pins or the compiler changed. Cold, core takes
# about 12 minutes on 2 cores; it needs 4 GB in Go's build cache.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bin=${WEFT_CACHE:-$here/../../.cache}/e2e/bin
set_name=${1:-core}
case $set_name in core | conformance) ;; *) echo "build.sh: unknown set '$set_name': use core or conformance" >&2; exit 2 ;; esac

mkdir -p "$bin/stamps"
bin=$(cd "$bin" && pwd)
exec 9>"$bin/lock"
flock 9 # two runs at once would build everything twice

cd "$here/k8s"
export CGO_ENABLED=0
pins=$({ cat go.mod go.sum; go env GOVERSION GOARCH; } | sha256sum | cut -d' ' -f1)
kube_version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${kube_version#v1.}
minor=${minor%%.*}
# Both packages carry the version: the servers report the first, clients send the second as their user agent.
version_flags=
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    version_flags="$version_flags -X $package.gitVersion=$kube_version -X $package.gitMajor=1 -X $package.gitMinor=$minor -X $package.gitTreeState=clean"
done

# build NAME COMMAND PACKAGE: runs `go COMMAND` for one program unless its stamp says that it is up to date.
build() {
    [ -x "$bin/$1" ] && [ "$(cat "$bin/stamps/$1" 2>/dev/null)" = "$pins" ] && return
    echo "building $1" >&2
    # $2 is split on purpose: it is a command with its flag.
    nice go $2 -trimpath -ldflags "-s -w$version_flags" -o "$bin/$1.new" "$3"
    mv "$bin/$1.new" "$bin/$1"
    echo "$pins" >"$bin/stamps/$1"
}

build etcd build go.etcd.io/etcd/server/v3
build containerd build github.com/containerd/containerd/v2/cmd/containerd
build containerd-shim-runc-v2 build github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
build ctr build github.com/containerd/containerd/v2/cmd/ctr
for program in kubectl kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
    build "$program" build "k8s.io/kubernetes/cmd/$program"
done
build agnhost build k8s.io/kubernetes/test/images/agnhost
# Ours, and too small for a stamp.
go build -trimpath -ldflags '-s -w' -o "$bin/pause" ./pause

if [ "$set_name" = conformance ]; then
    build e2e.test "test -c" k8s.io/kubernetes/test/e2e
    build coredns build github.com/coredns/coredns
fi
