# The pipeline without its embedded stores: everything that docker-compose.yml runs beside the databases.

FROM python:3.13-slim-trixie AS builder
WORKDIR /build
COPY requirements.lock requirements-production.lock ./
# The wheel is built with the setuptools of the lock instead of the newest one.
RUN awk '/^[^ ]/ { wanted = /^setuptools==/ } wanted' requirements.lock > setuptools.lock \
    && pip install --no-cache-dir --require-hashes --no-deps -r setuptools.lock \
    && python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir --require-hashes --no-deps -r requirements-production.lock
COPY pyproject.toml setup.py README.md LICENSE dagster.yaml ./
COPY pipeline_poc pipeline_poc
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /venv/bin/python install --no-cache-dir --no-deps --no-index dist/*.whl

FROM python:3.13-slim-trixie
LABEL org.opencontainers.image.title="pipeline-poc" \
      org.opencontainers.image.description="API → MongoDB → Redis queue → MySQL, orchestrated by Dagster" \
      org.opencontainers.image.licenses="MIT"
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DAGSTER_HOME=/dagster
WORKDIR /app
# Nothing is installed any more, so nothing needs pip.
RUN pip uninstall --yes --quiet --root-user-action ignore pip \
    && useradd --uid 1000 --user-group --home-dir /app pipeline \
    && install --directory --owner=pipeline --group=pipeline /app /dagster
COPY --from=builder /venv /venv
# A new volume on /dagster begins with this, and with its owner.
COPY --chown=pipeline:pipeline dagster.yaml /dagster/
COPY deploy/workspace.yaml scripts/healthcheck /app/
USER 1000:1000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["/app/healthcheck"]
ENTRYPOINT ["pipeline-poc"]
CMD ["--help"]
