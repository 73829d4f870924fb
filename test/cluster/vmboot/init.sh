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
	if collect -dir /run/evidence && tar -cf /dev/vdd -C /run/evidence . && sync; then
		echo "vmboot: evidence written"
	else
		echo "vmboot: no evidence"
	fi
}

# A node of a cluster: the policy for nodes is loaded, the runtime's programs run. A pod's process then does its worst, without rights.
run_node() {
	echo /etc/ima/ima-policy >/sys/kernel/security/ima/policy && echo "vmboot: policy loaded"
	containerd --version && runc --version && kubelet --version && containerd-shim-runc-v2 -v && echo "vmboot: node runs"
	if [ -e /run/keelson/pod ]; then
		mkdir -p /var/lib/containers/pod/boot /var/lib/containers/pod/work
		mount -t vfat -o ro /dev/vda /var/lib/containers/pod/boot
		chown 1000:1000 /var/lib/containers/pod/work
		/var/lib/containers/pod/pod -direct /var/lib/containers/pod/boot/pod/direct.bin -dir /var/lib/containers/pod/work && echo "vmboot: pod ran"
	fi
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
