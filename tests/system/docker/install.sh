#!/usr/bin/env bash
# What the tests of docker/ need on Debian, as root: an engine, compose and buildx, mmdebstrap for a base image.
# Compose v2 and buildx came to Debian with trixie; on an older release they are taken from there as the plugins
# they are, statically linked. Starts nothing: the tests start an engine of their own.
set -euo pipefail

PLUGINS=/usr/libexec/docker/cli-plugins

apt-get update -qq
apt-get install -y --no-install-recommends docker.io iptables mmdebstrap
if docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; then
  exit
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# shellcheck disable=SC2016  # apt's own variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)
mkdir -p "$scratch"/{lists,archives}/partial "$PLUGINS"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$scratch/sources.list"
options=(
  -qq -o APT::Sandbox::User=root
  -o "Dir::Etc::SourceList=$scratch/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$scratch/lists" -o "Dir::Cache::Archives=$scratch/archives"
  -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache="
)
apt-get "${options[@]}" update
cd "$scratch"
apt-get "${options[@]}" download docker-compose docker-buildx
for package in ./*.deb; do
  dpkg -x "$package" unpacked
done
install -m 755 unpacked/usr/libexec/docker/cli-plugins/docker-{compose,buildx} "$PLUGINS"
