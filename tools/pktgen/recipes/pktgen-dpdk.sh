#!/bin/sh
# Loads two vhost-user ports with Pktgen-DPDK: it is the driver of two guests (virtio_user) that send to each other as fast
# as they can, and prints rates and sums of both ports.
#
#   pktgen-dpdk.sh SOCKET SOCKET [SECONDS]      e.g. pktgen-dpdk.sh /run/qvs/vm1 /run/qvs/vm2 5
#
# Environment: PKTGEN_DPDK, the program (default: pktgen-dpdk, which is no package of Debian 12; the script says how to build
# it; tried with 23.03.0 on DPDK 22.11.11); PACKED=1 for packed rings; CPU (default 0), which its threads share; SIZE, bytes
# with the check sequence (64).
# Exit codes: 0 done, 1 nothing arrived or it failed, 2 wrong usage, 3 cannot run here.
set -eu

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
first=$1 second=$2 seconds=${3:-5} cpu=${CPU:-0} size=${SIZE:-64}
program=${PKTGEN_DPDK:-pktgen-dpdk}
if ! command -v "$program" >/dev/null; then
    cat >&2 <<'HOW'
Pktgen-DPDK is missing, and no package of Debian 12. To build it against Debian's DPDK 22.11:
    apt-get install git build-essential meson ninja-build pkg-config libdpdk-dev libbsd-dev libpcap-dev libnuma-dev
    git clone --branch pktgen-23.03.0 --depth 1 https://github.com/pktgen/Pktgen-DPDK
    meson setup Pktgen-DPDK/build Pktgen-DPDK && ninja -C Pktgen-DPDK/build
    PKTGEN_DPDK=Pktgen-DPDK/build/app/pktgen pktgen-dpdk.sh ...
HOW
    exit 3
fi
for socket in "$first" "$second"; do
    if [ ! -S "$socket" ]; then
        echo "$socket is no socket: is the port plugged, and in the role server?" >&2
        exit 3
    fi
done

# It makes pools for frames of 10 KB for every kind of traffic: some 4 GB that are mapped, of which it touches a part.
if [ "$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo)" -ge 2048 ] && grep -q ' hugetlbfs ' /proc/mounts; then
    memory="--single-file-segments --socket-mem 4096"
else
    memory="--no-huge -m 4096"
fi
rings="queue_size=1024,mrg_rxbuf=1,in_order=0,packed_vq=${PACKED:-0}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/commands.pkt" <<EOF
set 0 size $size
set 1 size $size
set 0 src mac 02:00:00:00:00:0a
set 0 dst mac 02:00:00:00:00:0b
set 1 src mac 02:00:00:00:00:0b
set 1 dst mac 02:00:00:00:00:0a
start all
sleep $seconds
stop all
sleep 1
quit
EOF
# Three threads on one CPU: the screen's, and one for each port.
"$program" --lcores "0@$cpu,1@$cpu,2@$cpu" --no-pci $memory --file-prefix "recipe$$" \
    --vdev "net_virtio_user0,path=$first,mac=02:00:00:00:00:0a,$rings" \
    --vdev "net_virtio_user1,path=$second,mac=02:00:00:00:00:0b,$rings" \
    -- -m 1.0,2.1 -f "$work/commands.pkt" >"$work/screen" 2>&1 </dev/null || { cat "$work/screen" >&2; exit 1; }
# Where there is no terminal its screen is columns one below another, each begun by "PORT:---": lines 3 and 4 are frames a
# second received and sent at the end, 6 and 7 the most of them, 19 and 20 the sums. The last of each column counts.
awk '/^ *[0-9]+:-+/ { port = $1 + 0; line = 0 }
     port != "" && ++line <= 20 { value[port, line] = $1 }
     END {
         for (port = 0; port < 2; port++)
             printf "port %d: received %d (at most %d a second), sent %d (at most %d a second)\n", port,
                 value[port, 19], value[port, 6], value[port, 20], value[port, 7]
         if (value[0, 19] + value[1, 19] == 0) { print "nothing arrived"; exit 1 }
     }' "$work/screen"
