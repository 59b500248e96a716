#!/bin/bash
# The first process of a node, in fresh mount, network, process, host name, IPC and cgroup namespaces.
# node_init.sh NAME STATE CONTAINERD: give the node its own view of the machine, say so by the file STATE/ready, stay.
set -eu
name=$1 state=$2 containerd=$3
hostname "$name"
mount --make-rshared /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 run /run

mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
for controller in cpu cpuacct cpuset memory devices freezer blkio pids; do
  mkdir /sys/fs/cgroup/$controller
  mount -t cgroup -o $controller cgroup /sys/fs/cgroup/$controller
done
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd

# The kubelet insists on these, and would set them for the whole machine: it gets files of its own to set.
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  file=/run/sysctl-$(basename "${setting%=*}")
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done

mkdir -p /var/lib/containerd /var/lib/kubelet /var/lib/cni /etc/cni
mount --bind "$containerd" /var/lib/containerd
mount --bind "$state/kubelet" /var/lib/kubelet
mount --bind "$state/leases" /var/lib/cni
mount --bind "$state/cni" /etc/cni
mount --bind "$state/log" /var/log

ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
touch "$state/ready"
while :; do
  sleep 3600 &
  wait
done
