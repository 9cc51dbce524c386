#!/bin/sh
# Builds the programs a test cluster is made of, from the versions pinned in k8s/go.mod, into $WEFT_CACHE/e2e/bin.
# usage: build.sh [core|conformance]     core (default): what a cluster needs; conformance: also what the official suite
#        needs: e2e.test and its runner, CoreDNS and a Debian root for the images of its Pods
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

# What the suite runs in Pods.
root_packages=bind9-dnsutils,curl,iperf,iproute2,iputils-ping,netcat-openbsd,socat,wget

# build_root DIR: packs a Debian root with these packages as the image layer DIR/debian.tar. About a minute.
build_root() {
    . /etc/os-release
    stamp="$VERSION_CODENAME $root_packages"
    [ -f "$1/debian.tar" ] && [ "$(cat "$1/debian.stamp" 2>/dev/null)" = "$stamp" ] && return
    echo "building the Debian root" >&2
    mkdir -p "$1"
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    # The mirror that this machine uses; debootstrap has its own when apt names none.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $VERSION_CODENAME" 'Component: main' | head -n 1)
    # In its own mount namespace: /proc of the root must not stay mounted when the run is cut off.
    if ! nice unshare --mount debootstrap --variant=minbase --include="$root_packages" "$VERSION_CODENAME" "$root" $mirror >"$1/debian.log" 2>&1; then
        tail -n 20 "$1/debian.log" >&2
        exit 1
    fi
    echo tries=1 >>"$root/etc/wgetrc" # as busybox's wget, for which the suite was written
    rm -rf "$root"/dev/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc "$root"/usr/share/locale "$root"/usr/share/man
    tar --create --sort=name --numeric-owner --directory="$root" --file="$1/debian.tar.new" .
    mv "$1/debian.tar.new" "$1/debian.tar"
    echo "$stamp" >"$1/debian.stamp"
}

if [ "$set_name" = conformance ]; then
    build e2e.test "test -c" k8s.io/kubernetes/test/e2e
    build ginkgo build github.com/onsi/ginkgo/v2/ginkgo
    build coredns build github.com/coredns/coredns
    build regression-issue-74839 build k8s.io/kubernetes/test/images/regression-issue-74839
    # The certificate and key of the suite's HTTPS backends.
    cp "$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)"/test/images/agnhost/porter/localhost.* "$bin/"
    build_root "$bin/../images"
fi
