# One image for every command: agents, trainers, dashboard. Its Python packages are those of constraints.txt.
ARG BASE=docker.io/library/python:3.11.15-slim-bookworm

FROM ${BASE} AS packages
# Where torch itself, and nothing else, comes from: its CPU build here; https://pypi.org/simple has the one for CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python3 -m venv /tools && python3 -m venv --without-pip /opt/hpo
COPY constraints.txt ./
RUN /tools/bin/pip --python /opt/hpo/bin/python install --no-cache-dir --only-binary :all: --no-deps \
    --index-url "${TORCH_INDEX}" --constraint constraints.txt torch
COPY pyproject.toml ./
# What the project needs, without its code: a change of code leaves this layer as it is.
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; \
    print(*p['dependencies'], *e['demo'], *e['buckets'], sep='\n')" > requirements.txt \
    && /tools/bin/pip --python /opt/hpo/bin/python install --no-cache-dir --only-binary :all: \
    --constraint constraints.txt -r requirements.txt

FROM packages AS code
COPY README.md LICENSE ./
COPY hpo hpo
COPY objectives objectives
COPY search_spaces search_spaces
COPY storage storage
RUN /tools/bin/pip --python /opt/hpo/bin/python install --no-cache-dir --no-deps --prefix /code .

FROM ${BASE}
LABEL org.opencontainers.image.title="incident-hpo" \
      org.opencontainers.image.description="Hyperparameter optimisation for models of incident similarity" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nobody installs anything into a running container: the base's own pip goes too.
RUN groupadd --gid 10001 hpo \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/hpo --no-create-home --shell /usr/sbin/nologin hpo \
    && install --directory --owner=hpo --group=hpo /var/lib/hpo \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/pip* /usr/local/lib/python3.*/ensurepip
COPY --from=packages /opt/hpo /opt/hpo
COPY --from=code /code /opt/hpo
ENV PATH=/opt/hpo/bin:$PATH \
    HPO_HOME=/var/lib/hpo \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/hpo
VOLUME /var/lib/hpo
STOPSIGNAL SIGTERM
# Workers tell the database that they are well; the dashboard is looked at where it is started.
HEALTHCHECK NONE
ENTRYPOINT ["hpo"]
CMD ["--help"]
