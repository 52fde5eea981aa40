#!/bin/sh
# Called by udhcpc, with what the server said in the environment.
case $1 in
    deconfig) ip addr flush dev "$interface" ;;
    renew | bound)
        # A renewal must not take the address away, not even for a moment.
        ip addr show dev "$interface" | grep -q "inet $ip/$mask " || {
            ip addr flush dev "$interface"
            ip addr add "$ip/${mask:-24}" dev "$interface"
        }
        for gateway in $router; do
            ip route replace default via "$gateway" dev "$interface"
            break
        done
        for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
        [ "$1" = bound ] && say "ip $interface $ip/${mask:-24}"
        ;;
esac
exit 0
