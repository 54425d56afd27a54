# SimpleTuner on NVIDIA GPUs: one image for the server and for workers (compose.yaml).
# The wheels of torch bring CUDA's libraries; the base image declares which driver they need.
ARG CUDA_IMAGE=nvidia/cuda:12.8.1-base-ubuntu24.04
FROM ${CUDA_IMAGE}

# gcc and the headers of Python are for torch.compile and Triton's kernels.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/simpletuner PATH=/opt/simpletuner/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv $VIRTUAL_ENV

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY environments environments
COPY simpletuner_site simpletuner_site
COPY trainer_engine trainer_engine
COPY training training
ARG EXTRAS=cuda
RUN pip install ".[${EXTRAS}]" && rm -rf /src/*

# The home with config/, state/ and the Hugging Face cache: mount a volume here, or everything goes with the container.
RUN useradd --create-home --uid 10001 trainer && install --directory --owner trainer /workspace
USER trainer
WORKDIR /workspace
ENV HF_HOME=/workspace/huggingface SIMPLETUNER_HOME=/workspace
VOLUME /workspace
EXPOSE 8001

# Other machines reach a container's port, so the server needs SIMPLETUNER_TOKEN, or prints a token that it makes (--generate-token).
CMD ["simpletuner", "server", "--host", "0.0.0.0"]
