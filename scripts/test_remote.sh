#!/usr/bin/env bash
# The tests on Flex behind a burn-remote server of the same process, over WebSocket on loopback:
# every tensor operation crosses the wire. Building burn-remote takes about 5 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
export BURN_PREFERENCE_DEVICE=remote
cargo test --features remote-server,remote-websocket --test parity --test suite --no-fail-fast
