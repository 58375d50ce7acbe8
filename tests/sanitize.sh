#!/usr/bin/env bash
# Builds haian with a sanitizer (address or thread) beside the normal build and runs the HAL suite and, under address, the
# operators' hostile inputs on it.  Usage: tests/sanitize.sh address|thread PYTHON-OF-THE-NORMAL-ENVIRONMENT
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1 python=$2 home=$PWD/.venv-$1
flags=$([ "$kind" = address ] && echo "address,undefined" || echo "$kind")
if [ ! -x "$home/bin/python" ]; then
  "$python" -m venv "$home"
  # everything installed in the normal environment but haian itself, which an entry of a .pth file does not bring along
  site=$("$home/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
  "$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$site/normal.pth"
fi
PATH="$(dirname "$python"):$PATH" "$home/bin/python" -m pip install -q --no-build-isolation --no-deps --force-reinstall \
  -C build-dir=build/sanitize-"$kind" -C cmake.define.HAIAN_SANITIZE="$flags" -C cmake.define.HAIAN_BASE_ONLY=ON .
# the C++ runtime comes along: the sanitizer looks for its throw when it starts, and SciPy's references throw
library="$(${CC:-cc} -print-file-name=lib$([ "$kind" = address ] && echo a || echo t)san.so) $(${CC:-cc} -print-file-name=libstdc++.so.6)"
mkdir -p build/sanitize
for name in minimal inline; do
  ${CC:-cc} -std=c11 -O1 -g1 -fsanitize="$kind" -fPIC -shared -Ihal/include examples/${name}_adapter/$name.c -o "build/sanitize/$name-$kind.so"
done
# Python itself leaks on purpose.  A finding ends the child process, which the suite counts as a crash.
# freed memory waits in quarantine to be caught in use: 8 MiB of it, since check 23 counts 256 MiB as a leak
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:quarantine_size_mb=8 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp:halt_on_error=1:exitcode=66"
cd build/sanitize # not the checkout: its folders would shadow nothing, but nothing should depend on it
status=0
for device in cpu:0 sim:0 "$PWD/minimal-$kind.so:0" "$PWD/inline-$kind.so:0"; do
  echo "== HAL suite on $device under ${kind}sanitizer"
  LD_PRELOAD="$library" "$home/bin/python" -m haian.cli conformance run --suite hal --device "$device" --timeout-s 120 --report "report-$kind-$(basename "$device")" || status=1
done
if [ "$kind" = address ]; then
  echo "== operators on cpu:0 under addresssanitizer"
  LD_PRELOAD="$library" "$home/bin/python" -m haian.cli conformance run --device cpu:0 --timeout-s 300 --report report-address-ops || status=1
fi
exit $status
