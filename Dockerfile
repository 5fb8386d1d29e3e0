# --- Build: TLS and SASL for Kafka included (feature kafka-tls); this image has the OpenSSL headers that needs.
FROM rust:1.95-bookworm AS builder
WORKDIR /build
COPY . .
# Registry and target live in caches, so that the next build compiles what has changed; the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --profile dist --locked --features kafka-tls --bin livechat-ws \
    && cp target/dist/livechat-ws /livechat-ws

# --- Run: the binary, the libraries it was linked with, and the certificates to trust.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin livechat
COPY --from=builder /livechat-ws /usr/local/bin/livechat-ws
# A .env file is read from here, if one is mounted.
WORKDIR /app
USER 10001:10001
# PORT and WS_PORT. Metrics (ADMIN_ADDR) stay inside unless they are let out.
EXPOSE 8082 8081
# The server's own SIGTERM handling empties it over DRAIN_TIMEOUT: give it more than that before SIGKILL (docker stop -t 40).
STOPSIGNAL SIGTERM
# The binary asks its own /health, with the same configuration: the image needs no curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["livechat-ws", "--healthcheck"]
ENTRYPOINT ["livechat-ws"]
