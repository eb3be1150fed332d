#!/bin/sh
# Installs Debian's chromium unless a browser is there; says why where it cannot.
set -eu
if command -v chromium >/dev/null || command -v google-chrome >/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null; then
  echo "no apt-get here: install chromium yourself, or the tests are skipped" >&2
elif [ "$(id -u)" != 0 ]; then
  echo "only root may install: sudo apt-get install chromium, or the tests are skipped" >&2
else
  apt-get install --yes --no-install-recommends chromium fonts-dejavu-core ||
    { apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; }
fi
