# The steps of docs/install.md, "An environment of your own", with the CPU build of torch.
#
#   docker build -t maskclip-bench .
#   mkdir -p workspace
#   docker run --rm --init --user "$(id -u):$(id -g)" -v "$PWD/workspace:/workspace" \
#       maskclip-bench run --suite all
#
# With GPUs: build with --build-arg TORCH_INDEX=https://pypi.org/simple, and run with --gpus all.
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /src
COPY . .
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"
RUN pip install --no-cache-dir '.[pictures]'

# Whoever runs it may write here, and downloaded weights stay here (.cache): so files are the
# user's own, not root's. A user without an account needs a name (torch asks for one).
RUN mkdir /workspace && chmod 777 /workspace
WORKDIR /workspace
ENV MASKCLIP_BENCH_WORKSPACE=/workspace HOME=/workspace USER=bench
ENTRYPOINT ["maskclip-bench"]
CMD ["--help"]
