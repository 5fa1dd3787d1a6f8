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
    set -- "$1" "$2" '
'
    case "$2" in
        *"$3"*) set -- "$1" "$(printf '%s' "$2" | tr '\n' ' ')" ;;
    esac
    printf '%s %s\n' "$1" "$2" >>"$JOB/state/result"
}

# Lines from stdin as they stand inside of JSON strings.  Control characters other than the two that logs need
# are dropped; bytes that are no UTF-8 are the reader's to replace.
json_lines() {
    tr -d '\000-\010\013-\037\177' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/	/\\t/g'
}

# Text from stdin as the inside of one JSON string.
json_text() {
    json_lines | awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }'
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

# read_entry FILE: sets what a boot entry says: version, options, kernel, initramfs, and target, which its ostree=
# names.  Of several lines of a kind the last one counts: ostree 2022.7 writes a commit's version as it is,
# line ends included, into the title, which comes before the lines of its own.
# shellcheck disable=SC2034  # the steps use what it sets
read_entry() {
    version='' options='' kernel='' initramfs='' target=''
    while read -r key value; do
        case "$key" in
            "version") version=$value ;;
            "options") options=$value ;;
            "linux") kernel=$value ;;
            "initrd") initramfs=$value ;;
        esac
    done <"$1"
    case " $options" in
        *" ostree="*)
            target=" $options"
            target=${target##* ostree=}
            target=${target%% *}
            ;;
    esac
}

# boot_entries: lists in state/boot-entries, the default's first: VERSION STATEROOT CHECKSUM SERIAL FILE.  They are
# what says which deployments there are (list_deployments_process_one_boot_entry in ostree-sysroot.c); read
# here they take a fifth of the time of `ostree admin status`.
boot_entries() {
    : >"$JOB/state/boot-entries"
    for entry in "$SYSROOT"/boot/loader/entries/ostree-*.conf; do
        [ -e "$entry" ] || continue
        read_entry "$entry"
        # Another system's.
        [ -n "$target" ] || continue
        case "$version" in
            '' | *[!0-9]*) fail "a boot entry has no number as its version: ${entry##*/}" ;;
        esac
        # The links on the way are relative, so they lead to the sysroot as it is mounted here.
        led=$(cd "$SYSROOT$target" 2>/dev/null && pwd -P) || fail "a boot entry leads nowhere: $target"
        place=${led#"$SYSROOT"/ostree/deploy/}
        root=${place%%/*}
        tree=${place##*/}
        checksum=${tree%.*}
        serial=${tree##*.}
        [ "${#checksum} $led" = "64 $SYSROOT/ostree/deploy/$root/deploy/$checksum.$serial" ] \
            || fail "a boot entry leads elsewhere: $led"
        case "$root/$checksum/$serial" in
            *[[:space:]]* | */*[!0-9a-f]*/* | */*/ | */*/*[!0-9]*) fail "a boot entry leads elsewhere: $led" ;;
        esac
        echo "$version $root $checksum $serial $entry" >>"$JOB/state/boot-entries"
    done
    sort -rn -o "$JOB/state/boot-entries" "$JOB/state/boot-entries"
}

# deployments: one a line, the default first: STATEROOT CHECKSUM SERIAL.
deployments() {
    boot_entries
    cut -d' ' -f2-4 "$JOB/state/boot-entries"
}

# deployment_folder: the folder of the default deployment.
deployment_folder() {
    boot_entries
    read -r _ stateroot checksum serial _ <"$JOB/state/boot-entries" || return 0
    echo "$SYSROOT/ostree/deploy/$stateroot/deploy/$checksum.$serial"
}

# boot_entry PLACE: the boot entry of the deployment at that place, where the default's is 1; nothing where there
# is none.
boot_entry() {
    boot_entries
    sed -n "$1s/^\([^ ]* \)\{4\}//p" "$JOB/state/boot-entries"
}
