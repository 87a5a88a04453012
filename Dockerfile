# One image for every node of a cluster, and for `docker run ... segdist train`. It needs BuildKit, as Docker has it.
#   make image               with the CUDA that PyTorch's wheels bring; the host has the driver and NVIDIA's container toolkit
#   make image TARGET=cpu    with PyTorch for CPUs, several GB smaller
ARG BASE=python:3.11-slim

FROM ${BASE} AS builder
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build

# What segdist needs, in a file of its own: other changes of pyproject.toml then leave the large layers below as they are.
# ONNX is among it, since exports are made on clusters, too.
FROM builder AS requirements
COPY pyproject.toml .
RUN python3 -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["onnx"], sep="\n")' > requirements.txt

# Dependencies alone: they are large and change rarely, so a change of our code does not install them again.
FROM builder AS dependencies-cuda
COPY constraints.txt .
COPY --from=requirements /build/requirements.txt .
RUN pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
    && pip check

FROM builder AS dependencies-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt .
COPY --from=requirements /build/requirements.txt .
# That index holds PyTorch in the pinned version, but what PyTorch needs in whatever version it likes.
RUN pip install --no-cache-dir --constraint constraints.txt --no-deps --index-url "${TORCH_INDEX}" torch torchvision \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
    && pip check

FROM builder AS code
COPY pyproject.toml README.md LICENSE ./
COPY segdist segdist
RUN pip install --no-cache-dir --no-deps --root /code .

FROM ${BASE} AS runtime
# wget is what KubeRay's probes call, rsync and ssh what `ray up` calls (on the head, from inside, to set workers up), and g++
# what train.compile calls. Versions are not pinned: Debian's mirrors keep only the newest. Login shells, in which `ray up`
# gives its commands, forget PATH. No program gives its caller the rights of another.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && echo "PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/venv.sh \
    && useradd --create-home --uid 1000 segdist \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# `ray up` reads here what ~ is.
ENV HOME=/home/segdist PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
# A number: Kubernetes takes no name for proof of `runAsNonRoot`.
USER 1000
WORKDIR /home/segdist
CMD ["segdist", "--help"]

FROM runtime AS cpu
COPY --from=dependencies-cpu /opt/venv /opt/venv
COPY --from=code /code /
COPY jobs jobs
COPY configs configs

FROM runtime AS cuda
# Without them the NVIDIA runtime, which `ray up` chooses, shows the container no GPU.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=dependencies-cuda /opt/venv /opt/venv
COPY --from=code /code /
COPY jobs jobs
COPY configs configs
