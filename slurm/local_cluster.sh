#!/usr/bin/env bash
# A real SLURM cluster of several nodes on this one machine, to rehearse a job before it meets a queue (docs/clusters.md).
# Every node is a slurmd of its own; accounting (sacct), preemption, requeue, node failure and GPUs (fake ones) work as on a
# cluster. Nothing outside the cluster's folder is touched, and `stop` ends everything that `start` began.
set -euo pipefail

usage() {
  cat >&2 <<'END'
usage: slurm/local_cluster.sh COMMAND          needs root (a container or a virtual machine will do)

  install           install Debian's packages (SLURM, munge, MariaDB), about 15 s; nothing where they are there
  start             start the cluster; afterwards:  eval "$(slurm/local_cluster.sh env)"
  stop              end its jobs and all its daemons
  env               print the export that lets sbatch, squeue and ocpgem find it
  status            nodes and daemons
  crash-node NODE   kill a node with everything that runs on it, as a power cut would
  start-node NODE   bring it back
  stop-controller, start-controller   the cluster's head; jobs go on meanwhile

environment variables, with their defaults:
  CLUSTER_DIR=/tmp/ocpgem-cluster   where all its files are (a short path: sockets live there)
  CLUSTER_NODES=4 CLUSTER_CPUS=8 CLUSTER_GPUS=2 CLUSTER_MEMORY=4000   nodes, and what each pretends to have (memory in MB)
  CLUSTER_ACCOUNTING=1              0: no sacct, and ready in under a second
  CLUSTER_PORT=17000                first of the ports it uses (100 of them)
  CLUSTER_GRACE=20                  seconds that a preempted job gets between the signal and its end

partitions: main (default), high (preempts main), short (at most 2 minutes)
END
  exit 2
}

[ $# -ge 1 ] || usage
here=${CLUSTER_DIR:-/tmp/ocpgem-cluster}
nodes=${CLUSTER_NODES:-4} cpus=${CLUSTER_CPUS:-8} gpus=${CLUSTER_GPUS:-2} memory=${CLUSTER_MEMORY:-4000}
accounting=${CLUSTER_ACCOUNTING:-1} port=${CLUSTER_PORT:-17000} grace=${CLUSTER_GRACE:-20}
dbd_port=$((port + 90)) sql_port=$((port + 91))
me=$(id -un)
PATH=$PATH:/usr/sbin:/sbin
packages="slurmctld slurmd slurm-client slurmdbd munge mariadb-server"

fail() { echo "local_cluster.sh: $*" >&2; exit 1; }

have_all() { for program in slurmctld slurmd sbatch slurmdbd munged mariadbd; do command -v $program >/dev/null || return 1; done; }

install_packages() {
  have_all && { echo "SLURM is installed: $(slurmctld -V)"; return; }
  [ "$(id -u)" = 0 ] || fail "installing $packages needs root"
  command -v apt-get >/dev/null || fail "there is no apt-get; install SLURM with its accounting (slurmdbd, MariaDB) and munge yourself"
  # A policy that keeps the packages from starting daemons of their own, for as long as the installation lasts.
  local policy=/usr/sbin/policy-rc.d made=
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' > $policy; chmod 755 $policy; made=1; }
  local log; log=$(mktemp)
  if ! { timeout 120 apt-get -o Acquire::Retries=3 update &&
         DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -o Acquire::Retries=3 -o DPkg::Lock::Timeout=60 install -y --no-install-recommends $packages
       } >"$log" 2>&1 </dev/null; then
    [ -z "$made" ] || rm -f $policy
    tail -n 5 "$log" >&2
    fail "apt-get could not install $packages (all it said: $log)"
  fi
  [ -z "$made" ] || rm -f $policy
  rm -f "$log"
  have_all || fail "the packages are installed, but not all programs are there"
  echo "installed: $(slurmctld -V)"
}

wait_for_port() {
  for _ in $(seq 600); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return; sleep 0.05; done
  fail "$2 does not answer on port $1; see $here/log"
}

is_running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

# Nodes with host names of their own where the kernel lets us, else all under this machine's name.
own_names() { unshare --mount --uts true 2>/dev/null; }

write_settings() {
  mkdir -p "$here"/{state,run,log,spool,gpus}
  chmod 755 "$here" "$here/run"
  local host; host=$(hostname -s)
  { echo "127.0.0.1 localhost $host"; for i in $(seq "$nodes"); do echo "127.0.1.$i n$i"; done; } > "$here/hosts"
  for i in $(seq 0 $((gpus - 1))); do : > "$here/gpus/gpu$i"; done
  head -c 128 /dev/urandom > "$here/run/munge.key"
  chmod 600 "$here/run/munge.key"
  echo "Name=gpu File=$here/gpus/gpu[0-$((gpus - 1))]" > "$here/gres.conf"
  : > "$here/plugstack.conf"
  echo "CgroupPlugin=autodetect" > "$here/cgroup.conf"
  local storage="AccountingStorageType=accounting_storage/none"
  if [ "$accounting" = 1 ]; then
    storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$dbd_port
AccountingStoragePass=$here/run/munge.socket
AccountingStorageTRES=gres/gpu"
    write_database_settings
  fi
  # cred_expire is also how long a requeued job waits before it may start again: 120 s unless said otherwise.
  # A new cluster begins with a random job number, so that numbers of an earlier one do not come back.
  cat > "$here/slurm.conf" <<END
ClusterName=rehearsal
FirstJobId=$((1000 + RANDOM))
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=cred_expire=5,socket=$here/run/munge.socket
CredType=cred/munge
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool/%n
SlurmctldPidFile=$here/run/slurmctld.pid
SlurmdPidFile=$here/run/slurmd.%n.pid
SlurmctldLogFile=$here/log/slurmctld.log
SlurmdLogFile=$here/log/slurmd.%n.log
PlugStackConfig=$here/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1,sched_min_interval=0
SlurmdTimeout=10
SlurmctldTimeout=30
KillWait=30
CompleteWait=0
JobRequeue=1
UnkillableStepTimeout=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
$storage
JobCompType=jobcomp/none
NodeName=DEFAULT CPUs=$cpus Sockets=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory Gres=gpu:$gpus Feature=rehearsal
NodeName=n[1-$nodes] NodeAddr=127.0.1.[1-$nodes] Port=[$((port + 1))-$((port + nodes))] State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=10 PriorityTier=10 PreemptMode=REQUEUE GraceTime=$grace
PartitionName=high Nodes=ALL MaxTime=1-00:00:00 DefaultTime=10 PriorityTier=100 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=2 PriorityTier=10 PreemptMode=REQUEUE GraceTime=$grace
END
}

write_database_settings() {
  cat > "$here/mariadb.cnf" <<END
[mariadbd]
user=$me
datadir=$here/mysql
socket=$here/run/mysql.sock
pid-file=$here/run/mariadbd.pid
log-error=$here/log/mariadbd.log
port=$sql_port
bind-address=127.0.0.1
skip-grant-tables
skip-name-resolve
skip-log-bin
performance_schema=0
innodb_buffer_pool_size=24M
innodb_log_file_size=8M
innodb_lock_wait_timeout=900
innodb_flush_log_at_trx_commit=0
innodb_doublewrite=0
innodb_use_native_aio=0
END
  cat > "$here/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$here/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$dbd_port
SlurmUser=$me
LogFile=$here/log/slurmdbd.log
PidFile=$here/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$sql_port
StorageUser=slurm
StoragePass=unused
StorageLoc=slurm_acct
END
  chmod 600 "$here/slurmdbd.conf"
}

# CLUSTER_NODE marks the daemon and all that descends from it, for crash-node.
start_node() {
  local name=$1
  mkdir -p "$here/spool/$name"
  if own_names; then
    CLUSTER_NODE=$here/$name unshare --mount --uts bash -c \
      'hostname "$1"; mount --bind "$2/hosts" /etc/hosts; exec slurmd -f "$2/slurm.conf" -N "$1"' _ "$name" "$here"
  else
    CLUSTER_NODE=$here/$name slurmd -f "$here/slurm.conf" -N "$name"
  fi >>"$here/log/slurmd.out" 2>&1
}

start_database() {
  mkdir -p "$here/mysql"  # an empty folder will do without grant tables
  setsid mariadbd --defaults-file="$here/mariadb.cnf" >>"$here/log/mariadbd.out" 2>&1 </dev/null &
  wait_for_port "$sql_port" MariaDB
  slurmdbd >>"$here/log/slurmdbd.out" 2>&1  # reads slurmdbd.conf beside $SLURM_CONF
  wait_for_port "$dbd_port" slurmdbd
  timeout 30 sacctmgr -n -i add cluster rehearsal >>"$here/log/sacctmgr.out" 2>&1 ||
    fail "the accounting cannot be set up; see $here/log/sacctmgr.out"
  timeout 30 sacctmgr -n -i add account research >>"$here/log/sacctmgr.out" 2>&1 || true
  timeout 30 sacctmgr -n -i add user "$me" account=research >>"$here/log/sacctmgr.out" 2>&1 || true
}

start_controller() { slurmctld -f "$SLURM_CONF" >>"$here/log/slurmctld.out" 2>&1; }

start() {
  local began=$EPOCHREALTIME
  have_all || fail "SLURM is not installed; run: $0 install"
  [ "$(id -u)" = 0 ] || fail "starting the cluster needs root"
  [ ${#here} -le 70 ] || fail "CLUSTER_DIR=$here is too long for the sockets in it (at most 70 characters)"
  ! is_running "$here/run/slurmctld.pid" || fail "a cluster runs in $here already; run: $0 stop"
  rm -rf "$here"
  write_settings
  munged --force -S "$here/run/munge.socket" --key-file="$here/run/munge.key" --pid-file="$here/run/munged.pid" \
    --log-file="$here/log/munged.log" --seed-file="$here/run/munge.seed" >>"$here/log/munged.out" 2>&1
  [ "$accounting" != 1 ] || start_database
  start_controller
  for i in $(seq "$nodes"); do start_node "n$i"; done
  for _ in $(seq 600); do
    [ "$(timeout 5 sinfo -h -N -p main -t idle -o %N 2>/dev/null | wc -l)" = "$nodes" ] && break
    sleep 0.05
  done
  [ "$(timeout 5 sinfo -h -N -p main -t idle -o %N | wc -l)" = "$nodes" ] || fail "the nodes did not come up; see $here/log"
  local seconds; seconds=$(LC_ALL=C printf '%s %s' "$began" "$EPOCHREALTIME" | awk '{printf "%.1f", $2 - $1}')
  echo "$nodes nodes are ready after $seconds s; to use them: export SLURM_CONF=$here/slurm.conf"
}

stop_daemon() {
  local file=$1 process
  [ -s "$file" ] || return 0
  process=$(cat "$file")
  kill -TERM "$process" 2>/dev/null || { rm -f "$file"; return 0; }
  for _ in $(seq 200); do kill -0 "$process" 2>/dev/null || { rm -f "$file"; return 0; }; sleep 0.05; done
  kill -KILL "$process" 2>/dev/null || true
  rm -f "$file"
}

# Every process of a node, wherever it descended to: daemons by CLUSTER_NODE, tasks by what SLURM told them.
node_processes() {
  local all="/proc/[0-9]*/environ"
  {
    grep -slzxF "CLUSTER_NODE=$here/$1" $all || true
    grep -slzxF "SLURMD_NODENAME=$1" $all | xargs -r grep -slzxF "SLURM_CONF=$here/slurm.conf" || true
  } | sed 's|[^0-9]||g' | sort -u
}

crash_node() {
  node_processes "$1" | xargs -r kill -KILL 2>/dev/null || true
  rm -f "$here/run/slurmd.$1.pid"
}

stop() {
  [ -d "$here" ] || { echo "no cluster in $here"; return; }
  if is_running "$here/run/slurmctld.pid"; then
    timeout 20 scancel --full --user "$me" >/dev/null 2>&1 || true
    # slurmd leaves running jobs alone when it ends, so they have to be gone before.
    for _ in $(seq 100); do [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break; sleep 0.1; done
  fi
  for file in "$here"/run/slurmd.*.pid "$here/run/slurmctld.pid"; do stop_daemon "$file" & done
  wait
  for i in $(seq "$nodes"); do crash_node "n$i"; done
  stop_daemon "$here/run/slurmdbd.pid"
  stop_daemon "$here/run/mariadbd.pid"
  stop_daemon "$here/run/munged.pid"
  echo "stopped; its logs are in $here/log"
}

status() {
  sinfo -N -o "%N %T %c %m %G %P"
  for file in "$here"/run/*.pid; do
    is_running "$file" && echo "$(basename "$file" .pid): running" || echo "$(basename "$file" .pid): not running"
  done
}

export SLURM_CONF=$here/slurm.conf
case $1 in
  install) install_packages ;;
  start) start ;;
  stop) stop ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  status) status ;;
  crash-node) [ $# = 2 ] || usage; crash_node "$2" ;;
  start-node) [ $# = 2 ] || usage; start_node "$2" ;;
  stop-controller) stop_daemon "$here/run/slurmctld.pid" ;;
  start-controller) start_controller ;;
  *) usage ;;
esac
