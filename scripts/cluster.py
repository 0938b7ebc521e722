#!/usr/bin/env python3
"""Runs a program by `mpirun`, a process on each of several simulated machines, and is the network between them.

    scripts/cluster.py --machines 4 --mbit 1000 --delay-ms 0.1 --cores 0.2 PROGRAM ARGUMENTS...

A machine is a network namespace with a host name and a share of the processors of its own; files are
common. Open MPI starts a daemon on each, as it would by ssh, and speaks TCP. Each machine has one link,
of so many megabits a second in each direction, and a frame takes so long from one to another. With
`--cut N` the last machine loses its link N seconds after the first large frame. Wants root, Linux, `ip` and Open MPI.
"""

import argparse
import ctypes
import fcntl
import heapq
import os
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

# Frames as large as a card takes: Python forwards them.
MTU = 60_000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
HOME = open("/proc/self/ns/net")
# A file system of control groups of the first kind, or of the second.
GROUPS = "/sys/fs/cgroup/cpu" if os.path.isdir("/sys/fs/cgroup/cpu") else "/sys/fs/cgroup"

# What Open MPI calls instead of ssh: a host, and the words of a command.
AGENT = """#!/bin/sh
machine={folder}/${{1##*.}}; shift
if [ -e $machine/group ]; then echo $$ > $machine/group/cgroup.procs; fi
exec nsenter --net=$machine/ns/net --uts=$machine/ns/uts sh -c "$*"
"""


def enter(namespace):
    if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def group_of(folder, number):
    return f"{GROUPS}/{os.path.basename(folder)}-{number}"


class Machine:
    """The namespaces of a process that sleeps, a card there whose other end is here, and a group of processes."""

    def __init__(self, number, folder):
        self.address, self.mac = f"10.77.0.{number}", f"02:00:00:00:00:{number:02x}"
        self.folder = f"{folder}/{number}"
        self.group = group_of(folder, number)
        script = f"hostname machine-{number}; echo; exec sleep infinity"
        command = ["unshare", "--net", "--uts", "sh", "-c", script]
        self.sleeper = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.sleeper.stdout.readline()
        os.mkdir(self.folder)
        os.symlink(f"/proc/{self.sleeper.pid}/ns", f"{self.folder}/ns")

    def start(self, cores):
        if cores:
            os.mkdir(self.group)
            os.symlink(self.group, f"{self.folder}/group")
            period, quota = 20_000, int(20_000 * cores)
            one = {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": quota}
            two = {"cpu.max": f"{quota} {period}"}
            for file, limit in (one if GROUPS.endswith("cpu") else two).items():
                with open(f"{self.group}/{file}", "w") as out:
                    out.write(str(limit))
        with open(f"{self.folder}/ns/net") as namespace:
            enter(namespace)
        self.card = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.card, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI))
        enter(HOME)
        self.ip("link set lo up")
        self.ip(f"link set eth0 address {self.mac} mtu {MTU} up")
        self.ip(f"addr add {self.address}/24 dev eth0")

    def ip(self, line):
        subprocess.run(["nsenter", f"--net={self.folder}/ns/net", "ip", *line.split()], check=True)

    def knows(self, other):
        self.ip(f"neigh add {other.address} lladdr {other.mac} dev eth0")


def forward(machines, megabits, delay, cut, running):
    """Frames between the cards while the program runs."""
    of_card = {machine.card: place for place, machine in enumerate(machines)}
    sent, received = [0.0] * len(machines), [0.0] * len(machines)  # until when a link is busy
    last, gone = len(machines) - 1, None
    poll = select.poll()
    for card in of_card:
        poll.register(card, select.POLLIN)
    due, number = [], 0
    while running():
        wait = min(0.2, max(0.0, due[0][0] - time.monotonic())) if due else 0.2
        # Milliseconds, and a little longer than asked for.
        ready = poll.poll(1e3 * wait) if wait > 1e-4 else poll.poll(0)
        now = time.monotonic()
        for card, _ in ready:
            for _ in range(8):
                try:
                    frame = os.read(card, MTU + 64)
                except BlockingIOError:
                    break
                source, to = of_card[card], frame[5] - 1
                if not 0 <= to <= last or frame[:5] != b"\x02\0\0\0\0":
                    continue  # to nobody here, such as IPv6's search for neighbours
                if cut is not None and gone is None and len(frame) > 20_000:
                    gone = now + cut
                if gone is not None and now > gone and last in (source, to):
                    continue
                took = 8e-6 * len(frame) / megabits if megabits else 0.0
                sent[source] = max(now, sent[source]) + took
                received[to] = max(sent[source] + delay, received[to] + took)
                heapq.heappush(due, (received[to], number, to, frame))
                number += 1
        now = time.monotonic()
        while due and due[0][0] <= now:
            _, _, to, frame = heapq.heappop(due)
            try:
                os.write(machines[to].card, frame)
            except BlockingIOError:
                pass  # a card that is full: TCP sends again


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--mbit", type=float, help="of each link in each direction; default: as fast as it goes")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of a frame, one way")
    parser.add_argument("--cores", type=float, help="of each machine; default: all of this machine")
    parser.add_argument("--cut", type=float, metavar="SECONDS", help="when the last machine loses its link")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if os.getpid() == 1:
        return run(options)

    # As the first process of a namespace, so that whatever it started ends with it.
    folder = tempfile.mkdtemp(prefix="cluster-")
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, __file__]
    program = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        program = subprocess.Popen(alone + ["--folder", folder] + sys.argv[1:])
        return program.wait()
    finally:
        if program:
            program.kill()
        for number in range(1, options.machines + 1):
            group = group_of(folder, number)
            while os.path.isdir(group):
                try:
                    os.rmdir(group)
                except OSError:
                    time.sleep(0.1)  # its processes are about to end
        shutil.rmtree(folder)


def run(options):
    agent = f"{options.folder}/agent"
    with open(agent, "w") as file:
        file.write(AGENT.format(folder=options.folder))
    os.chmod(agent, 0o700)
    machines = [Machine(number, options.folder) for number in range(1, options.machines + 1)]
    for machine in machines:
        machine.start(options.cores)
    for machine in machines:
        for other in machines:
            if other is not machine:
                machine.knows(other)
    network = "10.77.0.0/24"
    command = ["exec", "mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", str(options.machines)]
    command += ["--host", ",".join(machine.address for machine in machines)]
    for key, value in {
        "plm_rsh_agent": agent,
        "plm_rsh_no_tree_spawn": "1",
        "btl": "self,tcp",
        "btl_tcp_if_include": network,
        "oob_tcp_if_include": network,
    }.items():
        command += ["--mca", key, value]
    program = subprocess.Popen([agent, machines[0].address, shlex.join(command + options.command)])
    forward(machines, options.mbit, 1e-3 * options.delay_ms, options.cut, lambda: program.poll() is None)
    return program.returncode


if __name__ == "__main__":
    sys.exit(main())
