#!/bin/sh
# A real XRootD server on loopback: xrootd.sh start DIR PORT serves DIR/data as root://127.0.0.1:PORT//data, until
# xrootd.sh stop DIR. Needs Debian's xrootd-server; what is in DIR has to be readable for everybody.
set -eu
action=$1 dir=$2

if [ "$action" = stop ]; then
  if [ -f "$dir/pid" ]; then kill -9 "$(cat "$dir/pid")" 2>/dev/null || true; fi
  rm -f "$dir/pid"
  exit 0
fi

rm -f "$dir/pid" "$dir/log"
cat >"$dir/xrootd.cfg" <<EOF
all.export /data
oss.localroot $dir
xrd.port $3
all.adminpath $dir/admin
all.pidpath $dir/admin
EOF
user=
if [ "$(id -u)" = 0 ]; then # it does not run as root
  chown -R xrootd: "$dir"
  user="-R xrootd"
fi
xrootd -b $user -c "$dir/xrootd.cfg" -l "$dir/log" -s "$dir/pid"
for _ in $(seq 100); do
  if grep -q "initialization completed" "$dir/log" 2>/dev/null; then exit 0; fi
  sleep 0.1
done
echo "the server did not come up, see $dir/log" >&2
exit 1
