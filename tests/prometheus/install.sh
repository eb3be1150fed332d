#!/bin/sh
# Installs Debian's prometheus and promtool unless they are there; says why where it cannot.
set -eu
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null; then
  echo "no apt-get here: install prometheus and promtool yourself, or the tests are skipped" >&2
elif [ "$(id -u)" != 0 ]; then
  echo "only root may install: sudo apt-get install prometheus, or the tests are skipped" >&2
else
  apt-get install --yes --no-install-recommends prometheus || { apt-get update && apt-get install --yes --no-install-recommends prometheus; }
fi
