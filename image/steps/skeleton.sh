#!/bin/sh
# A virtual environment's frame without pip, for whatever Python the base has.
set -eu
python=$(command -v python3.11)
mkdir -p /opt/venv/bin /opt/venv/lib/python3.11/site-packages
ln -sf "$python" /opt/venv/bin/python3
ln -sf python3 /opt/venv/bin/python
printf 'home = %s\ninclude-system-site-packages = false\nversion = 3.11\n' \
    "$(dirname "$python")" >/opt/venv/pyvenv.cfg
