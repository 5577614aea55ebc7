# docker build -t tokenizers-vq .
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" tokenizers-vq encode vit-vqgan-tiny-64 photos/ --out codes/
# tvq-prior: docker run ... --entrypoint tvq-prior tokenizers-vq sample gpt-tiny-imagenet-64 --out samples/
FROM python:3.11-slim

COPY . /src
# torch first: the CPU build, unless TORCH_INDEX names another.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c /src/constraints.txt --index-url "$TORCH_INDEX" torch torchvision \
    && pip install --no-cache-dir -c /src/constraints.txt "/src[backbones]" \
    && rm -r /src

# Any user may run it: caches go to a home that all can write.
RUN useradd --create-home user && chmod 777 /home/user && mkdir -m 777 /work
ENV HOME=/home/user
USER user
WORKDIR /work
ENTRYPOINT ["tvq"]
CMD ["--help"]
