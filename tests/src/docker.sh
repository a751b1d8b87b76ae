# What Docker starts in, and ends with. $1: the directory of its programs.
#
# Whatever its programs would look for in /run is not the machine's: containers of another Docker, the bus by which
# they would have firewalld change the machine's rules.
mount -t tmpfs run /run
mkdir /run/bin /run/programs
mount --bind "$1" /run/programs
# containerd makes a directory there.
mount -t tmpfs opt /opt
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
# A control group that has groups with limits has no processes of its own.
mkdir /sys/fs/cgroup/daemon
echo 0 >/sys/fs/cgroup/daemon/cgroup.procs
# No other programs of the machine's: modprobe would load modules that change how its bridges work.
ln -s "$(command -v iptables)" "$(command -v ip6tables)" /run/bin
# What stays when the daemon is told to end are the containers.
PATH=/run/programs:/run/bin dockerd --config-file daemon.json && exec sleep infinity
