#!/bin/sh
# Installs debootstrap unless it is there; says why where it cannot.
set -eu
if command -v debootstrap >/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  echo "a fresh root needs Debian, root and debootstrap; its tests are skipped" >&2
else
  apt-get install --yes --no-install-recommends debootstrap || { apt-get update && apt-get install --yes --no-install-recommends debootstrap; }
fi
