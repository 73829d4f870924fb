#!/bin/sh
# PID 1 of the guest. It is part of the measured initrd. Programs come from the second disk into the ramfs, where IMA measures
# each before it runs; what differs from run to run comes from the third disk as data, into a tmpfs, which the kernel's IMA
# policy "tcb" leaves out.
export PATH=/bin:/opt/keelson
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
tar -xf /dev/vdb -C /opt/keelson
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

while :; do
	spire-agent run -config /run/keelson/agent.conf
	echo "vmboot: agent ended with $?, uptime $(cat /proc/uptime)"
	if [ -e /run/keelson/collect ]; then
		rm /run/keelson/collect
		show_evidence
	fi
	sleep 1
done
