# One image for every role: `docker run forebay gateway`, `consume`, `migrate`, `status` ...

FROM python:3.13-slim AS build
RUN python -m venv --without-pip /opt/forebay
WORKDIR /src
# What Forebay needs is a layer of its own, so that a change of the code does not install all of it
# again. pip reads it from the project, hence the project with nothing in it but its version.
COPY pyproject.toml README.md ./
COPY forebay/__init__.py forebay/
RUN pip --python /opt/forebay install --no-cache-dir --disable-pip-version-check '.[postgresql,mysql]'
COPY forebay forebay
COPY gateway gateway
COPY consumers consumers
RUN pip --python /opt/forebay install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall .

FROM python:3.13-slim
RUN groupadd --gid 10001 forebay \
    && useradd --uid 10001 --gid forebay --no-create-home --home-dir /var/lib/forebay forebay \
    && install --directory --owner forebay --group forebay /var/lib/forebay /var/lib/forebay/consumers /run/forebay
COPY --from=build /opt/forebay /opt/forebay
COPY deploy/compose/setup.py /opt/forebay/compose/setup.py
ENV PATH=/opt/forebay/bin:$PATH
USER forebay
# forebay.toml and your handlers are looked for here; the embedded queue keeps its file here.
WORKDIR /var/lib/forebay
EXPOSE 8080
ENTRYPOINT ["forebay"]
