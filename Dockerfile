# The executor's image.  The classic builder is enough to build it.
FROM python:3.11-slim

# The home directory is /tmp, so that only /tmp has to be writable if the root file system is read-only.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fullsend
WORKDIR /app

# Dependencies come before the code, so that a change of code does not rebuild this layer.
COPY requirements.txt /src/
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --require-hashes -r /src/requirements.txt

COPY pyproject.toml README.md LICENSE /src/
COPY shared /src/shared
COPY services /src/services
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --no-deps --no-build-isolation /src && rm -r /src

# Defaults; volumes can be mounted over them.
COPY config /app/config
COPY tools /app/tools
VOLUME /app/tools
# Data that executors keep and share: artifacts, unpacked code of tools, environments of tools.
RUN install --directory --owner fullsend /app/.fullsend
VOLUME /app/.fullsend

# `docker stop` kills after ten seconds by default; before that, every run must have ended or be back in the queue.
ENV PYTHONUNBUFFERED=1 \
    REDIS_URL=redis://redis:6379/0 \
    TOOLS_PATH=/app/tools \
    SHUTDOWN_GRACE=7

USER 10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python", "-m", "services.executor.monitoring.healthcheck"]
CMD ["python", "-m", "services.executor.main"]
