# needs: ostree
# Puts the deployment behind the default one, of the same stateroot, first.  ostree 2022.7 has no command for that:
# its order is that of the versions in the boot entries, highest first, and the change of a kernel argument has
# them all written anew.
. "$JOB/lib.sh"

stateroot=$(deployments | head -n 1 | cut -d' ' -f1)
[ -n "$stateroot" ] || fail "there is no deployment on the disk"
place=$(deployments | grep -n "^$stateroot " | sed -n '2s/:.*//p')
[ -n "$place" ] || fail "the disk has one deployment alone, so there is none to go back to"
former=$(deployments | sed -n "${place}p")

chosen=$(boot_entry "$place")
# Higher than any.
read -r version _ <"$JOB/state/boot-entries"
sed -i "s/^version .*/version $((version + 1))/" "$chosen"

read_entry "$chosen"
set -f
set --
for word in ${options?}; do
    case "$word" in
        ostree=*) ;;
        *) set -- "$@" "--append=$word" ;;
    esac
done
set +f
ostree admin instutil set-kargs --merge --append=composer.rollback
ostree admin instutil set-kargs "$@"

deployments | head -n 1 | grep -qxF "$former" \
    || fail "after the rollback the default deployment is not the one asked for"
