#!/bin/sh
# One real SLURM node on loopback, without systemd: slurm.sh start DIR, slurm.sh stop DIR. Needs root, slurm-wlm and munge.
set -eu
action=$1 dir=$2

if [ "$action" = stop ]; then
  for daemon in slurmd slurmctld; do
    if [ -f "$dir/$daemon.pid" ]; then kill "$(cat "$dir/$daemon.pid")" || true; fi
  done
  if [ -f "$dir/munge_is_ours" ]; then kill "$(cat /run/munge/munged.pid)" || true; fi
  exit 0
fi

host=$(hostname -s)
mkdir -p "$dir/spool" "$dir/state" /run/munge
cat >"$dir/slurm.conf" <<EOF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
if ! munge -n >"$dir/munge.log" 2>&1; then
  chown munge: /run/munge
  su -s /bin/sh munge -c /usr/sbin/munged
  touch "$dir/munge_is_ours"
fi
slurmctld -f "$dir/slurm.conf"
slurmd -f "$dir/slurm.conf"
export SLURM_CONF="$dir/slurm.conf"
for _ in $(seq 30); do
  if sinfo --noheader 2>/dev/null | grep -q idle; then exit 0; fi
  sleep 1
done
echo "the node did not come up, see $dir" >&2
exit 1
