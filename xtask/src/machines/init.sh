#!/bin/busybox sh
# The first process of a virtual machine: runs the tests of /tests/list, two at a time as there are two
# processors, each by /tests/one. The lines that the runner outside reads are "kernel: ...", the results
# that /tests/one prints, and "tests: over".
/bin/busybox --install -s /bin
export PATH=/programs:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /run/netns /run/said
# A thousand connections have two ends each.
ulimit -n 20000
# Packets wait longer for an emulated processor than the usual queue of 1,000 allows. Where it refuses a server's
# repeated SYN-ACK, the kernel forgets the opening (`reqsk_timer_handler`), and resets a client that got the first.
echo 100000 >/proc/sys/net/core/netdev_max_backlog
ip link set lo up
# The kernel asks for modules when they are needed, but does not wait where two tests need one at once. Not
# every kernel has each of them.
modprobe -a bridge veth sch_ingress cls_bpf nf_tables nf_conntrack nft_compat inet_diag tcp_diag udp_diag \
    sctp sch_netem 8021q bonding dummy vrf ip_gre wireguard tun 2>/dev/null

# What is emulated is slow, and what moves much data proves no more by moving more.
export PORTFWD_BIN=/bin/portfwd PORTFWD_MUTANTS=/mutants PORTFWD_PATIENCE=8 PORTFWD_BULK_MIB=64

# The firmware has left something on this line.
echo
echo "kernel: $(uname -r)"
# The smoke test counts all that the kernel holds: nothing else may be at work.
grep '^smoke ' /tests/list | xargs -r -n 2 /tests/one
grep -v '^smoke ' /tests/list | xargs -r -P 2 -n 2 /tests/one
if dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|rcu.*stall'; then
    echo "FAILED kernel's messages 0 s: the kernel complains"
fi
echo "tests: over"
poweroff -f
