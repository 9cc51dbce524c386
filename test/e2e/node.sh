#!/bin/sh
# Makes a node of the test cluster out of namespaces: its own network, processes, cgroups, host name and view of the
# file system. It stays until standard input ends; then the kernel ends every process in it and drops its mounts.
# usage: node.sh create NAME DIR GROUP BIN     (node.sh boot … is the second half, inside the namespaces)
#   DIR    scratch folder of this node; DIR/pid appears once the node is up and holds the host's pid of its first process
#   GROUP  name of the cgroup to create below the caller's own, in every hierarchy
#   BIN    folder with the built programs; pause is the first process
set -eu
step=$1 name=$2 dir=$3 group=$4 bin=$5

# Prints "controllers path folder" for each cgroup hierarchy; folder is where it is mounted below /sys/fs/cgroup.
hierarchies() {
    while IFS=: read -r number controllers path; do
        case $number$controllers in
        0) echo none "$path" unified ;;
        *) echo "${controllers:-none}" "$path" "${controllers#name=}" ;;
        esac
    done </proc/self/cgroup
}

# An own copy-on-write version of a folder: what the node writes there is never seen outside.
private() {
    layers=$dir/layers$(echo "$1" | tr / -)
    mkdir -p "$layers/upper" "$layers/work"
    mount -t overlay -o "lowerdir=$1,upperdir=$layers/upper,workdir=$layers/work" overlay "$1"
}

# A real folder of the scratch folder at a path of the node: overlayfs cannot lie on overlayfs, and containerd uses it.
own() {
    mkdir -p "$dir/$(basename "$1")" "$1"
    mount --bind "$dir/$(basename "$1")" "$1"
}

create() {
    if [ ! -d /sys/fs/cgroup/unified ]; then
        echo "this machine has cgroup v2 alone: the test cluster needs the v1 controllers too" >&2
        exit 1
    fi
    # Below the caller's own cgroups, so that a limit set on the caller holds for the node too.
    hierarchies >"$dir/hierarchies"
    while read -r controllers path folder; do
        parent=/sys/fs/cgroup/$folder${path%/}
        mkdir -p "$parent/$group"
        if [ "$folder" = cpuset ]; then # a new cpuset is empty and takes no process until it has both
            for part in "${group%%/*}" "$group"; do
                cat "$parent/cpuset.cpus" >"$parent/$part/cpuset.cpus"
                cat "$parent/cpuset.mems" >"$parent/$part/cpuset.mems"
            done
        fi
        echo 0 >"$parent/$group/cgroup.procs"
    done <"$dir/hierarchies"
    exec unshare --mount --net --uts --ipc --pid --cgroup --fork --kill-child --propagation private \
        sh "$0" boot "$name" "$dir" "$group" "$bin"
}

boot() {
    # The old /proc still tells the pid that the host sees.
    read -r pid rest </proc/self/stat
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t bpf bpf /sys/fs/bpf
    mount -t tmpfs tmpfs /sys/fs/cgroup
    hierarchies | while read -r controllers path folder; do
        mkdir "/sys/fs/cgroup/$folder"
        case $controllers in
        none) mount -t cgroup2 cgroup2 "/sys/fs/cgroup/$folder" ;;
        name=*) mount -t cgroup -o "none,$controllers" cgroup "/sys/fs/cgroup/$folder" ;;
        *) mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$folder" ;;
        esac
    done
    private /etc
    private /opt
    private /usr/local
    private /var
    own /var/lib/containerd
    own /var/lib/kubelet
    mount -t tmpfs tmpfs /run
    mkdir /run/netns

    # The kubelet sets these for the whole machine, not for a node; it leaves alone what already has its values.
    mkdir /run/sysctl
    for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
        kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
        path=${setting%=*}
        file=/run/sysctl/$(basename "$path")
        echo "${setting#*=}" >"$file"
        mount --bind "$file" "/proc/sys/$path"
    done

    hostname "$name"
    echo "$name" >/etc/hostname
    printf '127.0.0.1 localhost\n::1 localhost\n' >/etc/hosts
    ip link set lo up
    echo "$pid" >"$dir/pid.new"
    mv "$dir/pid.new" "$dir/pid"
    exec "$bin/pause" until-eof
}

"$step"
