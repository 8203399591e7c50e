#!/bin/sh
# Install the locked wheels into the environment, with pip run from its own wheel where
# the base has none. Exactly the lock, checked by hash: nothing is resolved here.
set -eu
python=/opt/venv/bin/python3
pip="$(command -v python3.11) -m pip --python $python"
for wheel in /build/wheels/pip-*.whl; do
    if [ -f "$wheel" ]; then pip="$python $wheel/pip"; fi
done
locks="--requirement /build/stacks/$STACK/requirements.lock"
if [ "$VARIANT" != ml ]; then
    locks="$locks --requirement /build/stacks/$STACK/$VARIANT.lock"
fi
# shellcheck disable=SC2086
$pip install --no-deps --no-compile --require-hashes --only-binary=:all: --no-cache-dir \
    --disable-pip-version-check --root-user-action=ignore --no-warn-script-location \
    --quiet ${PIP_OPTIONS:-} $locks
if [ -f "/build/stacks/$STACK/unhashed.txt" ]; then
    # shellcheck disable=SC2086
    $pip install --no-deps --no-compile --only-binary=:all: --no-cache-dir \
        --disable-pip-version-check --root-user-action=ignore --no-warn-script-location \
        --quiet ${PIP_OPTIONS:-} --requirement "/build/stacks/$STACK/unhashed.txt"
fi
