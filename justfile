# `just` lists the recipes. Each is a step of `.ci/run`: what fails there fails here.

_list:
    @just --list --unsorted

# Everything that CI runs; a cold build takes about half an hour on two cores
ci:
    .ci/run

# What README tells a stranger to type
test:
    .ci/step readme

# Formatting
fmt:
    .ci/step fmt

# Lints with default, all and no features
clippy:
    .ci/step clippy

# Docs without a warning
doc:
    .ci/step doc

# Doc tests with all features
doctest:
    .ci/step doctest

# All tests with every feature, and with none
features:
    .ci/step features

# Every pair of features compiles
powerset:
    .ci/step powerset

# TLS by ring instead of aws-lc-rs
ring:
    .ci/step ring

# The declared rust-version compiles
msrv:
    .ci/step msrv

# Bans, licences and sources of the dependencies
deny:
    .ci/step deny

# The examples build, pass their tests and start
examples:
    .ci/step examples

# The lock-free cells under every order of threads
models:
    .ci/step models

# The tests that read the shared corpus; ENMESH_CORPUS says where it is
corpus:
    .ci/step corpus

# A headless browser votes in emojivoto
browser:
    .ci/step browser

# Mutual TLS with openssl, curl and Envoy
interop:
    .ci/step interop

# A real Prometheus scrapes emojivoto and is asked Linkerd's questions
prometheus:
    .ci/step prometheus

# Spans reach OpenTelemetry's own collector
collector:
    .ci/step collector

# Benches compile and run once
benches:
    .ci/step benches

# The figures themselves: quiet machine, release build
bench *ARGS:
    cargo bench {{ARGS}}
