#!/bin/sh
# Note the options of a stage for make: sh tools/note.sh FILE OPTIONS [DATA]
#
# FILE is rewritten only when its content changes, so that its time says when the options did. It
# holds the options, the data they speak of, and a checksum of the names, sizes and times of the
# files there. Without OPTIONS the noted ones hold, and only the checksum is made anew.
set -eu
file=$1 options=$2 data=${3-}

if [ -z "$options" ] && [ -f "$file" ]; then
    options=$(sed -n 1p "$file")
    data=$(sed -n 2p "$file")
fi
if [ -z "$options" ] && [ "$(basename "$file")" = .extract ]; then
    echo "Say what to extract: make features DATA=photos/ BACKBONE=resnet18" >&2
    exit 2
fi
case $data in
    "" | *:*) ;;
    *) [ -e "$data" ] || { echo "DATA: '$data' does not exist." >&2; exit 2; } ;;
esac
listing=-
if [ -n "$data" ] && [ -e "$data" ]; then
    listing=$(find -L "$data" -type f -printf '%P %s %T@\n' | LC_ALL=C sort | sha256sum)
fi
printf '%s\n%s\n%s\n' "$options" "$data" "$listing" >"$file.new"
if cmp -s "$file.new" "$file"; then
    rm "$file.new"
else
    mv "$file.new" "$file"
fi
