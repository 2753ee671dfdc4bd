#!/bin/sh
# Drop all packets between this host and HOST. See usage() below, docs/operations.md, and restore.sh.
#
# Every rule carries a comment "linkd-drop:HOST:TOKEN", with a token of its own for each call, so
# that restore.sh finds it without looking HOST up again, and so that a timer removes what its own
# call has put there and nothing that came later.
set -uf

usage() {
    cat <<'END'
Usage: drop.sh HOST [--direction both|in|out] [--port N] [--for SECONDS] [--force]

Drops all packets between this host and HOST (a name or an address, IPv4 or IPv6) with iptables
and ip6tables, until restore.sh is run. A name is looked up once, now, and all its addresses are
dropped. Dropping again changes nothing but the time of --for; other ports or directions are added.

  --direction both|in|out  only what comes in from HOST, or only what goes out to it (default both)
  --port N                 only TCP and UDP packets with port N at either end
  --for SECONDS            restore by itself after so long, even if this terminal is gone;
                           a later drop of HOST sets a new time, or none
  --force                  drop although that cuts this host from itself, or you from it

Refused without --force: an address of this host itself, loopback too, unless --port is given; and
a host from which you have come by ssh, or with which any ssh session is established, unless --for
restores the path in less than 600 seconds.

Exit: 0 dropped, 1 refused or failed (nothing is dropped then), 2 wrong usage.
END
}

fail() {
    printf 'drop.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

wrong() { fail "$1 (try drop.sh --help)" 2; }

# Print the addresses of $host, one a line; nothing if there are none.
addresses() {
    case $host in
    ::ffff:*.*) printf '%s\n' "${host#::ffff:}" ;;
    *:*) printf '%s\n' "$host" ;;
    *[!0-9.]*) getent ahosts "$host" | awk '{ sub(/^::ffff:/, "", $1); print $1 }' | sort -u ;;
    *)
        printf '%s\n' "$host" | awk -F. '
            { ok = NF == 4; for (i = 1; i <= NF; i++) if ($i !~ /^[0-9]+$/ || $i > 255) ok = 0 }
            ok'
        ;;
    esac
}

tool_for() {
    case $1 in
    *:*) echo ip6tables ;;
    *) echo iptables ;;
    esac
}

# Print the program that the host uses as $1, iptables or ip6tables, by a name that stays: the choice
# between -nft and -legacy may change while rules are in force, and then the timer must find them.
program_of() {
    case $("$1" --version 2>/dev/null) in
    *nf_tables*) named=$1-nft ;;
    *legacy*) named=$1-legacy ;;
    *) named=$1 ;;
    esac
    command -v "$named" >/dev/null || named=$1
    echo "$named"
}

# Print the address $1 as the kernel writes it, behind "local" if it is one of this host's own.
routed() {
    ip -o route get "$1" 2>/dev/null | awk '
        $1 == "local" { own = "local " }
        { for (i = 1; i <= NF; i++) if ($i ~ /[.:]/) { print own $i; exit } }'
}

# Whether the address $1 is this host itself: what talks to it would talk to itself no more.
is_own() {
    case $1 in
    127.* | ::1) return 0 ;;
    esac
    case $(routed "$1") in
    local*) return 0 ;;
    esac
    return 1
}

# Print SSH_CONNECTION of this process and of those that have started it: sudo takes it away.
ssh_connections() {
    [ -z "${SSH_CONNECTION-}" ] || printf '%s\n' "$SSH_CONNECTION"
    pid=$$
    while [ "${pid:-0}" -gt 1 ]; do
        tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | sed -n 's/^SSH_CONNECTION=//p'
        pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
    done 2>/dev/null
}

# Print a line if this terminal has come by ssh from the address $1.
ssh_operator() {
    here=$(routed "$1")
    ssh_connections | awk -v port="$port" -v one="$1" -v two="${here#local }" '
        { sub(/^::ffff:/, "", $1); sub(/%.*/, "", $1) }
        port != "" && $2 != port && $4 != port { next }
        $1 == one || $1 == two { print $3, $4, "from", $1, $2; exit }'
}

# Print a line for each established ssh session with the address $1: ports or program say so.
ssh_sessions() {
    case $1 in
    *:*) peers="dst [$1]" ;;
    *) peers="( dst $1 or dst [::ffff:$1] )" ;;
    esac
    # shellcheck disable=SC2086  # the filter is several words
    ss -Htnp state established $peers 2>/dev/null | awk -v port="$port" '
        { here = $3; there = $4; sub(/.*:/, "", here); sub(/.*:/, "", there) }
        port != "" && here != port && there != port { next }
        here == 22 || there == 22 || /\(\("sshd?(-session)?",/ { print $3, $4 }'
}

# Print "TOOL CHAIN MATCH..." for every rule that is wanted for the address $1.
wanted() {
    tool=$(program_of "$(tool_for "$1")")
    for way in in out; do
        case $direction,$way in
        in,out | out,in) continue ;;
        *,in) rule="$tool INPUT -s $1" ;;
        *,out) rule="$tool OUTPUT -d $1" ;;
        esac
        if [ -z "$port" ]; then
            echo "$rule"
            continue
        fi
        for protocol in tcp udp; do
            echo "$rule -p $protocol -m $protocol --sport $port"
            echo "$rule -p $protocol -m $protocol --dport $port"
        done
    done
}

# Print "TOOL CHAIN MATCH... -m comment --comment C -j DROP" for every rule of ours for $host. The
# token is behind the last colon: an IPv6 address has colons of its own, and may begin another.
present() {
    for tool in $tools; do
        "$tool" -w 5 -S 2>/dev/null | tr -d '"' | awk -v tool="$tool" -v mark="linkd-drop:$host" '
            $1 == "-A" { for (i = 2; i < NF; i++) if ($i == "--comment") {
                name = $(i + 1); sub(/:[^:]*$/, "", name)
                if (name == mark) { sub(/^-A /, ""); print tool, $0; break } } }'
    done
}

direction=both port='' seconds='' force='' host=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --direction | --port | --for)
        [ $# -ge 2 ] || wrong "$1 needs a value"
        case $1 in
        --direction) direction=$2 ;;
        --port) port=$2 ;;
        --for) seconds=$2 ;;
        esac
        shift
        ;;
    --force) force=yes ;;
    -*) wrong "unknown option $1" ;;
    *)
        [ -z "$host" ] || wrong "one HOST, got $host and $1"
        host=$1
        ;;
    esac
    shift
done

[ -n "$host" ] || wrong "HOST is missing"
case $host in
*[!A-Za-z0-9.:_-]* | [.-]*) wrong "HOST must be a name or an address, got '$host'" ;;
esac
[ ${#host} -le 200 ] || wrong "HOST is longer than 200 characters"
case $direction in
both | in | out) ;;
*) wrong "--direction must be both, in or out, got '$direction'" ;;
esac
case $port in
*[!0-9]* | ??????*) wrong "--port must be a number from 1 to 65535, got '$port'" ;;
esac
[ -z "$port" ] || { [ "$port" -ge 1 ] && [ "$port" -le 65535 ]; } ||
    wrong "--port must be a number from 1 to 65535, got '$port'"
case $seconds in
'') ;;
*[!0-9.]* | *.*.* | . | ?????????*) wrong "--for must be a number of seconds, got '$seconds'" ;;
*[1-9]*) ;;
*) wrong "--for must be more than 0 seconds, got '$seconds'" ;;
esac
host=$(printf '%s' "$host" | tr '[:upper:]' '[:lower:]')
PATH=$PATH:/usr/sbin:/sbin

found=$(addresses)
[ -n "$found" ] || fail "cannot find the address of '$host'"

for address in $found; do
    case $address in
    *[1-9a-f]*) ;;
    *) fail "'$address' is no host's address" ;;
    esac
    [ -n "$force$port" ] || ! is_own "$address" ||
        fail "$address is this host itself, which would be cut from its own services; use --port N or --force"
done

# Nothing is changed before all that is needed is known to be there.
tools=''
for address in $found; do
    tool=$(tool_for "$address")
    case " $tools " in *" $tool "*) continue ;; esac
    command -v "$tool" >/dev/null || fail "$tool is missing (Debian: apt install iptables)"
    said=$("$tool" -w 5 -S INPUT 2>&1 >/dev/null) ||
        fail "$tool refuses: ${said:-no reason given}; it needs root (try sudo)"
    tools="$tools $tool"
done
plain=$tools tools=''
for tool in $plain; do
    tools="$tools $(program_of "$tool")"
done

# An ssh session outlives some minutes without a packet.
soon=${seconds%%.*}
if [ -z "$force" ] && { [ -z "$seconds" ] || [ "${soon:-0}" -ge 600 ]; }; then
    way_out="use --for SECONDS, below 600, or --force"
    for address in $found; do
        session=$(ssh_operator "$address")
        [ -z "$session" ] ||
            fail "you have come from $host by ssh (to $session) and would be cut off; $way_out"
    done
    command -v ss >/dev/null ||
        fail "ss is missing, so an ssh session with $host cannot be ruled out; $way_out"
    for address in $found; do
        session=$(ssh_sessions "$address" | head -n 1)
        [ -z "$session" ] ||
            fail "an ssh session with $host is established ($session) and would be cut; $way_out"
    done
fi

token=$(date +%s)-$$
old=$(present)
all=$(
    {
        for address in $found; do wanted "$address"; done
        printf '%s\n' "$old" | sed 's/ -m comment .*//; s,/32,,; s,/128,,'
    } | awk 'NF && !seen[$0]++'
)

# A cut terminal must not leave this half done, and the timer must run before the first packet is lost.
trap '' HUP
newline='
'
undo=''
IFS=$newline
for rule in $all; do
    undo="$undo${rule%% *} -w 30 -D ${rule#* } -m comment --comment linkd-drop:$host:$token -j DROP 2>/dev/null
"
done
unset IFS

remove_new() { PATH=$PATH sh -c "$undo"; }

if [ -n "$seconds" ]; then
    timer="sleep $seconds
$undo"
    # In systemd's own network namespace a service of its own outlives the session and its scope.
    if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null &&
        [ "$(readlink /proc/self/ns/net)" = "$(readlink /proc/1/ns/net 2>/dev/null)" ] &&
        systemd-run --quiet --collect --unit="linkd-restore-$token" --setenv=PATH="$PATH" \
            /bin/sh -c "$timer" 2>/dev/null; then
        :
    else
        command -v setsid >/dev/null || fail "--for needs systemd-run or setsid (Debian: apt install util-linux)"
        PATH=$PATH setsid sh -c "trap '' HUP; $timer" >/dev/null 2>&1 </dev/null &
    fi
fi

IFS=$newline
for rule in $all; do
    unset IFS
    # shellcheck disable=SC2086  # a rule is several words
    said=$("${rule%% *}" -w 5 -I ${rule#* } -m comment --comment "linkd-drop:$host:$token" -j DROP 2>&1) || {
        remove_new
        fail "${rule%% *} refuses '${rule#* }': $said"
    }
done

IFS=$newline
for rule in $old; do
    unset IFS
    # shellcheck disable=SC2086
    "${rule%% *}" -w 5 -D ${rule#* } 2>/dev/null
done
unset IFS

case $direction in
both) what="all packets to and from" ;;
in) what="all packets from" ;;
out) what="all packets to" ;;
esac
# shellcheck disable=SC2086,SC2116  # one line out of several
printf 'Dropping %s %s (%s)%s%s.\n' "$what" "$host" "$(echo $found)" \
    "${port:+, port $port}" "${seconds:+, for $seconds s}"
