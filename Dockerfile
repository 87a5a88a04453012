# One image for every node of a cluster and for `docker run ... segdist train`. Building it requires BuildKit, Docker's default.
#   make image               CUDA from PyTorch's wheels; the host needs the NVIDIA driver and container toolkit
#   make image TARGET=cpu    PyTorch for CPUs, several GB smaller
ARG BASE=python:3.11-slim

FROM ${BASE} AS builder
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build

# Write segdist's requirements to a separate file, so that other changes to pyproject.toml do not rebuild the large layers below.
# ONNX is included, because clusters also run exports.
FROM builder AS requirements
COPY pyproject.toml .
RUN python3 -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["onnx"], sep="\n")' > requirements.txt

# Dependencies only. They are large and change rarely, and a change to our code does not reinstall them.
FROM builder AS dependencies-cuda
COPY constraints.txt .
COPY --from=requirements /build/requirements.txt .
RUN pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
    && pip check

FROM builder AS dependencies-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt .
COPY --from=requirements /build/requirements.txt .
# This index has PyTorch in the pinned version, but PyTorch's own dependencies in other versions.
RUN pip install --no-cache-dir --constraint constraints.txt --no-deps --index-url "${TORCH_INDEX}" torch torchvision \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
    && pip check

FROM builder AS code
COPY pyproject.toml README.md LICENSE ./
COPY segdist segdist
RUN pip install --no-cache-dir --no-deps --root /code .

FROM ${BASE} AS runtime
# KubeRay's probes need wget. `ray up` needs rsync and ssh, also inside the head's container to set up workers. train.compile
# needs g++. Versions are not pinned, because Debian's mirrors keep only the newest. `ray up` uses login shells, which reset
# PATH. The last command removes setuid and setgid bits from all programs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && echo "PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/venv.sh \
    && useradd --create-home --uid 1000 segdist \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# `ray up` reads HOME from here to expand ~.
ENV HOME=/home/segdist PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
# A numeric ID, because Kubernetes cannot verify `runAsNonRoot` for a user name.
USER 1000
WORKDIR /home/segdist
CMD ["segdist", "--help"]

FROM runtime AS cpu
COPY --from=dependencies-cpu /opt/venv /opt/venv
COPY --from=code /code /
COPY jobs jobs
COPY configs configs

FROM runtime AS cuda
# Without these variables, the NVIDIA runtime, which `ray up` selects, exposes no GPU to the container.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=dependencies-cuda /opt/venv /opt/venv
COPY --from=code /code /
COPY jobs jobs
COPY configs configs
