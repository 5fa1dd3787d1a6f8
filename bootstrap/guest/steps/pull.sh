# needs: ostree
# Pulls the commit into the product's repo.  fsync per object is left out: the whole file system is synced
# once, at the end, and until then the disk is nobody's.
. "$JOB/lib.sh"

repo="$SYSROOT/ostree/repo"
ref='' commit='' url='' remote=''
get ref ref
get commit commit
get url export-url

# What little changed comes in one piece.  The host has checked the commit itself (signatures, ref, age);
# here each object is held against its checksum.  A ref is a file (ostree-repo-refs.c), and writing it saves a
# third of a second under emulation against asking ostree to.
if [ -e "$EXPORT/static-delta" ]; then
    ostree --repo="$repo" static-delta apply-offline "$EXPORT/static-delta"
    file="$repo/refs/heads/$ref"
    if has remote-name; then
        get remote remote-name
        file="$repo/refs/remotes/$remote/$ref"
    fi
    mkdir -p "${file%/*}"
    echo "$commit" >"$file.new"
    mv "$file.new" "$file"
    exit 0
fi

# What comes from a disk or a shared folder is verified as what comes over HTTP always is.
set -- --disable-fsync --untrusted --url="$url"
if [ -s "$JOB/state/deployments" ] && ! has allow-downgrade; then
    read -r _ deployed _ <"$JOB/state/deployments"
    set -- "$@" --timestamp-check-from-rev="$deployed"
fi

if has remote-name; then
    get remote remote-name
    # ed25519 signatures were checked on the host.  The key file's path is the booted product's, and many an
    # ostree is built without ed25519 and then pulls nothing from a remote that asks for it.
    group="remote \"$remote\""
    sign=
    section=
    while read -r line; do
        case "$line" in
            "["*) section=$line ;;
            sign-verify=*) if [ "$section" = "[$group]" ]; then sign=${line#*=}; fi ;;
        esac
    done <"$repo/config"
    if [ -n "$sign" ]; then ostree --repo="$repo" config set --group="$group" sign-verify false; fi
    ostree --repo="$repo" pull "$@" "$remote" "$ref@$commit"
    if [ -n "$sign" ]; then ostree --repo="$repo" config set --group="$group" sign-verify "$sign"; fi
else
    # No remote is wanted in the product: one for this pull alone, and a local ref in its place.
    ostree --repo="$repo" remote add --if-not-exists --no-gpg-verify composer-export file:///
    ostree --repo="$repo" pull "$@" composer-export "$ref@$commit"
    ostree --repo="$repo" refs --force --create="$ref" "$commit"
    ostree --repo="$repo" remote delete composer-export
fi
