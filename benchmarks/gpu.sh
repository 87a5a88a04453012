#!/usr/bin/env bash
# What to run first when a CUDA device is at hand, most wanted first; each part leaves its result before the next begins.
#
# usage: benchmarks/gpu.sh OUT CAMVID [PHOTOS]
#   OUT: folder for results; CAMVID: prepared data set; PHOTOS: folder with images/, masks/ and names.txt, else streets are drawn
set -u
out=${1:?folder for results} camvid=${2:?prepared CamVid} photos=${3:-}
mkdir -p "$out"
part() { # name, command...: runs it, keeps its log, goes on whatever happens
    local name=$1 began=$SECONDS
    shift
    echo "== $name: $*" | tee -a "$out/log.txt"
    "$@" >"$out/$name.out" 2>"$out/$name.err"
    echo "== $name: exit $?, $((SECONDS - began)) s" | tee -a "$out/log.txt"
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/gpu.csv"
part tests timeout 180 python3 -m pytest -m gpu tests
for config in camvid_unet_r34 camvid_segformer_b0; do
    part "$config" timeout 560 python3 -m segdist train "configs/$config.yaml" "data.uri=$camvid" "run.uri=$out/$config" \
        io.loader_threads=12 train.strategy=ddp --json
    part "$config-score" python3 -m segdist evaluate "$out/$config" --json
done
step="timeout 180 python3 benchmarks/step.py --batch 16 --crop 512 --classes 150 --precision bf16 --stages"
part step-b0 $step --model segformer-b0 --trainer
part step-b2 $step --model segformer-b2
part step-unet $step --model unet-resnet34
stream="timeout 240 python3 benchmarks/stream.py --threads 2 4 8 16 --jitter ${photos:+--photos $photos}"
part stream $stream
part stream-busy $stream --busy
