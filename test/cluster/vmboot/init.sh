#!/bin/sh
# PID 1 of the guest. It is part of the measured initrd. Programs come from the second disk into the ramfs, where IMA measures
# each before it runs; what differs from run to run comes from the third disk as data, into a tmpfs, which the kernel's IMA
# policy "tcb" leaves out.
export PATH=/bin:/usr/bin:/usr/sbin:/opt/keelson
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t securityfs securityfs /sys/kernel/security
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
mkdir /run/keelson
tar -xf /dev/vdb -C /
tar -xf /dev/vdc -C /run/keelson
echo "vmboot: started, uptime $(cat /proc/uptime)"

# A golden machine shows its evidence once everything that is measured has run. The last disk takes it.
show_evidence() {
	mkdir /run/evidence
	extend=
	if [ -e /etc/extend ]; then extend="-extend $(cat /etc/extend)"; fi
	if collect -dir /run/evidence $extend && tar -cf /dev/vdd -C /run/evidence . && sync; then
		echo "vmboot: evidence written"
	else
		echo "vmboot: no evidence"
	fi
}

# A node of a cluster: the policy for nodes is loaded, the runtime's programs run, and runc starts a container as a pod's is started. What
# the container does is in its configuration. Its root is an overlay, its volume /data on the host's root file system, and the one over
# the directory of the host's runc on pods' own, but where the machine is told otherwise. Nobody but root may make a namespace in
# which file systems are mounted.
run_node() {
	echo /etc/ima/ima-policy >/sys/kernel/security/ima/policy && echo "vmboot: policy loaded"
	containerd --version && runc --version && kubelet --version && containerd-shim-runc-v2 -v && echo "vmboot: node runs"
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	echo 0 >/proc/sys/user/max_user_namespaces
	pod=/run/keelson/pod volumes=/var/lib/kubelet/pods/pod/volumes
	mkdir -p $pod/rootfs $pod/layers $volumes/data $volumes/boot $volumes/programs
	mount -t tmpfs layers $pod/layers
	mkdir -p $pod/layers/lower/data/boot $pod/layers/lower/usr/sbin $pod/layers/lower/etc $pod/layers/upper $pod/layers/work
	cp /opt/keelson/pod $pod/layers/lower/pod
	echo >$pod/layers/lower/etc/hosts
	mount -t overlay -o lowerdir=$pod/layers/lower,upperdir=$pod/layers/upper,workdir=$pod/layers/work overlay $pod/rootfs
	mount -t vfat -o ro /dev/vda $volumes/boot
	if [ ! -e /run/keelson/elsewhere ]; then mount -t ext4 -o noexec /dev/vde $volumes/programs; fi
	echo "127.0.0.1 pod" >$volumes/programs/hosts
	runc run --no-pivot --bundle $pod pod && echo "vmboot: pod ran"
}

if [ ! -e /run/keelson/agent.conf ]; then
	if [ -e /run/keelson/node ]; then run_node; fi
	show_evidence
	while :; do sleep 60; done
fi
while :; do
	spire-agent run -config /run/keelson/agent.conf
	echo "vmboot: agent ended with $?, uptime $(cat /proc/uptime)"
	if [ -e /run/keelson/collect ]; then
		rm /run/keelson/collect
		show_evidence
	fi
	sleep 1
done
