# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""All that a GPU should show, in at most 25 minutes, what matters most first.

python tests/gpu/run_all.py OUTPUT_DIR

Each part has a limit of minutes; a part that fails or runs out of time doesn't keep the others from running. Logs and
tables are written into the folder as they come, so that nothing is lost when the machine is taken away.
"""

import json
import subprocess
import sys
import time
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = ("-m", "pytest", "-q", "-p", "no:xdist", "tests/gpu")
BENCHMARK = ("scripts/benchmark.py", "--device", "cuda", "--repeats", "10")
# Name, minutes, arguments of Python; `{}` is the folder.
PARTS = [
    ("tests", 5, [*TESTS, "-m", "not slow"]),
    ("train_bfloat16", 3, [*BENCHMARK, "--mode", "train", "--dtype", "bfloat16", "--json", "{}/train_bfloat16.json"]),
    ("train_float32", 3, [*BENCHMARK, "--mode", "train", "--json", "{}/train_float32.json"]),
    ("infer_bfloat16", 2, [*BENCHMARK, "--mode", "infer", "--dtype", "bfloat16", "--json", "{}/infer_bfloat16.json"]),
    ("train_batch_16", 3, [*BENCHMARK, "--mode", "train", "--dtype", "bfloat16", "--batch_size", "16"]),
    ("runs", 7, [*TESTS, "-m", "slow"]),
    ("postprocess", 2, [*BENCHMARK, "--mode", "postprocess", "--json", "{}/postprocess.json"]),
]


def main(output_dir: Path) -> int:
    """Runs every part and returns how many failed."""
    output_dir.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, minutes, arguments in PARTS:
        start = time.monotonic()
        command = [sys.executable, *(argument.format(output_dir.resolve()) for argument in arguments)]
        with (output_dir / f"{name}.log").open("w") as log:
            try:
                finished = subprocess.run(
                    command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, timeout=60 * minutes, check=False
                )
                result = "passed" if finished.returncode == 0 else f"failed with {finished.returncode}"
            except subprocess.TimeoutExpired:
                result = f"not done after {minutes} minutes"
        results[name] = {"result": result, "seconds": round(time.monotonic() - start)}
        print(f"{name}: {result} ({results[name]['seconds']} s)", flush=True)
        (output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return sum(each["result"] != "passed" for each in results.values())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
