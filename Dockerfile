# syntax=docker/dockerfile:1
# Targets: `cpu` and `cuda`. Each is the `perfusion` command and a node of a Ray cluster, also under KubeRay.
#
#   docker build --target cuda --sbom=true --provenance=true --build-arg REVISION=$(git rev-parse HEAD) -t perfusion:cuda .
#   docker build --target cpu --build-arg CPU_INDEX=... -t perfusion:cpu .
#
# CPU_INDEX is the package index that has PyTorch's CPU builds; without it the cpu target gets the CUDA build as well.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY perfusion_ops perfusion_ops
COPY pipeline pipeline
COPY cluster cluster
COPY jobs jobs
# pip before 25.3 reads the first variable for the build backend, later ones the second.
RUN PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
    python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS base
# KubeRay's health probes call wget. Debian removes old versions, so a pinned one would stop the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 perfusion
ENV PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="perfusion" \
    org.opencontainers.image.description="Bulk personalisation of product photos" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}"
HEALTHCHECK --interval=60s --timeout=30s --start-period=10s CMD ["perfusion", "--version"]
WORKDIR /home/perfusion
ENTRYPOINT ["perfusion"]

# The wheel is installed by its path: with a name, an index that offers a newer release of it would win.
FROM base AS cpu
ARG CPU_INDEX=""
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -- /wheels/*.whl \
    && python -m pip install --no-cache-dir --constraint /constraints.txt \
    ${CPU_INDEX:+--extra-index-url "${CPU_INDEX}"} "${1}[s3,gcs,azure]" \
    && python -m pip inspect > /usr/share/perfusion-packages.json
USER 1000

# The CUDA build of PyTorch brings its libraries; the host brings the driver.
FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -- /wheels/*.whl \
    && python -m pip install --no-cache-dir --constraint /constraints.txt "${1}[s3,gcs,azure]" \
    && python -m pip inspect > /usr/share/perfusion-packages.json
USER 1000
