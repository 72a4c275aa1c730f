# syntax=docker/dockerfile:1
# The server's image with Ray, for several replicas (docs/scaling.md); from the checkout's folder, after the image itself:
#   docker build -t loramux:ray -f deploy/ray.Dockerfile --build-arg BASE=loramux:cuda .
ARG BASE=loramux:cpu
FROM ${BASE}
USER root
COPY requirements/ray.txt /build/
RUN python -m pip install --no-deps --require-hashes --requirement /build/ray.txt
USER 10001:10001
