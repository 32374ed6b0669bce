# The API and the dashboard in one image; `docker compose up --build` starts a container of each.
# The base is pinned by its full version. Who wants the same bytes each time adds the digest that a registry shows for it.
FROM python:3.11.15-slim-bookworm

# PyPI's PyTorch for Linux brings CUDA, several gigabytes. For the CPU alone, name the package index that PyTorch's own
# installation page gives for it: --build-arg TORCH_INDEX_URL=...
ARG TORCH_INDEX_URL=""

# Logs reach `docker logs` at once.
ENV PYTHONUNBUFFERED=1

# The folder of the models exists before a volume is mounted there, so that the volume belongs to this user.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin assistant && \
    install --directory --owner=assistant --group=assistant /home/assistant/.cache /home/assistant/.cache/huggingface

WORKDIR /app

# OpenCV's headless build, PyTorch and the decoders carry what they need beyond this base: no system package is installed.
# Every file is held against its hash; PyTorch's own index has other files than those whose hashes are locked.
COPY requirements.txt requirements-locked.txt constraints.txt ./
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN if [ -z "$TORCH_INDEX_URL" ]; then \
        pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements-locked.txt; \
    else \
        pip install --no-cache-dir --extra-index-url "$TORCH_INDEX_URL" --constraint constraints.txt --requirement requirements.txt; \
    fi

# From what changes seldom to what changes often.
COPY LICENSE ./
COPY assets/ assets/
COPY .streamlit/ .streamlit/
COPY modules/ modules/
COPY api/ api/
COPY dashboard/ dashboard/
COPY app.py launcher.py main.py medgemma.py ./

USER 10001:10001
EXPOSE 8000 8501

HEALTHCHECK --interval=15s --timeout=10s --start-period=180s --retries=3 CMD ["python", "-c", "import http.client, sys; api = http.client.HTTPConnection('127.0.0.1', 8000, timeout=5); api.request('GET', '/health'); sys.exit(api.getresponse().status != 200)"]

# All of the container's addresses, because a published port arrives on none of its own loopback. So whoever asks comes from
# elsewhere and needs the key: without API_KEY, all but /health is refused.
CMD ["python", "-m", "uvicorn", "main:app", "--host", "0.0.0.0", "--port", "8000", "--http", "h11", "--ws", "none", "--timeout-graceful-shutdown", "6"]
