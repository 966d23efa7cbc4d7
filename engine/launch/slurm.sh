#!/bin/bash
# A fine-tuning over several nodes of GPUs: sbatch slurm.sh. See README.md beside it.
#SBATCH --job-name=voxtune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=voxtune-%j.log

set -u
trap : TERM # Slurm may tell this shell too, which has to wait for what the processes say
GPUS=8 # of a node, as above
MODEL=${MODEL:-model}
DATA=${DATA:-store}
RUN=${RUN:-run}

# One process drives all GPUs of its node; without this line JAX gives each process one.
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((GPUS - 1)))
export JAX_LOCAL_DEVICE_IDS

if [ -f "$RUN/config.json" ]; then
    command=(voxtune resume "$RUN")
else
    command=(voxtune finetune "$MODEL" "$DATA" "$RUN" "$@")
fi

# srun tells the largest status alone: where one process says 2, and loses the others, 69 or 134. So
# each process that says 2 leaves a file. The shell around it waits for what it says at SIGTERM.
REFUSED=voxtune-$SLURM_JOB_ID.refused
LOST=voxtune-$SLURM_JOB_ID.lost # a line for each time that a process was lost
export REFUSED
rm -f "$REFUSED"
task='trap : TERM; "$@"; status=$?; [ $status -ne 2 ] || touch "$REFUSED"; exit $status'

# No process outlives another one for long: each ends by itself once one is lost.
srun --kill-on-bad-exit=0 bash -c "$task" voxtune "${command[@]}" --distributed slurm
status=$?
[ ! -e "$REFUSED" ] || exit 2

case $status in
75) # told to end, a checkpoint is saved
    scontrol requeue "$SLURM_JOB_ID"
    ;;
69 | 134 | 137 | 143) # a process was lost, killed, or told to end before all had met
    # Not for ever, should it be the run's own fault.
    echo "$status" >>"$LOST"
    if [ "$(wc -l <"$LOST")" -le 10 ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit $status
