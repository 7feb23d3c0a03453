# One image for every role: `docker run forebay gateway`, `consume`, `migrate`, `status` ...

FROM python:3.13-slim AS build
RUN python -m venv --without-pip /opt/forebay
WORKDIR /src
# What Forebay needs is a layer of its own, so that a change of the code does not install all of it
# again. pip reads it from the project, hence the project with nothing in it but its version.
COPY pyproject.toml README.md ./
COPY forebay/__init__.py forebay/
RUN pip --python /opt/forebay install --no-cache-dir --disable-pip-version-check '.[postgresql,mysql,tracing]'
COPY forebay forebay
COPY gateway gateway
COPY consumers consumers
RUN pip --python /opt/forebay install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall .

FROM python:3.13-slim
# The folders are there for volumes: an empty one takes over whose the folder is.
RUN groupadd --gid 10001 forebay \
    && useradd --uid 10001 --gid forebay --no-create-home --home-dir /var/lib/forebay forebay \
    && install --directory --owner forebay --group forebay \
       /var/lib/forebay /var/lib/forebay/consumers /var/lib/forebay/journal /run/forebay
COPY --from=build /opt/forebay /opt/forebay
COPY deploy/compose/*.py /opt/forebay/compose/
# In a container a process is reached by its other address only, on one port for both roles. Without
# API keys a gateway that listens there does not start.
ENV PATH=/opt/forebay/bin:$PATH \
    FOREBAY_GATEWAY__HOST=0.0.0.0 \
    FOREBAY_CONSUMER__HEALTH_HOST=0.0.0.0 \
    FOREBAY_CONSUMER__HEALTH_PORT=8080
USER forebay
# forebay.toml and your handlers are looked for here; the embedded queue keeps its file here.
WORKDIR /var/lib/forebay
EXPOSE 8080
# `forebay healthcheck`, by the way that costs least.
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --start-interval=1s \
    CMD ["python", "-m", "forebay.healthcheck"]
ENTRYPOINT ["forebay"]
