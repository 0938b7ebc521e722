#!/usr/bin/env bash
# Against the newest Burn, pre-releases among them, in a copy of the last commit:
#
#   scripts/next_burn.sh              the newest version that the registry has
#   scripts/next_burn.sh 0.23.0-pre.1 this one
#   scripts/next_burn.sh … test       and the tests, once everything compiles
#
# It sets the versions, takes out the features that this Burn no longer has, applies
# scripts/next_burn.patch where there is one, and type-checks the workspace. What fails is listed
# file by file; ARCHITECTURE.md says which files are meant to be the only ones.
# About 10 minutes on 2 cores; the copy stays in target/next_burn.
set -euo pipefail
cd "$(dirname "$0")/.."
newest() { curl -sSf https://index.crates.io/bu/rn/burn | python3 -c '
import json, sys
lines = [json.loads(line) for line in sys.stdin]
print([line["vers"] for line in lines if not line["yanked"]][-1])'; }
version=${1:-$(newest)}
copy=$PWD/target/next_burn
rm -rf "$copy/tree"
mkdir -p "$copy/tree"
git archive HEAD | tar -x -C "$copy/tree"
cd "$copy/tree"
rm -f Cargo.lock
export VERSION=$version CARGO_TARGET_DIR=$copy/build CARGO_TERM_COLOR=never
python3 - <<'PY'
import json, os, pathlib, re, urllib.request

version = os.environ["VERSION"]
index = urllib.request.urlopen("https://index.crates.io/bu/rn/burn").read().decode().splitlines()
entry = next(e for e in map(json.loads, index) if e["vers"] == version)
has = set(entry["features"]) | set(entry.get("features2") or {})
for path in [pathlib.Path("Cargo.toml"), pathlib.Path("finetune/Cargo.toml"), *pathlib.Path("examples").glob("*/Cargo.toml")]:
    text = path.read_text()
    text = re.sub(r'^(burn(?:-cubecl|-fusion|-pack)? = (?:\{ version = )?)"0\.\d+\.\d+"',
                  rf'\g<1>"={version}"', text, flags=re.M)
    gone = [f for f in re.findall(r'"burn/([a-z0-9-]+)"', text) if f not in has]
    for feature in gone:
        print(f"{path}: burn has no feature `{feature}` any more")
        text = re.sub(rf'^({feature} = \[)[^\]]*\]', r"\g<1>]", text, flags=re.M)
    path.write_text(text)
PY
patch=$OLDPWD/scripts/next_burn.patch
if [ -e "$patch" ]; then
    echo "applying scripts/next_burn.patch"
    patch -p1 < "$patch"
fi
echo "burn $version"
check() { cargo check --workspace --all-targets --keep-going --message-format short 2>&1; }
if check > "$copy/check.log"; then
    echo 'everything compiles'
    if [ "${2:-}" = test ]; then cargo test --workspace --no-fail-fast; fi
else
    grep -E '^[^ ]+\.rs:[0-9]+:[0-9]+: error' "$copy/check.log" | sort -u > "$copy/errors.log" || true
    grep -E '^error' "$copy/check.log" | sort | uniq -c | sort -rn | head -5
    echo "errors by file (all of them: ${copy#"$OLDPWD"/}/errors.log):"
    cut -d: -f1 "$copy/errors.log" | sort | uniq -c | sort -rn
    exit 1
fi
