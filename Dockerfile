# The steps of docs/install.md, "An environment of your own", with the CPU build of torch.
#
#   docker build -t maskclip-bench .
#   docker run --rm --init -v "$PWD/workspace:/workspace" maskclip-bench run --suite all
#
# On a machine with GPUs: leave the line of the CPU build out, and run with --gpus all.
FROM python:3.12-slim

WORKDIR /src
COPY . .
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir '.[pictures]'

RUN useradd --create-home bench && mkdir /workspace && chown bench /workspace
USER bench
WORKDIR /workspace
ENV MASKCLIP_BENCH_WORKSPACE=/workspace
ENTRYPOINT ["maskclip-bench"]
CMD ["--help"]
