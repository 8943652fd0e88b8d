#!/bin/bash
# Runs as root on each machine of a training job, at every boot (Container-Optimized OS): the driver, the container, and
# the end of all machines. What it is to do stands in the metadata of its instance; see trainer/launch/job.py.
#
# The container's exit status decides: 0 is the end; 130 and 143, told to stop, and 75, another machine is gone, start it
# again; what fails is tried three times. Whatever ends the job deletes the whole group, and with it this machine.
set -uo pipefail
trap '' PIPE  # nobody may read what this says, and it goes on

readonly PORT=2222            # where the machines of a job find each other
readonly TRIES=3              # that may fail one after the other
readonly HEARD_SECONDS=300    # for the first line to be taken: the launch waits twice as long for it
readonly PREPARE_SECONDS=1200 # for driver, image and log: roles take minutes until they hold
readonly LONG_SECONDS=7200    # after which what fails had trained, and is no try; machines await each other an hour
readonly QUICK_SECONDS=300    # within which a machine that was lost was none that came and went
readonly LOSSES=20            # of that kind, one after the other
readonly STOP_SECONDS=120     # that training may take to save itself at the end of its time
readonly LATE_SECONDS=300     # after that end, when what hangs is waited for no more

ask() { curl --silent --show-error --fail --retry 5 --retry-connrefused --retry-max-time 120 --max-time 60 "$@"; }

metadata() {
  ask --header Metadata-Flavor:Google "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/$1"
}

attribute() { metadata "instance/attributes/koalarization-$1"; }

token() { metadata instance/service-accounts/default/token | sed -E 's/.*"access_token" *: *"([^"]+)".*/\1/'; }

# The token by a pipe, not as an argument, which others on the machine could read.
authorized() { ask --config <(token | sed 's/^/header = "Authorization: Bearer /; s/$/"/') "$@"; }

# Writes a line, here and to Cloud Logging.
log() {
  local line
  line=$(LC_ALL=C tr -c '[:print:]' ' ' <<<"${1:0:2000}" | tr '"\134' ' ') # so that it is JSON; \134 is \
  line=${line% }
  echo "koalarization: $line"
  authorized --output /dev/null --header 'Content-Type: application/json' --data @- \
    https://logging.googleapis.com/v2/entries:write <<<"{
      \"logName\": \"projects/$project/logs/koalarization\",
      \"resource\": {\"type\": \"gce_instance\", \"labels\": {\"instance_id\": \"$id\", \"zone\": \"$zone\"}},
      \"entries\": [{\"jsonPayload\": {\"instance\": {\"name\": \"$name\"}, \"message\": \"$line\"}}]
    }"
}

say() { log "$1" || true; }

# The first that the launch hears; roles may take minutes until they hold.
announce() {
  local began=$SECONDS
  until log "machine ${name##*-} of $count starts"; do
    ((SECONDS - began < HEARD_SECONDS)) || return
    sleep 10
  done
}

# Deletes all machines of the job; asks for it until this one goes, since what was accepted may fail.
finish() {
  say "$1; all machines of the job are deleted now"
  local status
  while true; do
    status=$(authorized --request DELETE --output /dev/null --write-out '%{http_code}' \
      "https://compute.googleapis.com/compute/v1/projects/$project/zones/$zone/instanceGroupManagers/$group")
    case $status in
      200 | 404) sleep 600 ;; # 404: another machine was faster
      403) say "the machines may not be deleted: their service account needs roles/compute.instanceAdmin.v1" ;;
      *) say "the machines are not deleted yet (HTTP $status)" ;;
    esac
    sleep 60
  done
}

seconds_left() { echo $((end - $(date +%s))); }

# For timeout, which would wait for ever at 0.
time_left() {
  local left
  left=$(seconds_left)
  echo $((left > 0 ? left : 1))
}

finish_in_time() {
  (($(seconds_left) > 0)) && return
  sleep 60 # by when the clock of a machine that has just started is right
  (($(seconds_left) > 0)) || finish "the time of the job is over; the same launch goes on from its last checkpoint"
}

# Beside all the rest, which may hang: the machine is not kept for that.
watch_time() {
  while true; do
    (($(seconds_left) > -LATE_SECONDS)) || finish_in_time
    sleep 30
  done
}

# Runs a program, but for no more than so many seconds, and no longer than the job has time.
limited() {
  local seconds=$1 left status
  shift
  left=$(time_left)
  ((seconds < left)) || seconds=$left
  timeout --kill-after=10 "$seconds" "$@"
  status=$?
  ((status != 124 && status != 137)) || echo "'$1 $2' was ended after $seconds s" >&2
  return $status
}

# While the machine goes down, Docker goes before this script, and what fails then says nothing of the job.
wait_if_stopping() { [[ $(systemctl is-system-running) != stopping ]] || sleep infinity; }

install_driver() {
  PATH=$PATH:/var/lib/nvidia/bin
  say "installs NVIDIA's driver for $gpus GPUs"
  { limited 600 cos-extensions install gpu && mount --bind /var/lib/nvidia /var/lib/nvidia &&
    mount -o remount,exec /var/lib/nvidia; } >"$home/driver.log" 2>&1
  local found
  found=$(limited 60 nvidia-smi --list-gpus 2>>"$home/driver.log" | wc -l)
  [[ $found == "$gpus" ]] && return
  say "NVIDIA's driver finds $found of $gpus GPUs: $(tail --lines=1 "$home/driver.log")"
  return 1
}

fetch_image() {
  local said
  said=$(token | limited 60 docker login --username=oauth2accesstoken --password-stdin "https://${image%%/*}" 2>&1 &&
    limited 600 docker pull --quiet "$image" 2>&1) && return
  say "image $image cannot be fetched: $(tail --lines=1 <<<"$said")"
  return 1
}

# The system lets nobody in but SSH; the firewall of the network still decides who may come.
open_ports() { iptables --wait --append INPUT --protocol tcp --jump ACCEPT; }

prepare() {
  local began=$SECONDS
  ((count == 1)) || open_ports
  until { ((gpus == 0)) || install_driver; } && fetch_image && log "ready to train"; do
    wait_if_stopping
    finish_in_time
    ((SECONDS - began < PREPARE_SECONDS)) || finish "the machine cannot be made ready to train"
    sleep 30
  done
}

# Who trains with whom, for TensorFlow; names of machines outlast their addresses.
cluster() {
  local domain=${hostname#*.} index workers=""
  for ((index = 0; index < count; index++)); do
    workers+="${workers:+, }\"$group-$index.$domain:$PORT\""
  done
  echo "{\"cluster\": {\"worker\": [$workers]}, \"task\": {\"type\": \"worker\", \"index\": ${name##*-}}}"
}

# Trains until it ends, or for as long as there is time; keeps what is said last, which may be Docker's.
train() {
  local options=() gpu
  : >"$home/said"
  ((count == 1)) || options+=(--env="TF_CONFIG=$(cluster)")
  if ((gpus > 0)); then
    options+=(--volume=/var/lib/nvidia/lib64:/usr/local/nvidia/lib64:ro --volume=/var/lib/nvidia/bin:/usr/local/nvidia/bin:ro)
    options+=(--device=/dev/nvidiactl --device=/dev/nvidia-uvm)
    for ((gpu = 0; gpu < gpus; gpu++)); do options+=("--device=/dev/nvidia$gpu"); done
  fi
  limited 60 docker rm --force trainer >/dev/null 2>&1 # of before the machine was stopped
  timeout --kill-after=$STOP_SECONDS "$(time_left)" docker run --name=trainer --rm --network=host --ipc=host \
    --log-driver=gcplogs --volume="$home/config.py:/config.py:ro" "${options[@]}" \
    --entrypoint=python "$image" -m trainer.train --config=/config.py "${arguments[@]}" 2>&1 |
    tail --lines=1 >"$home/said"
}

home=$(mktemp --directory)
export DOCKER_CONFIG=$home/docker
until project=$(metadata project/project-id) && id=$(metadata instance/id) && name=$(metadata instance/name) &&
  hostname=$(metadata instance/hostname) && zone=$(metadata instance/zone) && end=$(attribute end) &&
  count=$(attribute count) && gpus=$(attribute gpus) &&
  image=$(attribute image) && attribute config >"$home/config.py" && attribute arguments >"$home/arguments"; do
  sleep 10
done
mapfile -t arguments <"$home/arguments"
zone=${zone##*/}
group=${name%-*}
chmod 0644 "$home/config.py"

watch_time &
finish_in_time
announce
finish_in_time
prepare
failures=0 losses=0
while true; do
  finish_in_time
  began=$SECONDS
  train
  status=$?
  wait_if_stopping
  ((status == 0)) && finish "training is finished"
  finish_in_time
  ((SECONDS - began < LONG_SECONDS)) || failures=0
  case $status in
    75 | 130 | 143) # after it had begun
      failures=0
      ((SECONDS - began < QUICK_SECONDS)) || losses=0
      ((++losses < LOSSES)) || finish "training lost another machine $LOSSES times, soon after each start: $(<"$home/said")"
      say "training was told to stop, or lost another machine (status $status); it goes on"
      ;;
    2) finish "trainer.train does not understand its arguments (status 2)" ;;
    *)
      ((++failures < TRIES)) || finish "training failed $TRIES times (status $status: $(<"$home/said"))"
      say "training failed (status $status: $(<"$home/said")); it is tried again"
      sleep $((120 * failures)) # what fails at once may pass: Docker, a log that takes no line yet, a role
      ;;
  esac
  sleep 10
done
