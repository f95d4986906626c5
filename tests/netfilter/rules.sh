# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# The rules that the files beside this one are what the kernel (6.18) lists of: nftables
# 1.0.6, iptables 1.8.11. nftables.bin has the netlink messages that answer for chains,
# rules and elements of sets; the others have where each hook begins, and the entries.

nft -f - <<END
table inet bmc {
	map targets {
		type inet_service : ipv4_addr . inet_service
		elements = { 80 : 10.0.0.1 . 8080, 11212 : 10.0.0.1 . 11211 }
	}
	chain endpoint {
		meta l4proto tcp dnat ip to 10.0.0.1:11211
	}
	chain service {
		numgen random mod 1 vmap { 0 : goto endpoint }
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr . meta l4proto . th dport vmap { 10.96.0.1 . tcp . 11213 : goto service, 10.96.0.2 . udp . 53 : accept }
		meta l4proto tcp dnat ip to tcp dport map @targets
		udp dport { 7, 11214-11216 } udp dport != 11215 redirect to :11211
		tcp sport 9 tcp dport 11217 redirect to :11211
		udp dport < 3 redirect to :11211
		ip6 daddr fd00::9 udp dport 11218 dnat ip6 to [fd00::1]:11211
	}
	chain output {
		type nat hook output priority 0; policy accept;
		tcp dport 1 redirect to :11211
	}
}
table ip raw {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		tcp dport 11219 tcp dport set 11211
	}
}
END
iptables-nft -t nat -A PREROUTING -p tcp -m multiport --dports 80,11220:11221 -j REDIRECT --to-ports 11211
iptables-nft -t nat -A PREROUTING -p udp --dport 11222 -j DNAT --to-destination 10.0.0.1:11211

for chain in NODEPORTS SVC; do
	iptables-legacy -t nat -N KUBE-$chain
done
iptables-legacy -t nat -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-NODEPORTS
iptables-legacy -t nat -A PREROUTING ! -p tcp -j ACCEPT
iptables-legacy -t nat -A PREROUTING -p udp ! --dport 3:65535 -j REDIRECT --to-ports 11211
iptables-legacy -t nat -A OUTPUT -p tcp --dport 1 -j REDIRECT --to-ports 11211
iptables-legacy -t nat -A KUBE-NODEPORTS -p tcp --dport 31211 -j KUBE-SVC
iptables-legacy -t nat -A KUBE-SVC -s 10.0.0.1 -j MARK --set-mark 1
iptables-legacy -t nat -A KUBE-SVC -p tcp -j DNAT --to-destination 10.0.0.1-10.0.0.3:11211
ip6tables-legacy -t nat -A PREROUTING -p tcp -m multiport ! --dports 1:11211,11213:65535 -j DNAT --to-destination "[fd00::1]:11211-11212"
ip6tables-legacy -t nat -A PREROUTING ! -p tcp -j REDIRECT --to-ports 11211
