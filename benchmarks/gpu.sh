#!/usr/bin/env bash
# What to run first when a CUDA device is at hand, most wanted first; each part leaves its result before the next begins.
#
# usage: benchmarks/gpu.sh OUT CAMVID [PART...]
#   OUT: folder for results; CAMVID: prepared data set; PART: tests, unet, segformer, step-b0, step-b2, step-unet, stream,
#   stream-busy, in the order given; without any, all of them, which take some 45 minutes at most
set -u
out=${1:?folder for results} camvid=${2:?prepared CamVid}
shift 2
mkdir -p "$out"
part() { # name, command...: runs it, keeps its log, goes on whatever happens
    local name=$1 began=$SECONDS
    shift
    echo "== $name: $*" | tee -a "$out/log.txt"
    "$@" >"$out/$name.out" 2>"$out/$name.err"
    echo "== $name: exit $?, $((SECONDS - began)) s" | tee -a "$out/log.txt"
}
train() { # name, config
    part "$1" timeout 560 python3 -m segdist train "configs/$2.yaml" "data.uri=$camvid" "run.uri=$out/$1-run" \
        io.loader_threads=12 train.strategy=ddp --json
    part "$1-score" python3 -m segdist evaluate "$out/$1-run" --json
}
step() { # name, options...
    part "$@" --batch 16 --crop 512 --classes 150 --precision bf16 --stages
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/gpu.csv"
[ $# -gt 0 ] || set -- tests unet segformer step-b0 step-b2 step-unet stream stream-busy
for one in "$@"; do
    case $one in
    tests) part tests timeout 180 python3 -m pytest -m gpu tests/test_gpu.py ;;
    unet) train unet camvid_unet_r34 ;;
    segformer) train segformer camvid_segformer_b0 ;;
    step-b0) step step-b0 timeout 240 python3 benchmarks/step.py --model segformer-b0 --trainer ;;
    step-b2) step step-b2 timeout 180 python3 benchmarks/step.py --model segformer-b2 ;;
    step-unet) step step-unet timeout 180 python3 benchmarks/step.py --model unet-resnet34 ;;
    stream) part stream timeout 240 python3 benchmarks/stream.py --threads 2 4 8 16 --jitter ;;
    stream-busy) part stream-busy timeout 240 python3 benchmarks/stream.py --threads 2 4 8 16 --jitter --busy ;;
    *) echo "no part $one" >&2 ;;
    esac
done
