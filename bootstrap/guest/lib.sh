# shellcheck shell=sh
# What the steps share.  Sourced; JOB is the job's folder.

SYSROOT=/run/composer/sysroot
export OSTREE_SYSROOT="$SYSROOT"
# Where the mount-* steps put the repo that the host offers.
# shellcheck disable=SC2034  # the steps use it
EXPORT=/run/composer/export

# param NAME: the value of a parameter, as it was given.
param() {
    cat "$JOB/data/$1"
}

# get VARIABLE NAME: read a parameter of one line, without a program: under emulation each costs some 30 ms.
get() {
    IFS= read -r "${1?}" <"$JOB/data/$2" || true
}

has() {
    [ -e "$JOB/data/$1" ]
}

# fail TEXT: end the step with a reason for the user.
fail() {
    printf '%s\n' "$*" >"$JOB/state/reason"
    exit 1
}

# result KEY VALUE: a line of the job's result; a key may come several times.
result() {
    printf '%s %s\n' "$1" "$(printf '%s' "$2" | tr '\n' ' ')" >>"$JOB/state/result"
}

# Text from stdin as the inside of a JSON string.  Control characters other than the two that logs need
# are dropped; bytes that are no UTF-8 are the reader's to replace.
json_text() {
    tr -d '\000-\010\013-\037\177' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/	/\\t/g' \
        | awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }'
}

# Without a program: under emulation each costs some 10 ms.
uptime_ms() {
    read -r uptime _ </proc/uptime
    seconds=${uptime%.*}
    hundredths=${uptime#*.}
    echo "$((seconds * 1000 + ${hundredths#0} * 10))"
}

# disk_with SERIAL: the device of the disk with that serial.  A disk attached to a running machine
# appears a moment later, hence the looks: 200 of them, 50 ms apart.
disk_with() {
    for _ in $(seq 200); do
        for block in /sys/block/sd*; do
            [ -e "$block/device/vpd_pg80" ] || continue
            # Four bytes of header, then the serial; NUL bytes are left out by read.
            read -r page <"$block/device/vpd_pg80" || true
            case "$page" in
                *"$1")
                    echo "/dev/${block##*/}"
                    return 0
                    ;;
            esac
        done
        usleep 50000
    done
    fail "no disk with the serial $1 appeared"
}

# partition NAME: the device of a partition of the target, by its role in the layout.
partition() {
    number=$(param "partition-$1")
    device="$(disk_with composer-target)$number"
    for _ in $(seq 100); do
        [ -b "$device" ] && echo "$device" && return 0
        usleep 50000
    done
    fail "the disk has no partition $number ($1)"
}

# mount_sysroot OPTIONS
mount_sysroot() {
    mkdir -p "$SYSROOT"
    mount -o "$1" "$(partition root)" "$SYSROOT" || fail "the root file system cannot be mounted"
}

# Unmounts everything below the sysroot, deepest first.
unmount_all() {
    awk -v top="$SYSROOT" 'index($2 "/", top "/") == 1 { print $2 }' /proc/mounts | sort -r \
        | while read -r place; do umount "$place"; done
}

# deployments: one a line, the default first: STATEROOT CHECKSUM SERIAL.
# `ostree admin status` marks the booted one with '*'; here none is.
deployments() {
    ostree admin status | sed -n \
        's/^[* ] \([^ ]*\) \([0-9a-f]\{64\}\)\.\([0-9][0-9]*\)\( .*\)\{0,1\}$/\1 \2 \3/p'
}

# deployment_folder: the folder of the default deployment.
deployment_folder() {
    deployments | head -n 1 | while read -r stateroot checksum serial; do
        echo "$SYSROOT/ostree/deploy/$stateroot/deploy/$checksum.$serial"
    done
}

# boot_entry VERSION: the boot entry of that version; nothing where there is none.  Of so many deployments
# the first one's has their number as its version, the last one's has 1.
boot_entry() {
    for entry in "$SYSROOT"/boot/loader/entries/ostree-*.conf; do
        if grep -qsx "version $1" "$entry"; then echo "$entry"; fi
    done
}
