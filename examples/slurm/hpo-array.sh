#!/bin/bash
# Workers on a study as a job array, one task for each GPU:  sbatch hpo-array.sh servicedesk
# docs/clusters.md says what to change. No password is in here: libpq reads it from the file that PGPASSFILE names.
#SBATCH --job-name=hpo
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=hpo-%A_%a.log

export PATH=/opt/hpo/bin:$PATH
export HPO_STORAGE=postgresql://hpo@db.example/hpo
export PGPASSFILE=$HOME/.pgpass
export HPO_HOME=/scratch/$USER/hpo

# When Slurm ends a job, it sends SIGTERM to this shell and to every process of the step at once; when it pre-empts one
# with grace or the time runs out, to the step alone. So whoever is to stop has been told, and nothing is passed on from
# here: this shell only has to outlive the step.
trap : TERM

# A step, as Slurm tells those that their time has come, and not what a batch script starts by itself.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" hpo worker "$1"
code=$?

# 75: interrupted with work left. A job that is no longer RUNNING was ended by somebody or is requeued by Slurm itself;
# `scontrol requeue` would bring a cancelled one back. By its place in the array: the last task's own id is that of all.
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
if [ "$code" -eq 75 ] && [ "$(squeue --noheader --job="$task" --format=%T)" = RUNNING ]; then
    scontrol requeue "$task"
fi
exit "$code"
