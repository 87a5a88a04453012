# One image for every node of a cluster, and for `docker run ... segdist train`.
#   docker build -t segdist .
ARG BASE=python:3.11-slim
FROM ${BASE}

# KubeRay's probes call wget.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 segdist

WORKDIR /home/segdist/segdist

# Dependencies first: they are large and change rarely, so a change of the code below does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir segdist \
    && touch segdist/__init__.py \
    && pip install --no-cache-dir --constraint constraints.txt . \
    && rm -rf segdist build *.egg-info

COPY segdist segdist
RUN pip install --no-cache-dir --no-deps --force-reinstall .
COPY jobs jobs
COPY configs configs

USER segdist
ENV PYTHONUNBUFFERED=1
CMD ["segdist", "--help"]
