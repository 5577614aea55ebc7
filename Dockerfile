# docker build -t tokenizers-vq . && docker run --rm -v "$PWD:/work" tokenizers-vq encode vit-vqgan-tiny-64 photos/ --out codes/
FROM python:3.11-slim

COPY . /src
# torch first: the CPU build, unless TORCH_INDEX names another.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision \
    && pip install --no-cache-dir "/src[backbones]" \
    && rm -r /src

RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["tvq"]
CMD ["--help"]
