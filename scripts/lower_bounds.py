#!/usr/bin/env python3
"""Are the lower bounds in Cargo.toml true? Takes every direct dependency down to its bound, in a
copy under target/, and checks that everything still compiles.

    scripts/lower_bounds.py            # check; about 5 minutes
    scripts/lower_bounds.py --test     # and run the tests; about 15 minutes

What `-Z direct-minimal-versions` does on nightly. A bound that another crate of the tree already
exceeds is an error: it says less than what is needed.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parent.parent
copy = root / "target" / "lower-bounds"


def run(*command, **options):
    return subprocess.run(command, cwd=copy, check=True, **options)


shutil.rmtree(copy, ignore_errors=True)
files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, check=True,
                       capture_output=True, text=True).stdout.splitlines()
for name in files:
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(root / name, copy / name)

metadata = run("cargo", "metadata", "--format-version=1", "--no-deps", capture_output=True, text=True)
bounds = {}
for dependency in json.loads(metadata.stdout)["packages"][0]["dependencies"]:
    found = re.fullmatch(r"\^(\d+(?:\.\d+)*)", dependency["req"])
    if found and not dependency.get("path"):
        version = (found[1].split(".") + ["0", "0"])[:3]
        bound = max(bounds.get(dependency["name"], [0, 0, 0]), [int(part) for part in version])
        bounds[dependency["name"]] = bound

too_low = []
for name, bound in sorted(bounds.items()):
    version = ".".join(map(str, bound))
    locked = json.loads(run("cargo", "metadata", "--format-version=1", capture_output=True,
                            text=True).stdout)["packages"]
    # Of several versions in the tree, the one that this bound is about.
    same = [package["version"] for package in locked if package["name"] == name]
    mine = [v for v in same if v.split(".")[: 1 if bound[0] else 2]
            == [str(part) for part in bound[: 1 if bound[0] else 2]]]
    command = ["cargo", "update", f"{name}@{mine[0]}", "--precise", version]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    print(f"{name} {mine[0]} -> {version}: {'ok' if done.returncode == 0 else 'refused'}")
    if done.returncode:
        too_low.append(f"{name} {version}: {done.stderr.strip().splitlines()[-1]}")

if too_low:
    sys.exit("bounds below what the rest of the tree needs:\n" + "\n".join(too_low))
target = ["--target-dir", str(root / "target" / "lower-bounds-build")]
if "--resolve" in sys.argv:
    sys.exit()
run("cargo", "check", "--all-targets", *target)
if "--test" in sys.argv:
    run("cargo", "test", *target)
