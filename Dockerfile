# tnet with all readers, the viewer and the endpoint, on the CPU or an NVIDIA GPU.
#   docker build -t tnet .
#   docker run --rm --gpus all -v "$PWD:/data" tnet predict runs/photos new_photos --out predictions.csv
#   docker run --rm -p 127.0.0.1:8765:8765 -v "$PWD:/data" tnet view runs/photos --root photos --host 0.0.0.0 --no-open
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir hatchling==1.27.0 \
    && pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.12-slim
# Locked packages, each checked by hash, and then tnet itself.
COPY requirements.lock /tmp/
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --require-hashes -r /tmp/requirements.lock \
    && pip install --no-cache-dir --no-deps /wheels/*.whl \
    && rm -r /wheels /tmp/requirements.lock \
    && useradd --create-home --uid 1000 tnet
USER 1000
WORKDIR /data
ENTRYPOINT ["tnet"]
CMD ["--help"]
