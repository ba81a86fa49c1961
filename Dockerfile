# A server for one bundle of `vidi export RUN --to onnx`: onnxruntime, no torch.
#
#   docker build --build-context bundle=runs/photos/bundle --tag photos .
#   docker run --read-only --cap-drop ALL --publish 127.0.0.1:8000:8000 --env VIDI_TOKEN photos \
#     --allow-host localhost
#
# Inside a container every address counts as outside, so a token is needed, and each name by which
# it is called (localhost, or that of a proxy in front) is given with --allow-host.
# Not the slim one: this one has a C compiler, for vidi's own way to resize.
FROM python:3.12 AS build
COPY . /source
# vidi without its dependencies, and of those only what a bundle needs.
RUN python -m venv /opt/vidi \
 && /opt/vidi/bin/pip install --no-cache-dir --no-compile --constraint /source/constraints.txt \
    numpy pillow simplejpeg pydantic typer rich jinja2 onnxruntime uvicorn h11 pyarrow \
 && /opt/vidi/bin/pip install --no-cache-dir --no-compile --no-deps /source

FROM python:3.12-slim
COPY --from=build /opt/vidi /opt/vidi
# `bundle` is the build context of the command above, which hadolint does not know.
# hadolint ignore=DL3022
COPY --from=bundle . /bundle
# Nobody: the process writes nothing and owns nothing.
USER 65534:65534
ENV PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["/opt/vidi/bin/python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/readyz', headers={'Host': 'localhost'}); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["/opt/vidi/bin/vidi", "serve", "/bundle", "--host", "0.0.0.0"]
