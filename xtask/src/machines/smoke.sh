#!/bin/busybox sh
# Publishes ports of a container as a user would on a machine of his own, in its first network namespace:
# asks through them, looks for what is left, kills commands, and meets other tools' qdiscs. Nothing else
# may be at work in the machine. The kernel's command line says in $hooks what TC has here: clsact or tcx.
# Ends with 0 if all went well. Busybox's own applets come first here.
set -u
export PATH=/bin

# A subshell's failures count as well: they are lines of a file.
: >/run/failures
fail() {
    echo "$*" >>/run/failures
    echo "FAILED: $*" >/dev/console
}
# expect TEXT COMMAND...: the command prints the text.
expect() {
    local text=$1 said
    shift
    said=$("$@" 2>&1)
    case $said in
    *"$text"*) echo "ok: $*: $text" ;;
    *) fail "$*: no \"$text\" in: $said" ;;
    esac
}
# succeed COMMAND...: the command ends with 0.
succeed() {
    local said
    if said=$("$@" 2>&1); then
        echo "ok: $*"
    else
        fail "$* ended with $?: $said"
    fi
}
# within SECONDS COMMAND...: the command ends with 0 before long.
within() {
    local end=$(($(cut -d. -f1 /proc/uptime) + $1))
    shift
    until "$@"; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt $end ] || return 1
        usleep 50000
    done
}
at() {
    local space=$1
    shift
    nsenter --net=/run/netns/$space "$@"
}
ip() { /programs/ip "$@" || fail "ip $* ended with $?"; }
tc() { /programs/tc "$@" || fail "tc $* ended with $?"; }
bpftool() { /programs/bpftool "$@" || fail "bpftool $* ended with $?"; }
ask() { # NAMESPACE ADDRESS
    at "$1" /programs/socat -T10 -t10 - "$2" </run/question
}
# UDP has no end: the first that comes is the answer.
ask_udp() {
    : >/run/answer
    nsenter --net=/run/netns/$1 /programs/socat -T10 -t10 - "$2" </run/question >/run/answer 2>&1 &
    within 10 test -s /run/answer
    kill $! 2>/dev/null
    wait $! 2>/dev/null
    cat /run/answer
}
echo ask >/run/question

# client eth0 --- eth0 host (the first namespace) br0 --- eth0 container
wire() {
    ip link add eth0 type veth peer name eth0 netns client
    ip link set eth0 up
    ip -n client link set eth0 up
    ip addr add 192.0.2.1/24 dev eth0
    ip addr add 2001:db8:1::1/64 dev eth0 nodad
    ip -n client addr add 192.0.2.2/24 dev eth0
    ip -n client addr add 2001:db8:1::2/64 dev eth0 nodad
    for address in 192.0.2.1 2001:db8:1::1; do
        within 20 at client ping -q -c 1 -W 1 $address >/dev/null || fail "no answer from $address"
    done
}
serve() { # ADDRESS: socat's listener, of the container
    nsenter --net=/run/netns/container /programs/socat "$1" 'SYSTEM:read asked; echo web sees $SOCAT_PEERADDR' &
}
ip netns add client
ip netns add container
: >/run/netns/self
mount --bind /proc/self/ns/net /run/netns/self
ip -n client link set lo up
ip -n container link set lo up
wire
ip link add web type veth peer name eth0 netns container
ip link add br0 type bridge
ip link set web master br0
ip link set web up
ip link set br0 up
ip -n container link set eth0 up
ip addr add 10.88.0.1/24 dev br0
ip addr add fd88::1/64 dev br0 nodad
ip -n container addr add 10.88.0.2/24 dev eth0
ip -n container addr add fd88::2/64 dev eth0 nodad
ip -n container route add default via 10.88.0.1
ip -n container -6 route add default via fd88::1
# The target that is not at the other end of a link. A UDP server without an address of its own answers
# by the one that the route has.
ip -n container addr add 203.0.113.9/32 dev lo
ip -n container addr add 2001:db8:9::9/128 dev lo nodad
ip route add 203.0.113.9 via 10.88.0.2
ip -6 route add 2001:db8:9::9 via fd88::2
serve TCP6-LISTEN:80,fork,reuseaddr,ipv6only=0
serve UDP6-RECVFROM:80,fork,ipv6only=0
serve UDP4-RECVFROM:81,fork,bind=203.0.113.9
serve 'UDP6-RECVFROM:81,fork,bind=[2001:db8:9::9]'

# Senders' addresses as the servers print them: the first listens on IPv6 for both families.
client4=0000:ffff:c000:0202]
client6=[2001:0db8:0001:0000:0000:0000:0000:0002]
host4=0000:ffff:0a58:0001]
host6=[fd88:0000:0000:0000:0000:0000:0000:0001]
# Until neighbours and servers are there: with nothing published.
answers() {
    "$@" 2>/dev/null | grep -q "web sees"
}
for address in '10.88.0.2' '[fd88::2]'; do
    within 20 answers ask self "TCP:$address:80" || fail "no server at $address"
    within 20 answers ask_udp self "UDP:$address:80" || fail "no UDP server at $address"
done

everywhere() {
    for kind in '4 192.0.2.1' '6 [2001:db8:1::1]' '4 127.0.0.1' '6 [::1]'; do
        local family=${kind% *} address=${kind#* } client host
        eval "client=\$client$family host=\$host$family"
        case $address in
        127.* | '[::1]') ;;
        *)
            expect "$client" ask client "TCP:$address:8080"
            expect "$client" ask_udp client "UDP:$address:8080"
            ;;
        esac
        expect "$host" ask self "TCP:$address:8080"
        expect "$host" ask_udp self "UDP:$address:8080"
        # Without connecting: an answer by another address than the one asked is not taken.
        expect "$host" ask_udp self "UDP-SENDTO:$address:8080"
    done
}
# What portfwd could leave: pins, links, programs, maps, qdiscs and their filters, XDP.
traces() {
    find /sys/fs/bpf -mindepth 1 | sort
    for kind in link prog map; do
        echo "$kind:"
        bpftool $kind show | grep '^[0-9]'
    done
    for device in lo eth0 br0 web; do
        /programs/tc qdisc show dev $device | sed "s/^/$device: /"
        for direction in ingress egress; do
            /programs/tc filter show dev $device $direction 2>/dev/null
        done
        ip -o link show dev $device | grep -o -E 'xdp[a-z]*|prog/.*' | sed "s/^/$device: /"
    done
}
as_before() {
    traces >/run/after
    cmp -s /run/before /run/after
}
nothing_left() {
    # The kernel frees what nothing refers to a little later.
    within 20 as_before || fail "something is left: $(diff /run/before /run/after)"
    for address in 192.0.2.1 '[2001:db8:1::1]'; do
        expect "Connection refused" ask client "TCP:$address:8080"
        expect "Connection refused" ask_udp client "UDP:$address:8080"
        expect "Connection refused" ask self "TCP:$address:8080"
        expect "Connection refused" ask_udp self "UDP:$address:8080"
    done
}
is_clsact() { # DEVICE
    tc qdisc show dev "$1" | grep -q clsact
}
# ours N DEVICE: so many filters of ours are there.
ours() {
    local found
    found=$(tc filter show dev "$2" ingress | grep -c tc_device)
    [ "$found" = "$1" ] || fail "$found filters of ours on $2, not $1"
}
publish() {
    succeed portfwd attach web --netns /run/netns/container -p 8080:80 -p 8080:80/udp
}
foreign='protocol ip u32 match u32 0 0 flowid 1:1'
traces >/run/before
grep -q '^prog:' /run/before || fail "nothing is known of what there is"
grep -q 'eth0: qdisc' /run/before || fail "nothing is known of the qdiscs"

echo "kernel $(uname -r), $hooks"
nothing_left
publish
everywhere
expect "tc ingress" portfwd status
as_before && fail "an attached portfwd is not seen"
case $hooks in
clsact)
    ours 1 eth0
    succeed portfwd up
    ours 1 eth0
    is_clsact web || fail "no clsact qdisc on the container's link"
    ;;
tcx)
    succeed portfwd up
    for device in eth0 web; do
        is_clsact $device && fail "a clsact qdisc on $device"
    done
    ;;
*) fail "hooks=$hooks" ;;
esac
everywhere
succeed portfwd detach web
is_clsact web && fail "detach has left a clsact qdisc on the container's link"
succeed portfwd down
nothing_left

echo "through the stack, and back by device egress:"
forwarding() {
    echo $1 >/proc/sys/net/ipv4/ip_forward
    echo $1 >/proc/sys/net/ipv6/conf/all/forwarding
}
forwarding 1
succeed portfwd attach far --ip 203.0.113.9,2001:db8:9::9 -p 8080:80 -p 8080:81/udp
expect "tc egress" portfwd status
expect "$client4" ask client TCP:192.0.2.1:8080
expect "web sees 192.0.2.2" ask_udp client UDP:192.0.2.1:8080
expect "$client6" ask client 'TCP:[2001:db8:1::1]:8080'
expect "$client6" ask_udp client 'UDP:[2001:db8:1::1]:8080'
succeed portfwd down
nothing_left
forwarding 0

if [ "$hooks" = clsact ]; then
    echo "another tool's qdisc and filters are its own:"
    tc qdisc add dev eth0 clsact
    tc filter add dev eth0 ingress pref 50 $foreign
    publish
    everywhere
    # A filter that goes, as by a crash before it was attached, comes again.
    ours 1 br0
    tc filter del dev br0 ingress
    ours 0 br0
    succeed portfwd up
    ours 1 br0
    # What another tool puts into our qdisc stays, and the qdisc with it.
    tc filter add dev br0 egress pref 7 $foreign
    succeed portfwd down
    expect "clsact" tc qdisc show dev eth0
    expect "u32" tc filter show dev eth0 ingress
    expect "u32" tc filter show dev br0 egress
    ours 0 eth0
    ours 0 br0
    tc qdisc del dev eth0 clsact
    tc qdisc del dev br0 clsact
    nothing_left
    echo "the older qdisc has ingress alone, which is enough:"
    tc qdisc add dev eth0 ingress
    publish
    everywhere
    # A device that goes takes its filters along; its marks go with the next command.
    ip link del eth0
    succeed portfwd up
    succeed portfwd down
    wire
    nothing_left
fi

echo "attach, killed at some moment:"
hundredths() { cut -d' ' -f1 /proc/uptime | tr -d .; }
started=$(hundredths)
publish
took=$(($(hundredths) - started))
succeed portfwd down
nothing_left
killed=0
for part in 1 2 3 4 5 6 7; do
    portfwd attach web --netns /run/netns/container -p 8080:80 >/dev/null 2>&1 &
    usleep $((took * 10000 * part / 8))
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    [ $? = 137 ] && killed=$((killed + 1))
    succeed portfwd down
    nothing_left
done
echo "killed $killed times of 7, attaching took $took hundredths of a second"
[ $killed -ge 3 ] || fail "the kills came too late"

# XDP sees frames whose checksums the sender has not left to a device.
at client /programs/ethtool -K eth0 tx off >/dev/null || fail "checksums of the client's device"
for mode in native generic; do
    succeed portfwd up --device eth0 --xdp $mode
    publish
    expect "xdp $mode" portfwd status
    everywhere
    succeed portfwd down
    nothing_left
done

dmesg | grep -q 'Linux version' || fail "the kernel's messages are not all there"
dmesg | grep -E 'WARNING|BUG|Oops|Call Trace' && fail "the kernel complains"
[ ! -s /run/failures ]
