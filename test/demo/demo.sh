#!/usr/bin/env bash
# Three nodes on this machine, and a proof of each claim. Every command that is shown is run, and its output is real.
# usage: demo.sh     needs root; WEFT_BIN names the binary (bin/weft if unset). The exit code is 0 only if all was proved.
set -uo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "the demo needs root: it makes network namespaces (sudo make demo)" >&2; exit 1; }
binary=$(realpath "${WEFT_BIN:-bin/weft}")
[ -x "$binary" ] || { echo "$binary is not there: make build" >&2; exit 1; }

bold='' green='' red='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; fi

scratch=$(mktemp -d)
ln -s "$binary" "$scratch/weft"
export PATH=$scratch:$PATH WEFT_LAB=demo-$$
tidy() {
    weft lab down
    rm -rf "$scratch"
}
trap tidy EXIT
trap 'exit 130' INT TERM

# What the host itself shows of a lab; processes that have ended and wait for init do not count.
traces() {
    ip -o link | grep -E ' (weft|node[0-9]|subnet[0-9]|router|outside)'
    ip netns list | grep -E 'weft|node[0-9]'
    grep -F "$WEFT_LAB" /proc/self/mountinfo
    ls -d "/run/weft-lab/$WEFT_LAB" 2>/dev/null
    ps -eo stat,args | grep -v '^Z' | grep -F "/$WEFT_LAB " | grep -v grep
}
before=$(traces)

say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

# Shows a command, runs it, shows its output (also kept in $out) and keeps its exit code in $rc.
out='' rc=0
show() {
    printf '%s$ %s%s\n' "$bold" "$1" "$plain"
    out=$(eval "$1" 2>&1)
    rc=$?
    [ -z "$out" ] || printf '%s\n' "$out"
    return 0
}

claims=() results=()
# Notes whether a claim was proved: by the exit code of the rest of the line.
prove() {
    local claim=$1
    shift
    claims+=("$claim")
    if "$@"; then results+=(ok); else results+=(FAILED); fi
}

lab() { weft lab status -o json; }
# All addresses of Pods, one a line: those of the Pod named, or of the node, or of all.
addresses() { lab | jq -r --arg it "${1:-}" '.nodes[] | .name as $node | .pods[]? | select($it == "" or .name == $it or $node == $it) | .addresses[]'; }
address() { addresses "$1" | sed -n "$2p"; }
# Whether an address lies in one of the node's Pod ranges, as the kernel's own routing table sees it.
in_slice() { weft lab exec "$2" -- ip route get "$1" 2>&1 | grep -q ' weftp'; }

say "Three nodes: namespaces with a weftd each; node1 and node3 on one subnet, node2 behind a router"
show "weft lab up --nodes 3 --subnets 2 --pod-cidr node3=10.244.3.0/28"
prove "three nodes are up" test "$rc" = 0
[ "$rc" = 0 ] || exit 1

say "The network configuration and the plugins on disk"
show "weft lab exec node1 -- cat /etc/cni/net.d/10-weft.conflist"
conflist=$out
show "weft lab exec node1 -- ls -l /opt/cni/bin"
on_disk() {
    local node
    jq -e '.plugins[0].type == "weft-cni"' <<<"$conflist" >/dev/null || return 1
    for node in node1 node2 node3; do
        weft lab exec $node -- sh -c 'test -s /etc/cni/net.d/10-weft.conflist && test -x /opt/cni/bin/weft-cni && test -x /opt/cni/bin/loopback' || return 1
    done
}
prove "conflist and plugins are on every node's disk" on_disk

say "A Pod on each node, through the real CNI call"
show "weft lab run --node node1 web1 neighbour"
show "weft lab run --node node2 web2"
show "weft lab run --node node3 web3"
show "weft lab status"
slices() {
    local node pod n
    for n in 1 2 3; do
        node=node$n pod=web$n
        [[ $(address $pod 1) == 10.244.$n.* && $(address $pod 2) == fd00:10:244:$n::* ]] || return 1
        in_slice "$(address $pod 1)" $node && in_slice "$(address $pod 2)" $node || return 1
    done
}
prove "each Pod has an IPv4 and an IPv6 address from its node's slice" slices

say "How a Pod is wired: a veth pair and host routes, no bridge"
show "weft lab exec web1 -- ip -br address"
show "weft lab exec web1 -- ip route"
show "weft lab exec web1 -- ip neigh show nud permanent"
show "weft lab exec node1 -- ip -br link"
show "weft lab exec node1 -- ip route"
routes=$out
show "weft lab exec node1 -- ip -6 route show proto 87"
wired() {
    grep -Eq "^$(address web1 1) dev weftp" <<<"$routes" &&       # its own Pod by its veth
        grep -Eq '^10\.244\.2\.0/24 .*dev weft\.vx' <<<"$routes" && # node2's behind the router by the tunnel
        grep -Eq '^10\.244\.3\.0/28 .*dev eth0' <<<"$routes" &&     # node3's on the same subnet without
        [ -z "$(weft lab exec node1 -- ip -o link show type bridge_slave)" ]
}
prove "veth pairs and host routes; the tunnel only where a router is in between" wired

say "Pod to Pod: who answers, and which client address the server saw"
reach() { # FROM TO FAMILY
    local url
    url=$(address "$2" "$3")
    [[ $url != *:* ]] || url="[$url]"
    show "weft lab exec $1 -- weft lab-pod get http://$url:8080/"
    jq -e --arg pod "default/$2" --arg client "$(address "$1" "$3")" '.pod == $pod and .client == $client' <<<"$out" >/dev/null
}
prove "same node: the server saw the Pod's own address" reach neighbour web1 1
prove "node1 to node2, tunnel, IPv4: the server saw the Pod's own address" reach web1 web2 1
prove "node1 to node2, tunnel, IPv6: the server saw the Pod's own address" reach web1 web2 2
prove "node1 to node3, native, IPv4: the server saw the Pod's own address" reach web1 web3 1
prove "node1 to node3, native, IPv6: the server saw the Pod's own address" reach web3 web1 2

say "Large packets through the tunnel"
show "weft lab exec web1 -- ip -o link show eth0"
mtu=$(sed -E 's/.* mtu ([0-9]+).*/\1/' <<<"$out")
target=$(address web2 1)
show "weft lab exec web1 -- weft lab-pod get --count 'http://$target:8080/bytes?n=8192' 'http://$target:8080/bytes?n=5000000'"
bodies=$out
show "weft lab exec web1 -- weft lab-pod udp --size $((mtu - 28)) $target:8081     # the largest datagram that fits, unfragmented"
datagram=$out
show "weft lab exec web1 -- weft lab-pod udp --size $((mtu - 27)) $target:8081     # one byte more"
large() {
    [ "$(jq -s 'map(.bytes) | add' <<<"$bodies")" = 5008192 ] && [ "$(jq .bytes <<<"$datagram")" = $((mtu - 28)) ] &&
        [ "$rc" != 0 ] && grep -q 'message too long' <<<"$out"
}
prove "large packets through the tunnel, up to the last byte of the path MTU" large

say "A range that is full (node3 has a /28: 13 addresses for Pods, one of them is taken)"
show "weft lab run --pause --node node3 s1 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 s12"
show "weft lab run --pause --node node3 onemore"
full() { [ "$rc" != 0 ] && grep -q '13 usable, 13 held' <<<"$out" && [ "$(addresses node3 | grep -c '^10\.')" = 13 ]; }
prove "a full range is a clear error with counts and the fix" full

say "Scale down and up: addresses are freed and used again, none twice"
old=$(addresses node3 | sort)
show "weft lab delete s3 s4 s5 s6"
freed=$(comm -23 <(echo "$old") <(addresses node3 | sort) | grep '^10\.')
echo "freed: $(tr '\n' ' ' <<<"$freed")"
show "weft lab exec node3 -- weft ipam list"
show "weft lab run --pause --node node3 t1 t2 t3 t4"
given=$(for pod in t1 t2 t3 t4; do address $pod 1; done | sort)
reused() { [ "$(wc -l <<<"$freed")" = 4 ] && [ "$(sort <<<"$freed")" = "$given" ] && [ -z "$(addresses | sort | uniq -d)" ]; }
prove "addresses freed on scale-down are used again, none twice" reused

say "A Service: one virtual address for web2 and web3, and the rules behind it"
cat > "/run/weft-lab/$WEFT_LAB/manifests/web.yaml" <<YAML
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: NodePort, clusterIP: 10.96.0.80, clusterIPs: [10.96.0.80], ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [$(address web2 1)], conditions: {ready: true}, nodeName: node2}
- {addresses: [$(address web3 1)], conditions: {ready: true}, nodeName: node3}
YAML
served() { weft lab exec node1 -- weft service list -o json | jq -e '.[0].ports[0].endpoints | length == 2' >/dev/null; }
for _ in $(seq 50); do served && break; sleep 0.1; done
show "weft lab exec node1 -- weft service show web"
show "weft lab exec node1 -- nft list map inet weft_services endpoints4"
show "weft lab exec web1 -- weft lab-pod get http://10.96.0.80/"
both() {
    local seen
    seen=$(for _ in $(seq 30); do weft lab exec web1 -- weft lab-pod get http://10.96.0.80/; done | jq -r '.pod + " " + .client' | sort -u)
    [ "$seen" = "default/web2 $(address web1 1)"$'\n'"default/web3 $(address web1 1)" ]
}
prove "a Service's address leads to both Pods, and they see the client's own address" both
from_outside() { weft lab exec outside -- weft lab-pod get "http://172.30.1.11:30080/" >/dev/null; }
prove "its node port answers a host outside of the cluster" from_outside

say "Why does it connect? weft trace asks weft's tables and the kernel's"
show "weft lab exec node1 -- weft trace default/web1 default/web:80"
traced() { [ "$rc" = 0 ] && grep -q 'reaches one of 2 endpoints' <<<"$out" && grep -q 'The kernel of node1 agrees' <<<"$out"; }
prove "weft trace names the rules and both endpoints, and the kernel agrees" traced
show "weft lab daemon kill node1; weft lab exec node1 -- nft flush map inet weft_services endpoints4"
show "weft lab exec node1 -- weft trace default/web1 default/web:80 | tail -n 5"
differs() { grep -q 'endpoints4 lacks 10.96.0.80' <<<"$out"; }
prove "with the daemon dead and an endpoint gone from the kernel, weft trace says so" differs
show "weft lab daemon start node1"
repaired() { for _ in $(seq 50); do weft lab exec node1 -- weft trace default/web1 default/web:80 >/dev/null 2>&1 && return; sleep 0.1; done; return 1; }
prove "the daemon is back and has repaired it" repaired

say "sessionAffinity: a client keeps its endpoint, for as long as the Service says"
sed -i 's/spec: {type: NodePort,/spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, type: NodePort,/' "/run/weft-lab/$WEFT_LAB/manifests/web.yaml"
sticky() { weft lab exec node1 -- weft service list -o json | jq -e '.[0].ports[0].affinityTimeout == 60' >/dev/null; }
for _ in $(seq 50); do sticky && break; sleep 0.1; done
answers=$(for _ in $(seq 20); do weft lab exec web1 -- weft lab-pod get http://10.96.0.80/; done | jq -r .pod | sort -u)
show "weft lab exec node1 -- nft list map inet weft_services affinity4"
kept() { [ "$(wc -l <<<"$answers")" = 1 ] && grep -q 'timeout 1m' <<<"$out"; }
prove "20 connections of one client went to one Pod, and the kernel forgets the client by itself" kept

say "Names: the cluster's DNS on every node, with nothing deployed, and a restart of weftd under 5,000 questions a second"
show "weft lab exec web1 -- cat /etc/resolv.conf"
show "weft lab exec web1 -- weft lab-pod get http://web/"
prove "a Pod finds the Service by its name" test "$rc" = 0
show "weft lab exec node1 -- weft dns query --from web1 web"
prove "a name of a search list is answered from memory" grep -q "picture of the cluster" <<<"$out"
show "weft lab exec node1 -- nft list table inet weft_dns"
weft lab exec web1 -- weft lab-pod dnsload --rate 5000 --for 3s 10.96.0.10 web.default.svc.cluster.local 10.96.0.80 > "$scratch/dnsload" 2>&1 &
load=$!
sleep 1
show "weft lab daemon stop node1 && weft lab daemon start node1"
wait "$load"
lost=$?
show "cat $scratch/dnsload"
prove "a restart of weftd loses no question" test "$lost" = 0

say "An address for a load balancer: the router, a host of the nodes' segment, asks for it by ARP"
cat > "/run/weft-lab/$WEFT_LAB/manifests/pool.yaml" <<YAML
apiVersion: weft.network/v1alpha1
kind: LoadBalancerPool
metadata: {name: edge}
spec: {addresses: [172.30.1.200-172.30.1.219]}
YAML
sed -i 's/type: NodePort/type: LoadBalancer/' "/run/weft-lab/$WEFT_LAB/manifests/web.yaml"
owner_of() { weft lab exec node1 -- weft lb list -o json | jq -re '.[0].addresses[0].l2[0].node // empty'; }
for _ in $(seq 100); do owner_of >/dev/null && break; sleep 0.1; done
show "weft lab exec node1 -- weft lb why web"
owner=$(owner_of)
vip=$(weft lab exec node1 -- weft lb list -o json | jq -r '.[0].addresses[0].address')
show "weft lab exec router -- weft lab-pod get http://$vip/"
prove "a host on the segment reaches the address that $owner answers for" test "$rc" = 0
other=node1
[ "$owner" != node1 ] || other=node3
show "weft lab daemon kill $owner"
printf '%s$ %s%s\n' "$bold" "weft lab exec $other -- weft lb list     # until another node answers" "$plain"
began=$(date +%s%N)
for _ in $(seq 100); do weft lab exec $other -- weft lb list -o json | jq -e --arg other $other '.[0].addresses[0].l2[0].node == $other' >/dev/null && break; sleep 0.05; done
took=$((($(date +%s%N) - began) / 1000000))
show "weft lab exec $other -- weft lb list"
weft lab exec router -- ip neigh flush to "$vip" 2>/dev/null
show "weft lab exec router -- weft lab-pod get http://$vip/"
taken_over() { [ "$rc" = 0 ] && weft lab exec $other -- weft lb list -o json | jq -e --arg other $other '.[0].addresses[0].l2[0].node == $other' >/dev/null; }
prove "its daemon is gone: $other answers instead, $took ms later" taken_over
show "weft lab daemon start $owner"

say "The same address over BGP: BIRD, in the router, learns it from two nodes"
cat > "$scratch/bird.conf" <<CONF
router id 172.30.1.1;
protocol device {}
protocol kernel { ipv4 { export all; import none; }; merge paths on; }
template bgp node {
  local 172.30.1.1 as 64600; graceful restart on; connect delay time 1;
  ipv4 { import all; export none; };
}
protocol bgp node1 from node { neighbor 172.30.1.11 as 64512; }
protocol bgp node3 from node { neighbor 172.30.1.13 as 64512; }
CONF
for node in node1 node3; do
    cat > "/run/weft-lab/$WEFT_LAB/manifests/router-$node.yaml" <<YAML
apiVersion: weft.network/v1alpha1
kind: BGPPeer
metadata: {name: router-$node}
spec: {peerAddress: 172.30.1.1, peerASN: 64600, connectRetrySeconds: 1, nodeSelector: {kubernetes.io/hostname: $node}}
YAML
done
birdc() { weft lab exec router -- /usr/sbin/birdc -s "$scratch/bird.ctl" "$@"; }
show "weft lab exec router -- /usr/sbin/bird -c $scratch/bird.conf -s $scratch/bird.ctl -P $scratch/bird.pid"
told_by() { birdc show route for "$vip/32" all | grep -c 'BGP.next_hop'; }
for _ in $(seq 300); do [ "$(told_by)" = 2 ] && break; sleep 0.1; done
show "weft lab exec node1 -- weft bgp peers"
show "weft lab exec node1 -- weft bgp routes"
show "weft lab exec router -- /usr/sbin/birdc -s $scratch/bird.ctl show route for $vip/32"
show "weft lab exec outside -- weft lab-pod get http://$vip/"
learned() { [ "$rc" = 0 ] && [ "$(told_by)" = 2 ]; }
prove "the router learned $vip from two nodes, and a machine outside reaches it" learned
show "weft lab exec node3 -- weft bgp drain"
for _ in $(seq 100); do [ "$(told_by)" = 1 ] && break; sleep 0.1; done
show "weft lab exec router -- /usr/sbin/birdc -s $scratch/bird.ctl show route for $vip/32"
drained() { grep -q 172.30.1.11 <<<"$out" && ! grep -q 172.30.1.13 <<<"$out"; }
prove "a node that is drained before maintenance is told of no more" drained
weft lab exec node3 -- weft bgp undrain >/dev/null
rm "/run/weft-lab/$WEFT_LAB"/manifests/router-node*.yaml
birdc down >/dev/null

say "Default deny, then allow"
policies() { cat > "/run/weft-lab/$WEFT_LAB/manifests/policies.yaml"; }
asks() { weft lab exec "$1" -- weft lab-pod get --timeout 400ms "http://$(address web1 1):8080/" >/dev/null 2>&1; }
asks neighbour && asks web2 && opened=yes
policies <<YAML
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress]}
YAML
for _ in $(seq 50); do asks neighbour || break; sleep 0.1; done
denied() { [ "$opened" = yes ] && ! asks neighbour && ! asks web2 && weft lab exec node1 -- weft lab-pod get "http://$(address web1 1):8080/" >/dev/null; }
prove "a default-deny policy stops every Pod, and not the Pod's own node" denied
show "weft lab exec node1 -- weft observe --drops --once"
why=$out
show "weft lab exec node1 -- weft trace default/neighbour default/web1:8080"
explained() { grep -q 'dropped ingress: default/neighbour -> default/web1 tcp/8080: .*isolated for ingress by default/default-deny' <<<"$why" && grep -q 'policy: .*isolated for ingress by default/default-deny' <<<"$out"; }
prove "the drop record and the trace name the Pods, the policy and the reason" explained
policies <<YAML
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-web2, namespace: default}
spec:
  podSelector: {}
  ingress: [{from: [{ipBlock: {cidr: $(address web2 1)/32}}], ports: [{port: 8080}]}]
YAML
for _ in $(seq 50); do asks web2 && break; sleep 0.1; done
show "weft lab exec node1 -- weft policy show web1"
show "weft lab exec node1 -- nft list set ip weft_policy in_cidr"
allowed() { asks web2 && ! asks neighbour; }
prove "one more policy lets web2 in, and nobody else" allowed
: | policies
for _ in $(seq 50); do asks neighbour && break; sleep 0.1; done

say "The daemons are killed on both ends of a conversation"
printf '%s$ %s%s\n' "$bold" "weft lab exec web1 -- weft lab-pod load http://$target:8080/ &" "$plain"
mkfifo "$scratch/stop"
weft lab exec web1 -- weft lab-pod load "http://$target:8080/" <"$scratch/stop" >"$scratch/load" &
load=$!
exec 9>"$scratch/stop"
show "weft lab daemon kill node1; weft lab daemon kill node2"
show "weft lab exec node1 -- weft status"
away=$rc
show "weft lab exec neighbour -- weft lab-pod get http://$target:8080/     # a conversation that starts while both are away"
show "weft lab daemon start node1; weft lab daemon start node2"
exec 9>&-
wait $load
lost=$?
cat "$scratch/load"
unharmed() { [ "$away" != 0 ] && [ "$lost" = 0 ] && jq -e '.new.failed + .kept.failed == 0 and .new.requests > 20' "$scratch/load" >/dev/null; }
prove "killed daemons: $(jq '.new.requests + .kept.requests' "$scratch/load") requests went through, none was lost" unharmed

say "node1 loses its power and comes back while the control plane is away"
old=$(addresses node1)
boot='weft lab exec node1 -- sh -c "readlink /proc/1/ns/net"'
show "$boot"
first=$out
show "weft lab reboot --without-api node1"
show "$boot"
second=$out
show "weft lab exec node1 -- weft status"
status=$out
show "weft lab status"
prove "a rebooted node reaches the others again" reach web1 web2 1
same() { [ "$first" != "$second" ] && grep -q 'stored picture' <<<"$status" && [ -n "$old" ] && [ "$old" = "$(addresses node1)" ]; }
prove "rebooted with the control plane away: every Pod has the same addresses" same

say "Down"
during=$(traces)
show "weft lab down"
gone() { [ "$rc" = 0 ] && [ -n "$during" ] && [ "$before" = "$(traces)" ]; }
prove "weft lab down leaves nothing behind: no process, link, namespace, mount, file" gone

say "What was proved"
failed=0
for i in "${!claims[@]}"; do
    colour=$green
    [ "${results[$i]}" = ok ] || { colour=$red; failed=1; }
    printf '%s%-6s%s  %s\n' "$colour" "${results[$i]}" "$plain" "${claims[$i]}"
done
exit $failed
