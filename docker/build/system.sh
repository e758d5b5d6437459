#!/bin/sh
# Make a Debian with Python fit to run the executor, as root: `system.sh UID WORK_DIR`. An init that reaps, a user without
# rights, and the one folder that this user writes to.
set -eu
uid=$1
work_dir=$2

apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends tini
rm -rf /var/lib/apt/lists/*
groupadd --gid "$uid" executor
useradd --uid "$uid" --gid "$uid" --no-create-home --home-dir "$work_dir" --shell /usr/sbin/nologin executor
install -d -o "$uid" -g "$uid" -m 0700 "$work_dir"
