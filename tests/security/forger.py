#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
"""A process that is not memcached on memcached's UDP port.

    forger.py ADDRESS PORT OPTION

Opens a socket with the option (SO_REUSEADDR, ...), binds it, says so, and answers
each GET that gets there by a value of its own, as memcached would its.
"""

import socket
import sys

address, port, option = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
if family == socket.AF_INET6:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
try:
    sock.bind((address, int(port)))
except OSError as error:
    sys.exit(f"cannot bind: {error}")
print("bound", flush=True)
while True:
    request, client = sock.recvfrom(2048)
    key = request[8:].split()[1]
    reply = b"VALUE %s 0 6\r\nforged\r\nEND\r\n" % key
    sock.sendto(request[:8] + reply, client)
