#!/usr/bin/env bash
# What the tests of HTML pages need on Debian, as root: a headless Chromium and letters to draw.
set -euo pipefail
apt-get update -qq
apt-get install -y --no-install-recommends chromium-headless-shell fonts-dejavu-core
