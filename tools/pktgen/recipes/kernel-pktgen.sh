#!/bin/sh
# Loads a network interface with the kernel's own generator (module pktgen): as fast as one kernel thread goes.
#
#   kernel-pktgen.sh [INTERFACE [DESTINATION_MAC [SECONDS]]]
#
# Without an interface it makes a veth pair in a namespace of its own and sends from one end to the other, which shows the
# generator's own ceiling. Name the TAP of a switch's port, or a NIC, to load a switch. Environment: SIZE, bytes in memory
# (60); THREAD, the CPU whose kernel thread sends (0). Needs root.
# Exit codes: 0 done, 1 failed, 2 wrong usage, 3 cannot run here: the kernel has no such module.
set -eu

if [ $# -gt 3 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
if [ ! -d /proc/net/pktgen ]; then
    modprobe pktgen 2>/dev/null || true
fi
if [ ! -d /proc/net/pktgen ]; then
    echo "this kernel ($(uname -r)) has no module pktgen (CONFIG_NET_PKTGEN); Debian's linux-image-amd64 has it" >&2
    exit 3
fi
if [ $# -eq 0 ] && [ "${INSIDE:-}" != 1 ]; then
    # The namespace and the pair end with the script.
    INSIDE=1 exec unshare --net --mount --propagation=private "$0"
fi
interface=${1:-} destination=${2:-ff:ff:ff:ff:ff:ff} seconds=${3:-5} size=${SIZE:-60} thread=${THREAD:-0}
sink=
if [ -z "$interface" ]; then
    mount -t sysfs sysfs /sys
    ip link add generator type veth peer name sink
    ip link set generator up
    ip link set sink up
    interface=generator sink=sink
    destination=$(cat /sys/class/net/sink/address)
fi
control=/proc/net/pktgen
tell() { # file, words: the kernel answers in the file's Result line
    echo "$2" >"$control/$1"
    case $(grep '^Result:' "$control/$1" || true) in
        *Error* | *error*) echo "$1: $2: $(grep '^Result:' "$control/$1")" >&2; exit 1 ;;
    esac
}
received() { cat "/sys/class/net/$sink/statistics/rx_packets"; }

tell "kpktgend_$thread" "rem_device_all"
tell "kpktgend_$thread" "add_device $interface"
tell "$interface" "count 0"
tell "$interface" "delay 0"
tell "$interface" "pkt_size $size"
tell "$interface" "dst_mac $destination"
tell "$interface" "dst 10.0.0.2"
tell "$interface" "burst 32" || true
before=$([ -z "$sink" ] || received)
# Writing "start" returns when all threads have stopped.
echo start >"$control/pgctrl" &
sleep "$seconds"
echo stop >"$control/pgctrl"
wait
grep -A1 '^Result:' "$control/$interface"
[ -z "$sink" ] || echo "received at the other end: $(($(received) - before))"
tell "kpktgend_$thread" "rem_device_all"
