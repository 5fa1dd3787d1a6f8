# needs: ostree
# Holds the default deployment against what it takes to boot it: a kernel and an initramfs that its boot entry
# names, its tree, its origin.
. "$JOB/lib.sh"

folder=$(deployment_folder)
for part in "$folder/usr/bin" "$folder/usr/etc" "$folder/etc" "$folder.origin"; do
    [ -e "$part" ] || fail "the default deployment is not complete: ${part#"$folder"} is missing"
done
count=$(deployments | wc -l)
for entry in "$SYSROOT"/boot/loader/entries/ostree-*.conf; do
    grep -qx "version $count" "$entry" || continue
    while read -r key value; do
        case "$key" in
            "linux" | "initrd") [ -s "$SYSROOT/boot/${value#/boot}" ] || fail "its $key $value is missing" ;;
            "options")
                target=${value##*ostree=}
                [ -d "$SYSROOT${target%% *}/usr" ] || fail "its boot entry leads nowhere: $target"
                ;;
        esac
    done <"$entry"
    exit 0
done
fail "the default deployment has no boot entry"
