#!/bin/sh
# Loads two vhost-user ports with DPDK's testpmd: it is the driver of two guests (virtio_user) that send to each other as
# fast as they can (flowgen: many IP addresses and one MAC each), and prints what each sent and received.
#
#   testpmd.sh SOCKET SOCKET [SECONDS]      e.g. testpmd.sh /run/qvs/vm1 /run/qvs/vm2 5
#
# Environment: PACKED=1 for packed rings; CPU (default 0), which both of testpmd's threads share; SIZE, bytes with the check
# sequence (64).
# The ports must listen (the switch's role server) and be attached to one network. Exit codes: 0 done, 1 nothing arrived or
# testpmd failed, 2 wrong usage, 3 cannot run here.
set -eu

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
first=$1 second=$2 seconds=${3:-5} cpu=${CPU:-0} size=${SIZE:-64}
if ! command -v dpdk-testpmd >/dev/null; then
    echo "dpdk-testpmd is missing: apt-get install dpdk-dev" >&2
    exit 3
fi
for socket in "$first" "$second"; do
    if [ ! -S "$socket" ]; then
        echo "$socket is no socket: is the port plugged, and in the role server?" >&2
        exit 3
    fi
done

# A switch maps each guest's memory by descriptors, of which one message carries eight: hence one file for all of it.
if [ "$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo)" -ge 256 ] && grep -q ' hugetlbfs ' /proc/mounts; then
    memory="--single-file-segments --socket-mem 512"
else
    memory="--no-huge -m 512"
fi
rings="queue_size=1024,mrg_rxbuf=1,in_order=0,packed_vq=${PACKED:-0}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{
    # The time counts from when testpmd takes commands; if it ends before, nobody reads them.
    for _ in $(seq 300); do
        if grep -q 'testpmd>' "$log"; then break; fi
        sleep 0.1
    done
    echo "start"
    sleep "$seconds"
    # The rates of this moment, then the sums of the run.
    echo "show port stats all"
    echo "stop"
    sleep 1
    echo "quit"
} | dpdk-testpmd --lcores "0@$cpu,1@$cpu" --no-pci $memory --file-prefix "recipe$$" \
    --vdev "net_virtio_user0,path=$first,mac=02:00:00:00:00:0a,$rings" \
    --vdev "net_virtio_user1,path=$second,mac=02:00:00:00:00:0b,$rings" \
    -- -i --forward-mode=flowgen --nb-cores=1 --txpkts="$size" --total-num-mbufs=32768 \
    --eth-peer=0,02:00:00:00:00:0b --eth-peer=1,02:00:00:00:00:0a >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
sed -n '/NIC statistics for port/,$p' "$log"
# Testpmd counts what it received per port: without a frame, something is wrong with the network between.
awk '/Accumulated forward statistics/ { sums = 1 }
     sums && /RX-packets:/ { split($0, parts, ":"); received = parts[2] + 0; sums = 0 }
     END { exit !(received > 0) }' "$log" || { echo "nothing arrived" >&2; exit 1; }
