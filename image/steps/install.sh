#!/bin/sh
# Install the locked wheels into the environment, with pip run from its own wheel where
# the base has none. Exactly the locks, checked by hash: nothing is resolved here.
set -eu
python=/opt/venv/bin/python3
pip="$(command -v python3.11) -m pip --python $python"
for wheel in /build/wheels/pip-*.whl; do
    if [ -f "$wheel" ]; then pip="$python $wheel/pip"; fi
done
install() {
    # shellcheck disable=SC2086
    $pip install --no-deps --no-compile --only-binary=:all: --no-cache-dir \
        --disable-pip-version-check --root-user-action=ignore --no-warn-script-location \
        --quiet ${PIP_OPTIONS:-} "$@"
}
for layer in $LAYERS; do
    install --require-hashes --requirement "/build/stacks/$STACK/$layer.lock"
    unhashed="/build/stacks/$STACK/$layer.unhashed"
    if [ -f "$unhashed" ]; then install --requirement "$unhashed"; fi
done
