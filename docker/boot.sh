#!/bin/sh
# What starts in a worker. Beam's program writes where it stands; what is staged Dataflow has it keep in a folder that
# belongs to root, and of two values the last one counts.
cd /home/worker && exec /opt/apache/beam/boot "$@" --semi_persist_dir=/home/worker
