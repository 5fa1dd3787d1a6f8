# Sets in the new deployment what the recipe says besides the commit: hostname, accounts, files.
# Accounts are made by the product's own programs, in a chroot with its /var in place.
. "$JOB/lib.sh"

root=$(deployment_folder)
stateroot=$(param stateroot)
var="$SYSROOT/ostree/deploy/$stateroot/var"
mount --bind "$var" "$root/var"

in_product() {
    chroot "$root" "$@"
}

add_user() {
    folder=$1
    name=$(cat "$folder/name")
    if [ "$name" != root ] && ! in_product id -u "$name" >/dev/null 2>&1; then
        # /home is a link into /var, which is empty until the first boot.
        mkdir -p "$root/var/home"
        set -- --create-home --user-group --shell "$(cat "$folder/shell")"
        if [ -e "$folder/uid" ]; then set -- "$@" --uid "$(cat "$folder/uid")"; fi
        if [ -s "$folder/groups" ]; then set -- "$@" --groups "$(cat "$folder/groups")"; fi
        in_product useradd "$@" "$name" || fail "the account $name could not be made"
    elif [ -e "$folder/uid" ] || [ -s "$folder/groups" ] || [ "$(cat "$folder/shell")" != /bin/bash ]; then
        fail "the tree has an account $name already, so give it a password_hash and ssh keys alone"
    fi
    if [ -e "$folder/password-hash" ]; then
        printf '%s:%s\n' "$name" "$(cat "$folder/password-hash")" | in_product chpasswd -e \
            || fail "the password of $name could not be set"
    fi
    if [ -e "$folder/ssh-keys" ]; then add_keys "$folder" "$name"; fi
}

add_keys() {
    name=$2
    home=$(in_product getent passwd "$name" | cut -d: -f6)
    if [ "$name" = root ]; then mkdir -p "$root/var/roothome"; chmod 700 "$root/var/roothome"; fi
    # The links in the path are the product's, so they are followed inside the chroot.
    in_product install -d -m 0700 -o "$name" -g "$(in_product id -g "$name")" "$home/.ssh"
    # shellcheck disable=SC2016  # the inner shell expands it
    in_product sh -c 'umask 077; cat >"$1/.ssh/authorized_keys"' sh "$home" <"$1/ssh-keys"
    in_product chown "$name:$(in_product id -g "$name")" "$home/.ssh/authorized_keys"
}

add_file() {
    folder=$1
    path=$(cat "$folder/path"; echo .)
    path=${path%.}
    owner=$(cat "$folder/owner"):$(cat "$folder/group")
    # shellcheck disable=SC2016
    in_product sh -c 'mkdir -p "$(dirname "$1")" && cat >"$1"' sh "$path" <"$folder/content" \
        || fail "the file $path could not be written"
    in_product chown "$owner" "$path" || fail "the file $path could not be given to $owner"
    in_product chmod "$(cat "$folder/mode")" "$path"
}

if has hostname; then param hostname >"$root/etc/hostname"; fi
for user in "$JOB"/data/users/*; do
    if [ -d "$user" ]; then add_user "$user"; fi
done
for file in "$JOB"/data/files/*; do
    if [ -d "$file" ]; then add_file "$file"; fi
done
umount "$root/var"
