# needs: ostree blkid
# Deploys the pulled commit as the default one, with the kernel arguments of the one before it or,
# on a new disk, those of the recipe.
. "$JOB/lib.sh"

stateroot='' refspec='' commit='' keep='' remote=''
get stateroot stateroot
get refspec ref
get commit commit
get keep keep
if has remote-name; then
    get remote remote-name
    refspec="$remote:$refspec"
fi

# is_default: whether the commit is the default deployment, as they were listed last.
is_default() {
    read -r _ first checksum _ <"$JOB/state/boot-entries" && [ "$first $checksum" = "$stateroot $commit" ]
}

# is_pinned STATEROOT CHECKSUM SERIAL: whether the product's admin pinned it (`ostree admin pin`).
is_pinned() {
    while read -r line; do
        [ "$line" != pinned=true ] || return 0
    done <"$SYSROOT/ostree/deploy/$1/deploy/$2.$3.origin"
    return 1
}

# list: lists the deployments; all is how many of them are the stateroot's, count how many of those may go, oldest
# the index of the last of these.
list() {
    boot_entries
    all=0 count=0 index=0 oldest=0
    while read -r _ root checksum serial _; do
        if [ "$root" = "$stateroot" ]; then
            all=$((all + 1))
            is_pinned "$root" "$checksum" "$serial" 2>/dev/null || count=$((count + 1)) oldest=$index
        fi
        index=$((index + 1))
    done <"$JOB/state/boot-entries"
}

set -- --os="$stateroot"
if has kargs; then
    set -- "$@" --karg="root=UUID=$(blkid -s UUID -o value "$(partition root)")" --karg=rw
    # Appended: --karg would let the second console= replace the first.
    while read -r karg; do set -- "$@" --karg-append="$karg"; done <"$JOB/data/kargs"
fi
list
# A product that upgraded itself in the field has the commit already; deploying it again would push the
# former one, the way back, off the disk.
if ! is_default; then
    # Without --retain the former default alone stays beside the new one, and what is pinned.  Where nothing goes,
    # nothing is to be pruned, which is a walk of all commits.
    if [ "$keep" -gt 2 ] || [ "$all" -gt "$count" ]; then
        set -- "$@" --retain --no-prune
    elif [ "$count" -lt 2 ]; then
        set -- "$@" --no-prune
    fi
    ostree admin deploy "$@" "$refspec"
    list
fi

# Other stateroots are left alone.
while [ "$count" -gt "$keep" ]; do
    ostree admin undeploy "$oldest"
    list
done

is_default || fail "after the deploy the default deployment is not the commit asked for"
