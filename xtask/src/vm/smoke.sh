#!/bin/busybox sh
# The first and only process of a virtual machine: publishes ports of a container, asks through them, and
# looks for what is left. What it prints last is the result. Busybox's own applets come first.
set -u
bb=/bin/busybox
$bb --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
for module in /modules/*; do
    insmod "$module" || echo "module $module is not loaded"
done

failures=0
fail() {
    failures=$((failures + 1))
    echo "FAILED: $*"
}
# expect TEXT COMMAND...: the command prints the text.
expect() {
    text=$1
    shift
    said=$("$@" 2>&1)
    case $said in
    *"$text"*) echo "ok: $*" ;;
    *) fail "$*: no \"$text\" in: $said" ;;
    esac
}
# succeed COMMAND...: the command ends with 0.
succeed() {
    if said=$("$@" 2>&1); then
        echo "ok: $*"
    else
        fail "$* ended with $?: $said"
    fi
}
at() {
    space=$1
    shift
    nsenter --net=/run/netns/$space "$@"
}
ask() { # NAMESPACE ADDRESS
    at "$1" /programs/socat -T2 -t2 - "$2" </dev/null
}
ask_udp() {
    echo ask | at "$1" /programs/socat -T2 -t2 - "$2"
}
ip() { /programs/ip "$@"; }
tc() { /programs/tc "$@"; }

# client eth0 --- eth0 host (the first namespace) br0 --- eth0 container
ip netns add client
ip netns add container
ip link set lo up
ip link add eth0 type veth peer name eth0 netns client
ip link add web type veth peer name eth0 netns container
ip link add br0 type bridge
ip link set web master br0
ip link set web up
ip link set br0 up
ip link set eth0 up
ip addr add 192.0.2.1/24 dev eth0
ip addr add 2001:db8:1::1/64 dev eth0 nodad
ip addr add 10.88.0.1/24 dev br0
ip addr add fd88::1/64 dev br0 nodad
for space in client container; do
    at $space /programs/ip link set lo up
    at $space /programs/ip link set eth0 up
done
at client /programs/ip addr add 192.0.2.2/24 dev eth0
at client /programs/ip addr add 2001:db8:1::2/64 dev eth0 nodad
at container /programs/ip addr add 10.88.0.2/24 dev eth0
at container /programs/ip addr add fd88::2/64 dev eth0 nodad
at container /programs/ip route add default via 10.88.0.1
at container /programs/ip -6 route add default via fd88::1
# The client's address as the server, which listens on IPv6 for both families, prints it.
client='ffff:c000:0202]'
answer='SYSTEM:echo web sees $SOCAT_PEERADDR'
at container /programs/socat TCP6-LISTEN:80,fork,reuseaddr,ipv6only=0 "$answer" &
at container /programs/socat UDP6-RECVFROM:80,fork,ipv6only=0 "$answer" &
# Until neighbours and servers are there.
for address in 192.0.2.1 2001:db8:1::1; do
    at client ping -c 1 -W 5 $address >/dev/null || fail "no answer from $address"
done
for address in 10.88.0.2 fd88::2; do
    ping -c 1 -W 5 $address >/dev/null || fail "no answer from $address"
done

everywhere() {
    for address in 192.0.2.1 '[2001:db8:1::1]'; do
        expect "web sees" ask client "TCP:$address:8080"
        expect "web sees" ask_udp client "UDP:$address:8080"
        expect "web sees" ask self "TCP:$address:8080"
    done
    for address in 127.0.0.1 '[::1]'; do
        expect "web sees" ask self "TCP:$address:8080"
        expect "web sees" ask_udp self "UDP:$address:8080"
    done
}
nothing_left() {
    for device in eth0 br0 web; do
        for direction in ingress egress; do
            left=$(tc filter show dev $device $direction 2>/dev/null)
            [ -z "$left" ] || fail "left on $device $direction: $left"
        done
        case $(tc qdisc show dev $device) in
        *clsact*) fail "a clsact qdisc is left on $device" ;;
        esac
        case $(ip link show dev $device) in
        *xdp*) fail "an XDP program is left on $device" ;;
        esac
    done
    left=$(find /sys/fs/bpf -mindepth 1 ! -name '*.debug')
    [ -z "$left" ] || fail "pins are left: $left"
    ask client TCP:192.0.2.1:8080 >/dev/null 2>&1 && fail "the port still answers"
}
: >/run/netns/self
mount --bind /proc/self/ns/net /run/netns/self

echo "kernel $(uname -r)"
succeed portfwd attach web --netns /run/netns/container -p 8080:80 -p 8080:80/udp
everywhere
expect "$client" ask client TCP:192.0.2.1:8080
expect "tc ingress" portfwd status
# A command again finds everything attached.
filters=$(tc filter show dev eth0 ingress | wc -l)
succeed portfwd up
[ "$(tc filter show dev eth0 ingress | wc -l)" = "$filters" ] || fail "a second up has attached again"
succeed portfwd detach web
case $(tc qdisc show dev web) in
*clsact*) fail "detach has left a clsact qdisc on the container's link" ;;
esac
succeed portfwd down
nothing_left

# A target that is not at the other end of a link goes through the stack, and back by device egress.
at container /programs/ip addr add 203.0.113.9/32 dev lo
ip route add 203.0.113.9 via 10.88.0.2
echo 1 >/proc/sys/net/ipv4/ip_forward
succeed portfwd attach far --ip 203.0.113.9 -p 8080:80 -p 8080:80/udp
expect "tc egress" portfwd status
expect "$client" ask client TCP:192.0.2.1:8080
expect "$client" ask_udp client UDP:192.0.2.1:8080
succeed portfwd down
nothing_left

if [ -n "$filters" ] && [ "$filters" != 0 ]; then
    echo "filters of a clsact qdisc:"
    # Another tool's qdisc and filters are its own.
    tc qdisc add dev eth0 clsact
    tc filter add dev eth0 ingress pref 50 protocol ip u32 match u32 0 0 flowid 1:1
    succeed portfwd attach web --netns /run/netns/container -p 8080:80 -p 8080:80/udp
    everywhere
    # A filter that goes, as by a crash before it was attached, comes again.
    ours=$(tc filter show dev br0 ingress | grep -c tc_device)
    [ "$ours" = 1 ] || fail "$ours filters of ours on br0"
    tc filter del dev br0 ingress
    succeed portfwd up
    [ "$(tc filter show dev br0 ingress | grep -c tc_device)" = 1 ] || fail "the filter on br0 is not back"
    # What another tool puts into our qdisc stays, and the qdisc with it.
    tc filter add dev br0 egress pref 7 protocol ip u32 match u32 0 0 flowid 1:1
    succeed portfwd down
    expect "clsact" tc qdisc show dev eth0
    expect "u32" tc filter show dev eth0 ingress
    expect "u32" tc filter show dev br0 egress
    tc filter show dev eth0 ingress | grep tc_device && fail "our filter is left on eth0"
    tc qdisc del dev eth0 clsact
    tc qdisc del dev br0 clsact
    nothing_left
    # The older qdisc has ingress alone, which is enough.
    tc qdisc add dev eth0 ingress
    succeed portfwd attach web --netns /run/netns/container -p 8080:80 -p 8080:80/udp
    everywhere
    # A device that goes takes its filters along; its marks go with the next command.
    ip link del eth0
    succeed portfwd up
    succeed portfwd down
    ip link add eth0 type veth peer name eth0 netns client
    ip link set eth0 up
    ip addr add 192.0.2.1/24 dev eth0
    at client /programs/ip link set eth0 up
    at client /programs/ip addr add 192.0.2.2/24 dev eth0
    nothing_left
fi

echo "up, killed at some moment:"
for delay in 0.4 0.7 1.0 1.3 1.6 1.9 2.2; do
    portfwd up 2>/dev/null &
    sleep $delay
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    succeed portfwd down
    nothing_left
done

for mode in native generic; do
    at client /programs/ethtool -K eth0 tx off >/dev/null
    succeed portfwd up --device eth0 --xdp $mode
    succeed portfwd attach web --netns /run/netns/container -p 8080:80 -p 8080:80/udp
    expect "xdp $mode" portfwd status
    expect "$client" ask client TCP:192.0.2.1:8080
    expect "$client" ask_udp client UDP:192.0.2.1:8080
    succeed portfwd down
    nothing_left
done

dmesg | grep -E 'WARNING|BUG|Oops' && fail "the kernel complains"
if [ "$failures" = 0 ]; then
    echo "smoke: passed"
else
    echo "smoke: $failures failed"
fi
poweroff -f
