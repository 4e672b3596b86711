# syntax=docker/dockerfile:1

# The official images' CPython is built with profile-guided optimisation.
ARG PYTHON=3.14

FROM python:${PYTHON}-slim AS build
WORKDIR /build
RUN python -m venv --without-pip /opt/relay
# The dependencies change less often than the code, so they have a layer of their own. Wheels only: nothing is compiled.
COPY requirements.lock requirements-dev.lock ./
RUN pip --python /opt/relay/bin/python install --no-cache-dir --only-binary=:all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY relay relay
RUN pip --python /opt/relay/bin/python install --no-cache-dir --no-deps --build-constraint requirements-dev.lock .

FROM python:${PYTHON}-slim
COPY --from=build /opt/relay /opt/relay
ENV PATH=/opt/relay/bin:$PATH \
    RELAY_HOST=0.0.0.0 \
    RELAY_PORT=8080 \
    RELAY_POLICY=/etc/relay/policy
# Where a volume for RELAY_STATE can be mounted: a new one takes over the owner of the folder that it covers.
RUN install -d -o 10001 -g 10001 -m 700 /var/lib/relay
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['RELAY_PORT'] + '/healthz', timeout=2)"]
ENTRYPOINT ["relay", "serve"]
