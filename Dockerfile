# A gradient server. Its RUN and CMD lines are tested in a plain virtual environment
# (tests/test_docker.py).
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml hatch_build.py README.md ./
COPY client client
COPY server server
COPY examples examples
# for whichever processor the image runs on
ENV GRADWIRE_KERNELS=all
RUN python -m pip install --no-cache-dir .
RUN useradd --system --create-home gradwire
USER gradwire
EXPOSE 50051 5051
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["gradwire", "health", "localhost:50051"]
CMD ["gradwire", "serve", "--listen", "0.0.0.0:50051"]
