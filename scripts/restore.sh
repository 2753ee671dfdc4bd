#!/bin/sh
# Let packets pass again that drop.sh drops. See usage() below and docs/operations.md.
set -uf

usage() {
    cat <<'END'
Usage: restore.sh [HOST]

Removes the rules that drop.sh has put there for HOST, or for all hosts. HOST is what drop.sh was
given; it is not looked up, so this works without name service too.

Exit: 0 restored or nothing to restore, 1 failed, 2 wrong usage.
END
}

fail() {
    printf 'restore.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

case ${1-} in
-h | --help) usage; exit 0 ;;
-*) fail "unknown option $1 (try restore.sh --help)" 2 ;;
esac
[ $# -le 1 ] || fail "one HOST or none, got $# (try restore.sh --help)" 2
host=$(printf '%s' "${1-}" | tr '[:upper:]' '[:lower:]')
PATH=$PATH:/usr/sbin:/sbin
newline='
'

# Print "CHAIN MATCH... --comment linkd-drop:HOST:TOKEN -j DROP" for every rule of drop.sh in $1.
present() {
    "$1" -w 5 -S | tr -d '"' | awk '$1 == "-A" && / --comment linkd-drop:/ { sub(/^-A /, ""); print }'
}

# Print the HOST of the rule $1. An IPv6 address has colons of its own: the token is behind the last.
host_of() {
    name=${1#*--comment linkd-drop:}
    name=${name%% *}
    printf '%s\n' "${name%:*}"
}

seen='' removed='' others=''
for tool in iptables ip6tables; do
    command -v "$tool" >/dev/null || continue
    seen=yes
    said=$("$tool" -w 5 -S INPUT 2>&1 >/dev/null) || {
        # A kernel without IPv6 has no rules there either.
        [ "$tool" = ip6tables ] && ! [ -e /proc/net/if_inet6 ] && continue
        fail "$tool refuses: ${said:-no reason given}; it needs root (try sudo)"
    }
    IFS=$newline
    for rule in $(present "$tool"); do
        unset IFS
        name=$(host_of "$rule")
        if [ -n "$host" ] && [ "$name" != "$host" ]; then
            others="$others$name$newline"
            continue
        fi
        # shellcheck disable=SC2086  # a rule is several words
        said=$("$tool" -w 5 -D $rule 2>&1) || {
            # A timer of drop.sh may have been faster: only what is still there is an error.
            present "$tool" | grep -qxF -- "$rule" && fail "$tool cannot remove '$rule': $said"
        }
        removed="$removed$name$newline"
    done
    unset IFS
done
[ -n "$seen" ] || fail "iptables is missing (Debian: apt install iptables)"

list() { printf '%s' "$1" | sort -u | tr '\n' ' ' | sed 's/ $//'; }

if [ -n "$removed" ]; then
    printf 'Restored: %s.\n' "$(list "$removed")"
elif [ -n "$others" ]; then
    printf 'Nothing is dropped for %s; dropped are: %s.\n' "$host" "$(list "$others")"
else
    printf 'Nothing is dropped%s.\n' "${host:+ for $host}"
fi
