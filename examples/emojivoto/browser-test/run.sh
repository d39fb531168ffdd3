#!/bin/sh
# Runs the browser tests: starts emojivoto on a free port, drives it and the mesh's own page with headless Chromium,
# stops it.
#
#   run.sh             skips, loudly, where no browser (or no playwright-core, axe-core) is installed
#   run.sh --install   installs them first: chromium by apt-get, the two by npm into a temporary directory
#   run.sh --pictures  tests nothing, and takes the pictures in docs/screenshots anew
#
# EMOJIVOTO_BROWSER    the browser (default: the first chromium or chrome of PATH)
# EMOJIVOTO_PICTURES   where screenshots go (default: a temporary directory, which stays)
# MESH_PAGE_SECONDS    how long the mesh's page must run without growing (default 30; before a release 300)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
# Fixed, so that a second run finds what the first installed.
modules=${TMPDIR:-/tmp}/emojivoto-browser-test
install=no
take=no

case ${1-} in
  '') ;;
  --install) install=yes ;;
  --pictures) take=yes ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

skip() {
  echo '************************************************************************' >&2
  echo "** SKIPPED: the browser test of emojivoto did NOT run: $1" >&2
  echo "** Run it with: $0 --install" >&2
  echo '************************************************************************' >&2
  exit 0
}

find_browser() {
  if [ -n "${EMOJIVOTO_BROWSER-}" ]; then echo "$EMOJIVOTO_BROWSER"; return; fi
  for name in chromium chromium-browser google-chrome chrome; do
    command -v "$name" && return
  done
  return 0
}

browser=$(find_browser)
if [ "$install" = yes ]; then
  if [ -z "$browser" ]; then
    apt-get update -qq
    # Without an emoji font the pictures show empty boxes.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium fonts-noto-color-emoji >/dev/null
    browser=$(find_browser)
  fi
  if [ ! -d "$modules/node_modules/playwright-core" ] || [ ! -d "$modules/node_modules/axe-core" ]; then
    mkdir -p "$modules"
    npm install --prefix "$modules" --no-audit --no-fund --silent playwright-core axe-core
  fi
fi
[ -n "$browser" ] || skip 'no browser is installed'
[ -x "$browser" ] || { echo "run.sh: $browser is not a browser that can be run" >&2; exit 1; }
command -v node >/dev/null || skip 'node is not installed'
[ -d "$modules/node_modules/playwright-core" ] || skip "playwright-core is not in $modules"
[ -d "$modules/node_modules/axe-core" ] || skip "axe-core is not in $modules"

cd "$root"
cargo build --quiet -p emojivoto
target=${CARGO_TARGET_DIR:-$root/target}
if [ "$take" = yes ]; then
  EMOJIVOTO_BROWSER=$browser NODE_PATH=$modules/node_modules exec node "$here/pictures.mjs" "$target/debug/emojivoto" docs/screenshots
fi
log=$(mktemp)
"$target/debug/emojivoto" --port 0 --rate 5 >"$log" 2>&1 &
demo=$!
trap 'kill "$demo" 2>/dev/null || true; wait "$demo" 2>/dev/null || true; rm -f "$log"' EXIT

url=
for _ in $(seq 100); do
  url=$(sed -n 's/.* open \(http[^ ]*\).*/\1/p' "$log" | head -n 1)
  [ -z "$url" ] || break
  kill -0 "$demo" 2>/dev/null || { cat "$log" >&2; echo 'run.sh: emojivoto ended before it began' >&2; exit 1; }
  sleep 0.1
done
[ -n "$url" ] || { cat "$log" >&2; echo 'run.sh: emojivoto said no URL within 10 s' >&2; exit 1; }

pictures=${EMOJIVOTO_PICTURES:-$(mktemp -d)}
EMOJIVOTO_BROWSER=$browser NODE_PATH=$modules/node_modules node "$here/test.mjs" "$url" "$pictures"

# It ends well when it is asked to.
kill -INT "$demo"
wait "$demo" || { cat "$log" >&2; echo "run.sh: emojivoto ended with $? after Ctrl-C" >&2; exit 1; }
echo 'ok  Ctrl-C drains and ends with 0'

EMOJIVOTO_BROWSER=$browser NODE_PATH=$modules/node_modules node "$here/mesh.mjs" "$target/debug/emojivoto" "$pictures"
