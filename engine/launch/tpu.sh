#!/bin/bash
# A fine-tuning on all hosts of a TPU slice: TPU=name ZONE=zone ./tpu.sh. See README.md beside it.
set -eu
TPU=${TPU:?name of the TPU VM}
ZONE=${ZONE:?its zone}
MODEL=${MODEL:-/mnt/data/model}
DATA=${DATA:-/mnt/data/store}
RUN=${RUN:-/mnt/data/run}

on_hosts() { # which ones, and a command line for their shells
    gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker="$1" --command "$2"
}

quoted() { # so that a shell on another machine reads the same words
    printf ' %q' "$@"
}

on_hosts all "python3 -m venv ~/voxtune && ~/voxtune/bin/pip install --quiet 'voxtune[tpu]'"

# The same command on each: they find each other by the slice's metadata. Whoever comes first must
# not make the folder that the next one asks for, so one of them looks.
if on_hosts 0 "test -f$(quoted "$RUN/config.json")"; then
    command=$(quoted resume "$RUN" --distributed tpu)
else
    command=$(quoted finetune "$MODEL" "$DATA" "$RUN" --distributed tpu "$@")
fi
on_hosts all "~/voxtune/bin/voxtune$command"
