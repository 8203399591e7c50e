#!/bin/sh
# Make a layer: what it adds to the environment goes to /added, as it will lie in the image.
# What was there before is older than this file, which tells it from what is new.
set -eu
site=/opt/venv/lib/python3.11/site-packages
begun=/build/begun
touch "$begun"
sleep 0.01
sh /build/steps/install.sh
python3.11 -I -S /build/steps/trim.py "$site" "$begun"
python3.11 -I -S /build/steps/strip_symbols.py /opt/venv "$begun"
case " $LAYERS " in
*" common "*) PYTHONDONTWRITEBYTECODE=1 /opt/venv/bin/python3 /build/steps/fonts.py ;;
esac
for layer in $LAYERS; do
    models="/build/stacks/$STACK/$layer.models"
    if [ -f "$models" ]; then python3.11 -I -S /build/steps/models.py "$models" "$site"; fi
done
PYTHONDONTWRITEBYTECODE=1 /opt/venv/bin/python3 /build/steps/compile.py preload /opt/venv
mkdir -p /added /models
find /opt/venv /models -newer "$begun" \( -type f -o -type l \) -print0 |
    xargs -0 -r cp --parents --link --no-dereference --target-directory=/added
chmod -R a+rX,go-w /added
