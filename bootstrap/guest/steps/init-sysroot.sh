# needs: ostree
# Makes an empty sysroot on the new root file system, with the product's own remote.
. "$JOB/lib.sh"

mount_sysroot rw
ostree admin init-fs --modern "$SYSROOT"
# Trees whose /tmp is a link to sysroot/tmp find it here; init-fs --modern leaves it out.
mkdir -p "$SYSROOT/tmp"
chmod 1777 "$SYSROOT/tmp"
ostree admin os-init "$(param stateroot)"
repo="$SYSROOT/ostree/repo"

# ostree's syslinux backend writes one plain file at each deployment, with no program of the tree
# involved; GRUB reads that file.  It follows the product's own upgrades as well.
ostree --repo="$repo" config set sysroot.bootloader syslinux
mkdir -p "$SYSROOT/boot/loader.0" "$SYSROOT/boot/syslinux"
ln -s loader.0 "$SYSROOT/boot/loader"
# ostree keeps the lines that are not its own.  Without a timeout GRUB's reader of this file shows no
# menu and defines no entries (grub-core/lib/syslinux_parse.c).  In tenths of a second.
echo "TIMEOUT 20" >"$SYSROOT/boot/loader.0/syslinux.cfg"
ln -s ../loader/syslinux.cfg "$SYSROOT/boot/syslinux/syslinux.cfg"

if has remote-url; then
    # The product verifies its upgrades with the keys that its first commit was verified with.
    verify=--set=gpg-verify=true
    has gpg-keys || verify=--no-gpg-verify
    remote=$(param remote-name)
    ostree --repo="$repo" remote add "$verify" "$remote" "$(param remote-url)"
    # One by one: of several --gpg-import of `remote add` only the last counts (ostree 2022.7).
    for key in "$JOB"/data/gpg-keys/*; do
        if [ -e "$key" ]; then ostree --repo="$repo" remote gpg-import --keyring="$key" "$remote"; fi
    done
    if has ed25519-keys; then
        # By hand: `remote add` refuses a kind of signature that this ostree cannot check itself.
        group="remote \"$remote\""
        cp "$JOB/data/ed25519-keys" "$repo/$remote.trusted-ed25519"
        chmod 0644 "$repo/$remote.trusted-ed25519"
        ostree --repo="$repo" config set --group="$group" \
            verification-ed25519-file "/ostree/repo/$remote.trusted-ed25519"
        ostree --repo="$repo" config set --group="$group" sign-verify ed25519
        ostree --version | grep -q ed25519 || result lacks ed25519
    fi
fi
