#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
"""Clients of several memcacheds, which share the keys out by pymemcache.

    client.py SEED PROCESSES NODE...

Each process has keys of its own. It writes over TCP as the library sees fit, and
reads over UDP from the node that the library would ask, and from the others: as
nobody else writes its keys, it knows what each node must answer. Where it does
not, as after a write that failed or a node that came back, it asks that node over
TCP, before the answer over UDP.

stdin has a line for each phase, ended by an empty one; it is answered, and named
in what is printed at last: for each phase and node what was asked and answered.
"""

import json
import multiprocessing
import random
import socket
import sys
import time

from pymemcache.client.hash import HashClient

SLICE = 0.05  # s; after so long it is asked whether the node is still there
PATIENCE = 5  # s; for a node that is


class Lost(Exception):
    """The node is not there."""


class Node:
    """What this process knows of one memcached."""

    def __init__(self, name):
        self.name = name
        host, port = name.split(":")
        self.address = host, int(port)
        self.tcp = None
        self.lives = 0
        self.holds = {}  # key -> value, None if it is not there
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.settimeout(SLICE)
        self.udp.connect(self.address)
        self.id = 0

    def ask_tcp(self, command, last):
        """The reply, up to the line `last`. Raises Lost."""
        try:
            if not self.tcp:
                connection = socket.create_connection(self.address, 5)
                self.tcp = connection, connection.makefile("rb")
                self.lives += 1
                self.holds = {}  # whatever it was: ask
            self.tcp[0].sendall(command)
            text = b""
            while not text.endswith(last):
                line = self.tcp[1].readline()
                if not line:
                    raise ConnectionResetError
                text += line
            return text
        except OSError as error:
            self.tcp = None
            raise Lost from error

    def lives_on(self):
        """Which life this is of its lives; 0: it is dead, and nobody listens."""
        for _ in range(2):  # a connection may be closed before the listener is
            try:
                self.ask_tcp(b"mn\r\n", b"MN\r\n")
                return self.lives
            except Lost:
                pass
        return 0

    def value(self, key, counts):
        """What it holds. Raises Lost."""
        if key not in self.holds:
            counts["tcp_keys"] += 1
            text = self.ask_tcp(b"get %s\r\n" % key.encode(), b"END\r\n")
            self.holds[key] = parse(text).get(key)
        return self.holds[key]

    def receive(self, life):
        """The next datagram, while it lives that life. Raises OSError."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self.udp.recv(2048)
            except TimeoutError:
                if not life or self.lives_on() != life or time.monotonic() > end:
                    raise

    def get(self, keys, life, counts):
        """What it answers over UDP; None if it does not."""
        self.id = (self.id + 1) % 65536
        head = self.id.to_bytes(2, "big")
        text = b""
        try:
            self.udp.send(head + b"\0\0\0\1\0\0get " + " ".join(keys).encode() + b"\r\n")
            counts["requests"] += 1
            counts["keys"] += len(keys)
            while not text.endswith(b"END\r\n"):
                datagram = self.receive(life)
                if datagram[:2] == head:
                    text += datagram[8:]
        except OSError:  # no answer, or "nobody is there"
            counts["silent"] += 1
            return None
        counts["answers"] += 1
        return parse(text)


def parse(text):
    """The values of a reply to get."""
    values = {}
    while text != b"END\r\n":
        line, rest = text.split(b"\r\n", 1)
        word, key, _, length = line.split(b" ")
        assert word == b"VALUE", text
        values[key.decode()], text = rest[: int(length)], rest[int(length) + 2 :]
    return values


class Fleet(HashClient):
    """The library's client, which also tells which node it took for a key."""

    def __init__(self, nodes):
        super().__init__(
            [node.address for node in nodes],
            connect_timeout=1,
            timeout=2,
            retry_attempts=1,
            retry_timeout=0.1,
            dead_timeout=0.5,
            ignore_exc=True,
            default_noreply=False,
        )
        self.took = {}

    def _get_client(self, key):
        client = super()._get_client(key)
        self.took[key] = client and self._make_client_key(client.server)
        return client


class Process:
    """One client process."""

    def __init__(self, number, seed, names, phase):
        self.number, self.rng, self.phase = number, random.Random(seed * 1000 + number), phase
        self.nodes = {name: Node(name) for name in names}
        self.fleet = Fleet(self.nodes.values())
        self.home = Fleet(self.nodes.values()).hasher  # were none of them ever lost
        self.keys = [f"p{number}-{n}" for n in range(40)]
        self.numbers = [f"n{number}-{n}" for n in range(10)]
        self.counts = {}
        self.serial = 0

    def count(self, node):
        """The counters of the phase and the node."""
        fresh = dict.fromkeys(
            ("requests", "keys", "answers", "silent", "found", "tcp_keys", "writes", "moved"), 0
        )
        return self.counts.setdefault((self.phase.value, node.name), fresh)

    def new_value(self):
        """One that there never was."""
        self.serial += 1
        text = f"{self.number}:{self.serial}:"
        return (text + "x" * self.rng.choice((0, 10, 100, 700))).encode()

    def note(self, key, known, value=None):
        """A write was tried; `known` if it is certain what became of it."""
        name = self.fleet.took.pop(key)
        if not name:
            return
        node = self.nodes[name]
        counts = self.count(node)
        counts["writes"] += 1
        counts["moved"] += self.home.get_node(key) != name
        node.holds.pop(key, None)
        if known:
            node.holds[key] = value

    def write(self):
        """One command of the library's."""
        lives = {name: node.lives_on() for name, node in self.nodes.items()}
        what, key = self.rng.randrange(10), self.rng.choice(self.keys)
        if what < 4:
            value = self.new_value()
            self.note(key, self.fleet.set(key, value), value)
        elif what < 6:
            values = {key: self.new_value() for key in self.rng.sample(self.keys, 5)}
            failed = self.fleet.set_many(values)
            for key, value in values.items():
                self.note(key, key not in failed, value)
        elif what < 8:
            # False is "not found" as well as "it failed": what it held is asked for.
            self.note(key, self.fleet.delete(key) is True)
        else:
            key = self.rng.choice(self.numbers)
            number = self.fleet.incr(key, self.rng.randrange(1, 9))
            if number:
                self.note(key, True, str(number).encode())
            else:
                self.note(key, False)
                number = str(self.rng.randrange(1000)).encode()
                self.note(key, self.fleet.set(key, number), number)
        for name, node in self.nodes.items():
            if not lives[name] or node.lives_on() != lives[name]:
                node.holds = {}  # the write may have been to its life before

    def read(self):
        """One GET over UDP."""
        key = self.rng.choice(self.keys + self.numbers)
        name = self.fleet.hasher.get_node(key)
        if not name or self.rng.randrange(8) == 0:
            name = self.rng.choice(list(self.nodes))
        node, keys = self.nodes[name], [key]
        if self.rng.randrange(3) == 0:
            same = [key for key in self.keys if self.fleet.hasher.get_node(key) == name]
            keys = self.rng.sample(same, min(len(same), self.rng.randrange(1, 5))) or keys
        counts = self.count(node)
        life = node.lives_on()
        try:
            values = {key: node.value(key, counts) for key in keys}
        except Lost:
            life, values = node.lives_on(), {}
            if life:
                return  # it came back at once
        answer = node.get(keys, life, counts)
        after = node.lives_on()
        if life and life == after:
            expected = {key: value for key, value in values.items() if value is not None}
            assert answer == expected, f"{name} get {keys}: {answer}, and holds {expected}"
            counts["found"] += len(answer)
        elif not life and not after:
            assert answer is None, f"{name} is dead, and answers {answer}"
        elif answer:
            # It came back or went meanwhile; what it answers, if it does, is of one
            # of the two lives: whichever that was, not of one that was over before.
            held = {key: value for key, value in values.items() if value is not None}
            assert life and answer == held, f"{name} came back with {answer}"

    def run(self):
        """Until the phase has no name."""
        while self.phase.value:
            if self.rng.randrange(4) == 0:
                self.write()
            else:
                self.read()
        return self.counts


def worker(number, seed, names, phase, results):
    """The body of a process."""
    try:
        results.put(Process(number, seed, names, phase).run())
    except BaseException as error:
        results.put(f"process {number}: {error!r}")
        raise


class Phase:
    """A word that the processes share."""

    def __init__(self):
        self.array = multiprocessing.Array("c", 32)

    @property
    def value(self):
        """The word."""
        return self.array.value.decode()

    @value.setter
    def value(self, word):
        self.array.value = word.encode()


def main():
    """The parent."""
    seed, processes, *names = sys.argv[1:]
    phase, results = Phase(), multiprocessing.Queue()
    phase.value = sys.stdin.readline().strip()
    children = [
        multiprocessing.Process(
            target=worker, args=(number, int(seed), names, phase, results), daemon=True
        )
        for number in range(int(processes))
    ]
    for child in children:
        child.start()
    print("noted", flush=True)
    while phase.value:
        phase.value = sys.stdin.readline().strip()
        print("noted", flush=True)
    sums, wrong = {}, []
    for _ in children:
        result = results.get(timeout=60)
        if isinstance(result, str):
            wrong.append(result)
            continue
        for (phase_name, node), counts in result.items():
            into = sums.setdefault(phase_name, {}).setdefault(node, dict.fromkeys(counts, 0))
            for name, count in counts.items():
                into[name] += count
    if wrong:
        sys.exit("\n".join(wrong))
    print(json.dumps(sums), flush=True)


if __name__ == "__main__":
    main()
