#!/usr/bin/env bash
# make gpu: everything that needs an NVIDIA GPU, in one command and without a network.
# Expects Python 3.12 with torch, triton, numpy, ml_dtypes, pybind11, scikit-build-core, cmake and ninja; wheels that are
# missing there (cffi, typer, jinja2, ...) are taken from the folder WHEELS (default .whl).  Writes REPORT (default report/gpu).
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
REPORT=${REPORT:-report/gpu}
SITE=$(mktemp -d)
mkdir -p "$REPORT"

if ! "$PYTHON" - <<'EOF'
import ctypes, sys
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    sys.exit(f"make gpu: no NVIDIA driver here ({error}); run it on a machine with an NVIDIA GPU")
count = ctypes.c_int()
if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
    sys.exit("make gpu: the NVIDIA driver finds no GPU; run it on a machine with one")
EOF
then exit 3; fi

if compgen -G "${WHEELS:=.whl}/*.whl" > /dev/null; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$SITE" "$WHEELS"/*.whl || exit 3
fi
export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$PYTHON" -m pip install -q --no-index --no-deps --no-build-isolation --target "$SITE" . || exit 3
HAIAN="$PYTHON -m haian.cli"
cd "$SITE" # the checkout's folders must not shadow the installed package
OUTDIR=$(realpath "$OLDPWD/$REPORT")
SOURCE=$OLDPWD
failed=0
step() {
  echo "== $1"
  shift
  "$@" > >(tee "$OUTDIR/$(echo "$*" | tr -c 'a-z0-9\n' '_' | cut -c1-60).log") 2>&1 || failed=1
}
step doctor $HAIAN doctor
step "HAL tests on cuda" "$PYTHON" -m pytest -q -p no:cacheprovider "$SOURCE/tests/test_stream.py" "$SOURCE/tests/test_memory.py" \
  "$SOURCE/tests/test_device.py" "$SOURCE/tests/test_module.py" -k cuda
step "conformance of every Triton kernel" $HAIAN conformance run --device cuda:0 --level core --report "$OUTDIR/conformance"
step "bench against torch" $HAIAN bench run --device cuda:0 --suite quick --peers torch --report "$OUTDIR/bench"
echo "make gpu: report in $REPORT; $([ $failed = 0 ] && echo 'all steps passed' || echo 'see the logs for what failed')"
exit $failed
