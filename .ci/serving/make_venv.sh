#!/usr/bin/env bash
# Makes the virtual environment with a vLLM that runs on a CPU:  .ci/serving/make_venv.sh FOLDER [PYTHON]
# Prints `ready: FOLDER/bin/python` when it can be used. Where pip can't see the one torch that this build takes, prints
# `skipped: …` and ends with status 0: the caller tells the two apart by the file FOLDER/bin/python and FOLDER/.made.
# Made once: a second run with the same files does nothing.
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 FOLDER [PYTHON]" >&2
    exit 2
fi
folder=$1
python=${2:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
made=$(cat "$here/requirements.txt" "$here/torchvision_beside_cpu_torch.py" "$here/make_venv.sh" | sha256sum | cut -c1-16)

if [ -f "$folder/.made" ] && [ "$(cat "$folder/.made")" = "$made" ]; then
    echo "ready: $folder/bin/python (made before)"
    exit 0
fi
torch=$(grep '^torch==' "$here/requirements.txt")
rm -rf "$folder"
"$python" -m venv "$folder"
if ! "$folder/bin/python" -m pip install --quiet --dry-run --no-deps "$torch" >"$folder/torch.log" 2>&1; then
    tail -n 1 "$folder/torch.log" >&2
    rm -rf "$folder"
    echo "skipped: pip can't see $torch, which the CPU build of vLLM needs exactly"
    exit 0
fi
"$folder/bin/python" -m pip install --quiet -r "$here/requirements.txt"
# Builds for CUDA that can't be imported beside a CPU torch. vLLM does without them.
"$folder/bin/python" -m pip uninstall --quiet --yes torchaudio torchcodec
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp "$here/torchvision_beside_cpu_torch.py" "$site/"
echo 'import torchvision_beside_cpu_torch' >"$site/torchvision_beside_cpu_torch.pth"
echo "$made" >"$folder/.made"
echo "ready: $folder/bin/python"
