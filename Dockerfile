# The executor.  Nothing in here needs more than the classic builder.
FROM python:3.11-slim

# A home outside of /tmp would be a second place that has to stay writable when the root file system is not.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fullsend
WORKDIR /app

# Dependencies before code: a change of code leaves this layer as it is.
COPY requirements.txt /src/
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --require-hashes -r /src/requirements.txt

COPY pyproject.toml README.md LICENSE /src/
COPY shared /src/shared
COPY services /src/services
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --no-deps --no-build-isolation /src && rm -r /src

# What runs when nothing is mounted over it.
COPY config /app/config
COPY tools /app/tools
VOLUME /app/tools
# What executors keep and share: artifacts, code that is asked for by reference, environments of tools.
RUN install --directory --owner fullsend /app/.fullsend
VOLUME /app/.fullsend

# `docker stop` kills after ten seconds unless told otherwise: by then every run must be finished or given back.
ENV PYTHONUNBUFFERED=1 \
    REDIS_URL=redis://redis:6379/0 \
    TOOLS_PATH=/app/tools \
    SHUTDOWN_GRACE=7

USER 10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python", "-m", "services.executor.health"]
CMD ["python", "-m", "services.executor.main"]
