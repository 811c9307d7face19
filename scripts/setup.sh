#!/usr/bin/env bash
# Installs what Timbre needs on Debian 12: the packages to build it, and with --tests also those to test it and a small
# Python environment in .venv. Does nothing when all is there.
#
# usage: scripts/setup.sh [--tests]
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(build-essential cmake ninja-build pkg-config libsndfile1-dev libsoxr-dev libcjson-dev libssl-dev
          libseccomp-dev libgrpc-dev libprotobuf-c-dev libprotobuf-dev protobuf-compiler protobuf-c-compiler grpc-proto
          libwebsockets-dev ffmpeg)
case "${1-}" in
  "") ;;
  --tests) packages+=(clang clang-format clang-tidy libclang-rt-14-dev libcmocka-dev python3-venv git ca-certificates
                      openssl prometheus) ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo > /dev/null; then sudo "$@"
  else echo "setup: installing packages needs root or sudo" >&2; exit 1; fi
}

# Runs a command and shows what it said only if it fails.
quietly() {
  local said
  said=$("$@" 2>&1) || { printf '%s\nsetup: failed: %s\n' "$said" "$*" >&2; exit 1; }
}

missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2> /dev/null)" = installed ] || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  quietly as_root apt-get update -qq
  quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

if [ "${1-}" = --tests ] && ! cmp -s tests/requirements.txt .venv/requirements.txt; then
  echo "setup: making the Python environment .venv"
  rm -rf .venv
  quietly /usr/bin/python3 -m venv .venv
  quietly .venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
  cp tests/requirements.txt .venv/requirements.txt
fi
