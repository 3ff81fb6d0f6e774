# The packages of requirements.lock, and the library. The pipeline is in the clone that is mounted at /convae: see
# docs/cluster.md#containers
FROM debian:bookworm-slim

# Debian keeps only the latest version of a package, so pinned ones would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Outside /convae, which the mounted clone covers. make takes variables from MAKEFLAGS.
ENV PATH=/opt/convae/bin:$PATH MAKEFLAGS=BIN=/opt/convae/bin
WORKDIR /convae

# cpu: PyTorch's own builds, which the lock has no hashes of, in its versions, and no CUDA. cuda: the lock as it is.
ARG TORCH=cpu
COPY requirements.lock ./
RUN python3 -m venv /opt/convae \
    && if [ "$TORCH" = cpu ]; then \
        grep -oE '^torch(vision)?==[0-9.]+' requirements.lock > /tmp/torch.txt \
        && pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu -r /tmp/torch.txt \
        && awk '/^[a-z]/ { kept = !/^(cuda-|nvidia-[^m]|torch(vision)?==|triton)/ } kept' requirements.lock > /tmp/lock.txt; \
    else \
        cp requirements.lock /tmp/lock.txt; \
    fi \
    && pip install --no-cache-dir --no-deps --require-hashes -r /tmp/lock.txt

COPY LICENSE README.md pyproject.toml ./
COPY src src
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . && touch /opt/convae/bin/.installed

# Files in the clone should belong to its owner, who has this number on most computers with one user.
ARG UID=1000
# git refuses to read the repository of another user.
RUN if [ "$UID" != 0 ]; then useradd --create-home --uid "$UID" convae; fi \
    && git config --system --add safe.directory '*'
USER $UID

CMD ["make", "run"]
