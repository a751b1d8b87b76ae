#!/bin/busybox sh
# one BINARY TEST: runs a test and prints what came of it in one line, after all that it said if it failed.
binary=$1 test=$2
now() { cut -d. -f1 /proc/uptime; }
said=/run/said/$binary.$test
began=$(now)
if [ "$binary" = smoke ]; then
    timeout 1200 /tests/smoke >"$said" 2>&1
else
    timeout 600 "/tests/$binary" --include-ignored --exact "$test" >"$said" 2>&1
fi
code=$?
took="$(($(now) - began)) s"
# So the tests say it (tests/src/needs.rs): a test that passes does not.
absent=$(grep -m 1 -o 'this kernel has no .*' "$said")
if [ $code = 0 ]; then
    echo "passed $binary::$test $took"
elif [ -n "$absent" ]; then
    echo "absent $binary::$test $took: $absent"
else
    sed "s,^,| ," "$said"
    echo "FAILED $binary::$test $took: exit code $code"
fi
rm -f "$said"
