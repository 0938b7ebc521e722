#!/usr/bin/env bash
# The tests on Flex behind a burn-remote server of the same process, over WebSocket on loopback:
# every tensor operation crosses the wire, so properties get few cases. Building burn-remote takes
# about 5 minutes, the tests as long.
set -euo pipefail
cd "$(dirname "$0")/.."
export BURN_PREFERENCE_DEVICE=remote PROPTEST_CASES=${PROPTEST_CASES:-4}
cargo test --features remote-server,remote-websocket --test parity --test suite --no-fail-fast
